"""mount(2) and umount2(2), in-process, and what /proc/self/mountinfo says.

The option string of a mount is at most one page, which absolute paths of forty layers exceed. Mounts are therefore made
by threads that have a working directory of their own (``unshare(CLONE_FS)``) inside the layers directory, with names
relative to it. The alternatives: ``fsconfig("lowerdir+")`` needs Linux 6.5 and its plain form takes 256 bytes; a child
process costs milliseconds on the path of every container start.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from runtime.errors import HostError

T = TypeVar("T")

CLONE_FS = 0x200
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE = 0x1000, 0x4000, 1 << 18, 1 << 19
THREADS = 4
_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def mount_overlay(target: Path, options: str) -> None:
    """Blocks. Raises OSError."""
    _call("mount", b"overlay", os.fsencode(target), b"overlay", ctypes.c_ulong(0), os.fsencode(options))


def mount_tmpfs(target: Path, options: str) -> None:
    """Without programs, devices and set-user-ID. Blocks. Raises OSError."""
    flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _call("mount", b"tmpfs", os.fsencode(target), b"tmpfs", flags, os.fsencode(options))


def mount_descriptor(target: Path, fd: int) -> None:
    """Bind what ``fd`` is open on, and what is mounted below it, at ``target``. Blocks. Raises OSError.

    The mounts are private: to unmount them would else unmount the originals too, where those are shared.
    """
    source, place = os.fsencode(f"/proc/self/fd/{fd}"), os.fsencode(target)
    _call("mount", source, place, None, ctypes.c_ulong(MS_BIND | MS_REC), None)
    _call("mount", None, place, None, ctypes.c_ulong(MS_PRIVATE | MS_REC), None)


def make_slave(target: Path) -> None:
    """Let nothing that is done at ``target`` and below reach the mounts it was bound from. Blocks. Raises OSError."""
    _call("mount", None, os.fsencode(target), None, ctypes.c_ulong(MS_SLAVE | MS_REC), None)


def unmount(target: Path) -> None:
    """Unmount, lazily if it is busy; nothing mounted or nothing there is fine. Blocks. Raises HostError."""
    for flags in (UMOUNT_NOFOLLOW, UMOUNT_NOFOLLOW | MNT_DETACH):
        try:
            _call("umount2", os.fsencode(target), flags)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            if error.errno != errno.EBUSY or flags & MNT_DETACH:
                raise HostError(f"cannot unmount {target}: {error.strerror}") from error
        else:
            return


def sync_filesystem(path: Path) -> None:
    """Make everything written to the file system of ``path`` durable. Blocks. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _call("syncfs", fd)
    finally:
        os.close(fd)


class Mounter:
    """Threads whose working directory is ``directory``. Close it."""

    def __init__(self, directory: Path) -> None:
        def enter() -> None:
            _call("unshare", CLONE_FS)
            os.chdir(directory)

        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="overlay-mount", initializer=enter)

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in one of the threads; a cancelled caller waits for its end, so that nothing follows it unseen."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()
            raise

    def close(self) -> None:
        self._threads.shutdown(wait=True)


def unescaped(text: str) -> str:
    """A path as /proc/self/mountinfo writes it, with its blanks and backslashes again (proc(5))."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


class HostMount(NamedTuple):
    """A line of mountinfo: where, the file system's type and its own options."""

    point: Path
    kind: str
    options: str


def own_mounts() -> str:
    """/proc/self/mountinfo. Bytes that are no UTF-8 stay (PEP 383): users may mount, and call it what they like."""
    return _MOUNTINFO.read_bytes().decode(errors="surrogateescape")


def mount_points(mountinfo: str) -> list[HostMount]:
    """All that is mounted, in the order of the text. Pure.

    Fields are split at single blanks and lines at line feeds: these are escaped in names, other white space is not, and
    a source may be empty.
    """
    found: list[HostMount] = []
    for line in mountinfo.split("\n"):
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if len(fields) > 4 and len(tail) > 2:
            found.append(HostMount(Path(unescaped(fields[4])), tail[0], tail[2]))
    return found


def filesystem_of(path: Path, mountinfo: str) -> str:
    """Type of the file system ``path`` is on, such as ``ext4``; "unknown" if it cannot be told.

    Pure. ``mountinfo`` is the text of /proc/self/mountinfo, whose later lines lie above earlier ones (proc(5)).
    """
    best, kind = Path(), "unknown"
    for mount in mount_points(mountinfo):
        if len(mount.point.parts) >= len(best.parts) and path.is_relative_to(mount.point):
            best, kind = mount.point, mount.kind
    return kind
