"""A disk in memory that loses what was not synced, and crashes its owner before or after any chosen operation."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from manager.consensus.files import AppendFile, MarkFile
from manager.consensus.port import StateLockedError
from manager.consensus.sealed import SECTOR_SIZE_BYTES


class Crash(BaseException):
    """Power is lost at this instant. Not an Exception: nothing in the member may catch it."""


@dataclass(slots=True)
class Fault:
    """What happens at the ``step``-th operation from now on."""

    step: int
    kind: str  # "crash-before", "crash-after", "full"


@dataclass(slots=True, eq=False)
class _Inode:
    data: bytearray = field(default_factory=bytearray)
    synced: int = 0
    earlier: list[bytes] = field(default_factory=list)  # of a mark: what the disk may have of it


class SimDisk:
    """Implements ``manager.consensus.files.Files``.

    Names and contents become durable separately: a file's bytes with its ``sync``, a name (created,
    renamed, removed) with ``sync_folder``. A crash keeps a prefix of a folder's unsynced changes of
    names, and of unsynced bytes any sectors, the others reading as zeros or cut off; of a mark any one of the last.
    """

    def __init__(self) -> None:
        self._names: dict[Path, _Inode] = {}
        self._durable: dict[Path, dict[Path, _Inode]] = {}
        self._changes: dict[Path, list[tuple[Path, _Inode | None]]] = {}
        self._folders: dict[Path, None] = {}
        self._locked = False
        self.operations = 0
        self.fault: Fault | None = None

    def step(self, operate: Callable[[], None]) -> None:
        """Run one operation, with the fault that is due."""
        self.operations += 1
        due = False
        if self.fault is not None:
            self.fault.step -= 1
            due = self.fault.step <= 0
        kind = self.fault.kind if self.fault is not None and due else ""
        if due:
            self.fault = None
        if kind == "crash-before":
            raise Crash
        if kind == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        operate()
        if kind == "crash-after":
            raise Crash

    def lose_power(self, rng: random.Random) -> None:
        """What was not durable is lost, wholly or in part."""
        self._locked = False
        self.fault = None
        for folder in self._folders:
            names = dict(self._durable.get(folder, {}))
            changes = self._changes.pop(folder, [])
            for path, inode in changes[: rng.randint(0, len(changes))]:
                if inode is None:
                    names.pop(path, None)
                else:
                    names[path] = inode
            for path in [path for path in self._names if path.parent == folder]:
                del self._names[path]
            self._names.update(names)
            self._durable[folder] = dict(names)
        for inode in dict.fromkeys(self._names.values()):
            self._lose_bytes(inode, rng)

    @staticmethod
    def _lose_bytes(inode: _Inode, rng: random.Random) -> None:
        if inode.earlier:
            inode.data = bytearray(rng.choice(inode.earlier))
            inode.earlier = [bytes(inode.data)]
            return
        if inode.synced < len(inode.data):
            size = rng.randint(inode.synced, len(inode.data))
            del inode.data[size:]
            position = inode.synced
            while position < size:
                end = min(size, (position // SECTOR_SIZE_BYTES + 1) * SECTOR_SIZE_BYTES)
                if rng.random() < 0.3:
                    inode.data[position:end] = bytes(end - position)
                position = end
        inode.synced = len(inode.data)

    # Files

    def make_folder(self, path: Path) -> None:
        self._folders[path] = None

    def names(self, folder: Path) -> list[str]:
        if folder not in self._folders:
            raise FileNotFoundError(folder)
        files = {path.name for path in self._names if path.parent == folder}
        return sorted(files | {path.name for path in self._folders if path.parent == folder})

    def create(self, path: Path) -> AppendFile:
        if path in self._names:
            raise FileExistsError(path)
        inode = _Inode()
        self.step(lambda: self._set(path, inode))
        return _SimFile(self, inode)

    def open_mark(self, path: Path) -> MarkFile:
        if path not in self._names:
            inode = _Inode(earlier=[b""])
            self.step(lambda: self._set(path, inode))
        return _SimMark(self, self._at(path))

    def read(self, path: Path) -> bytes:
        return bytes(self._at(path).data)

    def read_chunks(self, path: Path, size_bytes: int) -> Iterator[bytes]:
        data = self.read(path)
        for start in range(0, len(data), size_bytes):
            yield data[start : start + size_bytes]

    def truncate(self, path: Path, size_bytes: int) -> None:
        def cut() -> None:
            inode = self._at(path)
            del inode.data[size_bytes:]
            inode.synced = min(inode.synced, size_bytes)

        self.step(cut)

    def sync_file(self, path: Path) -> None:
        _SimFile(self, self._at(path)).sync()

    def rename(self, source: Path, target: Path) -> None:
        def move() -> None:
            inode = self._at(source)
            self._set(target, inode)
            self._set(source, None)

        self.step(move)

    def unlink(self, path: Path) -> None:
        if path in self._names:
            self.step(lambda: self._set(path, None))

    def sync_folder(self, path: Path) -> None:
        def sync() -> None:
            self._changes.pop(path, None)
            self._durable[path] = {name: inode for name, inode in self._names.items() if name.parent == path}

        self.step(sync)

    def lock(self, path: Path) -> Callable[[], None]:
        if self._locked:
            raise StateLockedError(f"{path.parent}: another process holds this state folder")
        self._locked = True

        def unlock() -> None:
            self._locked = False

        return unlock

    def flip(self, path: Path, offset: int, mask: int = 0x10) -> None:
        """Damage one byte."""
        self._names[path].data[offset] ^= mask

    def _at(self, path: Path) -> _Inode:
        if path not in self._names:
            raise FileNotFoundError(path)
        return self._names[path]

    def _set(self, path: Path, inode: _Inode | None) -> None:
        if inode is None:
            self._names.pop(path, None)
        else:
            self._names[path] = inode
        self._changes.setdefault(path.parent, []).append((path, inode))


class _SimFile:
    def __init__(self, disk: SimDisk, inode: _Inode) -> None:
        self._disk, self._inode = disk, inode

    def write(self, data: bytes) -> None:
        self._disk.step(lambda: self._inode.data.extend(data))

    def sync(self) -> None:
        def sync() -> None:
            self._inode.synced = len(self._inode.data)

        self._disk.step(sync)

    def close(self) -> None:
        pass


class _SimMark:
    def __init__(self, disk: SimDisk, inode: _Inode) -> None:
        self._disk, self._inode = disk, inode

    def write(self, data: bytes) -> None:
        def write() -> None:
            self._inode.data[:] = data
            self._inode.earlier = [*self._inode.earlier[-7:], data]

        self._disk.step(write)

    def close(self) -> None:
        pass
