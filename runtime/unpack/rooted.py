"""Paths inside one directory that nothing in a tar can leave.

Every step is an ``openat`` with ``O_NOFOLLOW`` on a descriptor; symbolic links are read and resolved here, with the
directory as their root, as a process confined to it would see them. The directory belongs to the caller alone while it
is used, so that what was looked at cannot change before it is opened.

The kernel could resolve too (openat2, ``runtime/kernel/rooted.py``), but it says only what a whole path leads to. Here the
way matters: what is missing on it is made, a whiteout on it too; a file on it hides what lower layers have; the path
without links is what the next names are looked up by; and links and steps have bounds of ours. That is this walk again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from runtime.unpack.errors import MalformedArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LINKS_MAX = 40
STEPS_MAX = 4096
"""Components of one path, those of the links on its way included: the kernel's own forty links may have 80 000."""
RESOLVED_MAX = 1024
"""Paths that are remembered, each at most ``PATH_BYTES_MAX`` long."""
DEPTH_MAX = 512
"""Each folder of a deep one is opened from the root on, so the time grows with the square of this."""
PATH_BYTES_MAX = 4096
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_MAX = 64
_NO_DIRECTORY = (errno.ENOTDIR, errno.ELOOP)  # a file, link or whiteout: it hides what lower layers have there


def split_name(name: str) -> list[str]:
    """Components of a member's name, cleaned. Raises MalformedArchiveError for one that climbs out or is no path."""
    if "\0" in name or len(os.fsencode(name)) > PATH_BYTES_MAX:
        raise MalformedArchiveError(f"malformed tar: impossible name {name[:80]!r}")
    parts: list[str] = []
    for part in name.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            raise MalformedArchiveError(f"tar member {name!r} is outside of the layer")
    return parts


class RootedDirectory:
    """Resolves and opens directories below ``root``. Close it: it holds descriptors."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, _OPEN_DIRECTORY)
        self._open: OrderedDict[str, int] = OrderedDict()
        self._resolved: OrderedDict[str, str] = OrderedDict()

    def close(self) -> None:
        self.forget()
        os.close(self._root)

    def forget(self) -> None:
        """Call after a directory or link was replaced: what was resolved through it may lead elsewhere now."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        self._resolved.clear()

    def resolve(self, parts: list[str], make: Callable[[str, str], None]) -> str:
        """The real path (no links in it, "" for the root) of a directory.

        ``make(parent, name)`` is called for a component that does not exist or is a whiteout, and must make it a
        directory. Raises MalformedArchiveError.
        """
        wanted = "/".join(parts)
        known = self._resolved.get(wanted)
        if known is not None:
            self._resolved.move_to_end(wanted)
            return known
        stack, todo, links, steps = list[str](), deque(parts), 0, 0
        while todo:
            steps += 1
            if steps > STEPS_MAX:
                raise MalformedArchiveError(f"too long a way to {wanted[:200]!r}")
            part = todo.popleft()
            if part in ("", "."):
                continue
            if part == "..":
                del stack[-1:]
                continue
            parent = "/".join(stack)
            info = self.lstat(parent, part)
            if info is None or is_whiteout(info):
                make(parent, part)
            elif stat.S_ISLNK(info.st_mode):
                links += 1
                if links > LINKS_MAX:
                    raise MalformedArchiveError(f"too many symbolic links in {wanted[:200]!r}")
                target = os.readlink(part, dir_fd=self.fd(parent))
                if target.startswith("/"):
                    stack.clear()
                todo.extendleft(reversed(target.split("/")))
                continue
            elif not stat.S_ISDIR(info.st_mode):
                raise MalformedArchiveError(f"{wanted[:200]!r}: {part!r} is not a directory")
            stack.append(part)
            if len(stack) > DEPTH_MAX:
                raise MalformedArchiveError("directories are nested too deeply")
        real = "/".join(stack)
        self._resolved[wanted] = real
        if len(self._resolved) > RESOLVED_MAX:
            self._resolved.popitem(last=False)
        return real

    def lstat(self, parent: str, name: str) -> os.stat_result | None:
        """What is called ``name`` in the real directory ``parent``."""
        try:
            return os.stat(name, dir_fd=self.fd(parent), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def fd(self, real: str) -> int:
        """A descriptor of a real directory, valid until the next call but a few. Raises OSError."""
        if not real:
            return self._root
        fd = self._open.get(real)
        if fd is not None:
            self._open.move_to_end(real)
            return fd
        parent, _, name = real.rpartition("/")
        fd = os.open(name, _OPEN_DIRECTORY, dir_fd=self.fd(parent)) if parent.count("/") < 8 else self._walk(real)
        self._open[real] = fd
        if len(self._open) > _OPEN_MAX:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest)
        return fd

    def _walk(self, real: str) -> int:
        """Open a deep directory without recursion and without filling the cache with its ancestors."""
        fd = os.dup(self._root)
        for part in real.split("/"):
            try:
                child = os.open(part, _OPEN_DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = child
        return fd


def look_up(root: Path, path: str) -> os.stat_result | None:
    """``lstat`` of ``path`` below ``root`` without going through any link."""
    fd = os.open(root, _OPEN_DIRECTORY)
    try:
        *directories, name = path.split("/")
        for part in directories:
            try:
                child = os.open(part, _OPEN_DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno not in _NO_DIRECTORY:
                    raise
                return os.stat(part, dir_fd=fd, follow_symlinks=False)
            os.close(fd)
            fd = child
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
    finally:
        os.close(fd)


def is_whiteout(info: os.stat_result) -> bool:
    """overlayfs marks a removed name by a character device 0/0."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0
