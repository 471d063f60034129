"""The seam between consensus and the file system.

Everything that journal, snapshots and lock do to the disk goes through ``Files`` (both implementations pass
``tests/contract/test_files.py``), so that the simulation (``tests/simulation/disk.py``) can crash a member before and after each write, sync,
rename and unlink, and lose what was not synced.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from manager.consensus.port import StateLockedError


class AppendFile(Protocol):
    """A file that only grows."""

    def write(self, data: bytes) -> None:
        """Append all of ``data``; durable only after ``sync``. Raises OSError (a part may have been written)."""

    def sync(self) -> None:
        """Make everything written so far durable, the file's size included. Raises OSError."""

    def close(self) -> None: ...


class MarkFile(Protocol):
    """A few bytes, below a sector, that are written over and over and never synced."""

    def write(self, data: bytes) -> None:
        """Replace the content, of the same length each time; a power loss may leave any earlier one. Raises OSError."""

    def close(self) -> None: ...


class Files(Protocol):
    """The file operations consensus needs. Each raises OSError."""

    def make_folder(self, path: Path) -> None:
        """Create ``path`` and its parents, mode 0700, if absent; the new folder's name is durable."""

    def names(self, folder: Path) -> list[str]:
        """Names in ``folder``, sorted."""

    def create(self, path: Path) -> AppendFile:
        """Create a new file, mode 0600. Raises FileExistsError."""

    def open_mark(self, path: Path) -> MarkFile:
        """Open the file for ``MarkFile.write``, as it is; created with mode 0600 if absent."""

    def read(self, path: Path) -> bytes: ...

    def read_chunks(self, path: Path, size_bytes: int) -> Iterator[bytes]:
        """The content in pieces of ``size_bytes`` (the last may be shorter)."""

    def truncate(self, path: Path, size_bytes: int) -> None:
        """Cut the file, durably."""

    def sync_file(self, path: Path) -> None:
        """Make durable what an earlier process wrote to the file."""

    def rename(self, source: Path, target: Path) -> None:
        """Replace ``target`` by ``source``; durable after ``sync_folder``."""

    def unlink(self, path: Path) -> None:
        """Remove; durable after ``sync_folder``. A missing file is no error."""

    def sync_folder(self, path: Path) -> None: ...

    def lock(self, path: Path) -> Callable[[], None]:
        """Hold ``path`` exclusively until the returned function is called. Raises StateLockedError."""


class _OSAppendFile:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def sync(self) -> None:
        os.fdatasync(self._fd)  # writes the size too, because reading the data back needs it (fdatasync(2))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _OSMarkFile:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        os.pwrite(self._fd, data, 0)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class OSFiles:
    """The real file system."""

    def make_folder(self, path: Path) -> None:
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.sync_folder(path.parent)

    def names(self, folder: Path) -> list[str]:
        return sorted(os.listdir(folder))

    def create(self, path: Path) -> AppendFile:
        return _OSAppendFile(path)

    def open_mark(self, path: Path) -> MarkFile:
        return _OSMarkFile(path)

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def read_chunks(self, path: Path, size_bytes: int) -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(size_bytes):
                yield chunk

    def truncate(self, path: Path, size_bytes: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_file(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_folder(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def lock(self, path: Path) -> Callable[[], None]:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise StateLockedError(f"{path.parent}: another process holds this state folder") from None
            raise
        # The file stays: unlinking it would let a third process lock a new file of the same name.
        return lambda: os.close(fd)
