"""Walking, removing and measuring directory trees of hostile shape: any depth, any names, no recursion.

Every step is taken by descriptor (``openat`` with ``O_NOFOLLOW``), so that no path gets longer than ``PATH_MAX`` and no
link is followed, also when one takes a folder's place while the walk is under way. At most ``OPEN_MAX`` descriptors are
open: those of folders further up are closed and come back by ``..``, which is believed only if it is the folder that was
left. What is mounted below the tree belongs to it: who does not want that unmounts first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

OPEN_MAX = 32
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CLOSED = -1
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system (stat(3type))


class Folder:  # no dataclass: the process that unpacks layers imports this, and they would take it 1.4 MB
    """A folder of a tree, while it is walked.

    Attributes:
        name: in the folder it lies in; the path of the tree's top.
        parent: a descriptor of that folder; None at the top.
        fd: a descriptor of its own. Both are the walk's and good until its next step.
        others: the names of what in it is no folder, in no order.
    """

    __slots__ = ("fd", "identity", "name", "others", "parent", "pending")

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.fd = name, fd
        self.parent: int | None = None
        self.others: list[str] = []
        self.pending: list[str] = []
        self.identity = (0, 0)


def walk_tree(path: Path, on_error: Callable[[OSError], None]) -> Iterator[Folder]:
    """Every folder of a tree, ``path`` as the last one, each after those in it: they may be removed on the way.

    What vanishes meanwhile is left out; what takes a folder's place meanwhile is one of ``others``.

    Args:
        on_error: told of each folder that cannot be read and is left out. With the error ESTALE the walk ends, as a
            folder was moved away while the walk was in it. It may raise, which ends the walk too.

    Raises:
        OSError: ``path`` itself cannot be opened (FileNotFoundError, NotADirectoryError).
    """
    way = [_opened(str(path), None)]
    try:
        while way:
            folder = way[-1]
            if folder.pending:
                if (child := _child(folder, folder.pending.pop(), on_error)) is not None:
                    way.append(child)
                    if len(way) > OPEN_MAX:
                        _close(way[-1 - OPEN_MAX])
                continue
            if len(way) > 1:
                try:
                    folder.parent = _come_back(way[-2], folder)
                except OSError as error:
                    on_error(error)
                    return
            yield folder
            _close(way.pop())
    finally:
        for folder in way:
            _close(folder)


def remove_tree(path: Path) -> None:
    """Delete ``path`` and all below it; nothing there is fine.

    Raises:
        OSError: something could not be removed, the first one of possibly many: all the rest is gone.
    """
    failed: list[OSError] = []

    def note(error: OSError) -> None:
        if not failed:
            failed.append(error)

    try:
        for folder in walk_tree(path, note):
            for name in folder.others:
                _remove(os.unlink, name, folder.fd, note)
            _remove(os.rmdir, folder.name, folder.parent, note)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        path.unlink(missing_ok=True)
    if failed:
        raise failed[0]


def tree_size(path: Path) -> int:
    """Bytes in the regular files below ``path``, hard links counted once; what vanishes meanwhile is left out.

    Of a file it is its size, which moby's ``directory.Size`` sums up and users compare, or what of it lies on the disk if
    that is less, as containerd's ``fs.DiskUsage`` (and ``du``) count: a file may be a hole of 8 EiB, and two of these are
    more than the numbers of the Engine API hold. Blocks alone would make 4096 bytes of every file of one byte.

    Raises:
        OSError: a folder cannot be read, or ``path`` is none. Nothing there is 0.
    """

    def check(error: OSError) -> None:
        if error.errno != errno.ESTALE:
            raise error

    total, seen = 0, set[tuple[int, int]]()
    with contextlib.suppress(FileNotFoundError):
        for folder in walk_tree(path, check):
            for name in folder.others:
                try:
                    info = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if not stat.S_ISREG(info.st_mode):
                    continue
                if info.st_nlink > 1:
                    if (info.st_dev, info.st_ino) in seen:
                        continue
                    seen.add((info.st_dev, info.st_ino))
                total += min(info.st_size, info.st_blocks * _BLOCK_BYTES)
    return total


def _opened(name: str, parent: int | None) -> Folder:
    """With its entries. Raises: OSError."""
    folder = Folder(name, os.open(name, _FOLDER, dir_fd=parent))
    try:
        info = os.fstat(folder.fd)
        folder.identity = (info.st_dev, info.st_ino)
        with os.scandir(folder.fd) as entries:
            for entry in entries:
                (folder.pending if entry.is_dir(follow_symlinks=False) else folder.others).append(entry.name)
    except BaseException:
        _close(folder)
        raise
    return folder


def _child(folder: Folder, name: str, on_error: Callable[[OSError], None]) -> Folder | None:
    try:
        return _opened(name, folder.fd)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        folder.others.append(name)
    except OSError as error:
        on_error(error)
    return None


def _come_back(parent: Folder, child: Folder) -> int:
    """A descriptor of the folder that ``child`` was found in. Raises: OSError."""
    if parent.fd == _CLOSED:
        fd = os.open("..", _FOLDER, dir_fd=child.fd)
        info = os.fstat(fd)
        if (info.st_dev, info.st_ino) != parent.identity:
            os.close(fd)
            raise OSError(errno.ESTALE, "moved while it was walked", child.name)
        parent.fd = fd
    return parent.fd


def _close(folder: Folder) -> None:
    if folder.fd != _CLOSED:
        os.close(folder.fd)
        folder.fd = _CLOSED


def _remove(call: Callable[..., None], name: str, fd: int | None, note: Callable[[OSError], None]) -> None:
    try:
        call(name, dir_fd=fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        note(error)
