"""Power loss at every step of what writes a folder, on the real file system.

While ``act`` runs, every call of ``os`` that changes something below the folder is one step, also done on a model that
knows what is durable: a file's bytes after its own sync, a name (made, renamed, removed) after its folder's. Power is
lost before each step in turn, and once after the last; then what the disk may hold is made a folder of, several times a
step, and ``check`` looks at it. The disk keeps of a folder's unsynced changes of names the first few, of a file's
unsynced bytes the first few, some of them as zeros. (``tests/simulation/disk.py`` is the same behind consensus' seam.)
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

RANDOM_OUTCOMES = 6

Keep = Callable[[int, int], int]
"""How much the disk keeps, between the least and the most."""


class PowerLoss(BaseException):
    """The machine is off. Not an Exception: nobody may handle it."""


def lose_power_everywhere(
    folder: Path, *, prepare: Callable[[Path], None], act: Callable[[Path], None], check: Callable[[Path, bool], None]
) -> int:
    """Run ``act`` with power lost at each step; return how many there are.

    Args:
        folder: an empty one to work in.
        prepare: makes what is durable before.
        act: what is looked at; it gets the same path as the others, and writes by way of ``os`` alone.
        check: raises if the folder is neither as before nor, by all means if the second argument says that ``act`` had
            returned, as after.
    """
    before, root = folder / "before", folder / "root"
    before.mkdir()
    prepare(before)
    for crash_at in itertools.count(1):
        _copy(before, root)
        disk = _Disk(root, crash_at)
        with pytest.MonkeyPatch.context() as patch:
            disk.install(patch)
            try:
                act(root)
            except PowerLoss:
                done = False
            else:
                done = True
                disk.nothing_went_past()
        rng = random.Random(crash_at)
        keeps: list[Keep] = [lambda least, _most: least, lambda _least, most: most, *[rng.randint] * RANDOM_OUTCOMES]
        for keep in keeps:
            shutil.rmtree(root)
            _make(disk.folder, root, keep, rng)
            check(root, done)
        if done:
            return crash_at - 1
    raise AssertionError


@dataclass(eq=False)
class _File:
    data: bytearray = field(default_factory=bytearray)
    synced: int = 0


@dataclass(eq=False)
class _Folder:
    names: dict[str, _File | _Folder] = field(default_factory=dict)
    durable: dict[str, _File | _Folder] = field(default_factory=dict)
    pending: list[dict[str, _File | _Folder | None]] = field(default_factory=list)

    def change(self, change: dict[str, _File | _Folder | None]) -> None:
        """All of it at once, as a rename is."""
        self.pending.append(change)
        _apply(self.names, change)


class _Disk:
    """The model of ``root``; its power goes before step ``crash_at``."""

    def __init__(self, root: Path, crash_at: int) -> None:
        self.folder = _scan(root)
        self._root, self._steps_left = root, crash_at
        self._open: dict[int, _File | _Folder] = {}

    def nothing_went_past(self) -> None:
        """Whatever changed did so by way of the model."""
        assert _contents(_scan(self._root)) == _contents(self.folder)

    def _step(self) -> None:
        self._steps_left -= 1
        if self._steps_left <= 0:  # and stays so: what cleans up after an error does not run either
            raise PowerLoss

    def _find(self, path: Any, dir_fd: int | None = None) -> tuple[_Folder, str] | None:
        """Folder and name of a path that is below the root and whose folder exists."""
        base = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) if dir_fd is not None else Path.cwd()
        full = base / os.fsdecode(path)
        if full == self._root or not full.is_relative_to(self._root):
            return None
        *parents, name = full.relative_to(self._root).parts
        folder: _File | _Folder | None = self.folder
        for parent in parents:
            folder = folder.names.get(parent) if isinstance(folder, _Folder) else None
        return (folder, name) if isinstance(folder, _Folder) else None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put the model between the program and ``os``."""
        real = {name: getattr(os, name) for name in ("open", "close", "write", "fsync", "rename", "unlink")}
        rmdir, mkdir = os.rmdir, os.mkdir

        def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            found = self._find(path, dir_fd)
            node = found[0].names.get(found[1]) if found is not None else None
            if found is None and Path(os.fsdecode(path)) == self._root:
                node = self.folder
            if found is not None and node is None and flags & os.O_CREAT:
                self._step()
                node = _File()
                found[0].change({found[1]: node})
            assert not (isinstance(node, _File) and node.data and flags & os.O_TRUNC), "not modelled"
            descriptor: int = real["open"](path, flags, mode, dir_fd=dir_fd)
            if node is not None:
                self._open[descriptor] = node
            return descriptor

        def close(descriptor: int) -> None:
            self._open.pop(descriptor, None)
            real["close"](descriptor)

        def write(descriptor: int, data: Any) -> int:
            node = self._open.get(descriptor)
            if isinstance(node, _File):
                self._step()
            size: int = real["write"](descriptor, data)
            if isinstance(node, _File):
                node.data += bytes(data)[:size]
            return size

        def fsync(descriptor: int) -> None:
            node = self._open.get(descriptor)
            if node is None:
                real["fsync"](descriptor)
                return
            self._step()
            if isinstance(node, _File):
                node.synced = len(node.data)
            else:
                node.durable, node.pending = dict(node.names), []

        def rename(source: Any, target: Any) -> None:
            found, goal = self._find(source), self._find(target)
            if found is not None and goal is not None:
                assert found[0] is goal[0], "not modelled"
                self._step()
                found[0].change({goal[1]: found[0].names[found[1]], found[1]: None})
            real["rename"](source, target)

        def remove(how: Callable[..., None], path: Any, dir_fd: int | None) -> None:
            found = self._find(path, dir_fd)
            if found is not None and found[1] in found[0].names:
                self._step()
                found[0].change({found[1]: None})
            how(path, dir_fd=dir_fd)

        def make_folder(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            found = self._find(path, dir_fd)
            if found is not None and found[1] not in found[0].names:
                self._step()
                found[0].change({found[1]: _Folder()})
            mkdir(path, mode, dir_fd=dir_fd)

        for name, function in (("open", open_), ("close", close), ("write", write), ("rename", rename)):
            patch.setattr(os, name, function)
        patch.setattr(os, "replace", rename)
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "fdatasync", fsync)
        patch.setattr(os, "unlink", lambda path, *, dir_fd=None: remove(real["unlink"], path, dir_fd))
        patch.setattr(os, "rmdir", lambda path, *, dir_fd=None: remove(rmdir, path, dir_fd))
        patch.setattr(os, "mkdir", make_folder)


def _apply(names: dict[str, _File | _Folder], change: dict[str, _File | _Folder | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _scan(path: Path) -> _Folder:
    """What lies there, as durable."""
    folder = _Folder()
    for entry in path.iterdir():
        if entry.is_dir():
            folder.names[entry.name] = _scan(entry)
        else:
            data = bytearray(entry.read_bytes())
            folder.names[entry.name] = _File(data, len(data))
    folder.durable = dict(folder.names)
    return folder


def _contents(folder: _Folder) -> dict[str, Any]:
    return {
        name: _contents(node) if isinstance(node, _Folder) else bytes(node.data) for name, node in folder.names.items()
    }


def _make(folder: _Folder, path: Path, keep: Keep, rng: random.Random) -> None:
    """What of the model a disk may hold, as real files."""
    names = dict(folder.durable)
    for change in folder.pending[: keep(0, len(folder.pending))]:
        _apply(names, change)
    path.mkdir()
    for name, node in names.items():
        if isinstance(node, _Folder):
            _make(node, path / name, keep, rng)
            continue
        data = node.data[: keep(node.synced, len(node.data))]
        lost = rng.randint(node.synced, len(data))
        if node.synced < len(data) < len(node.data):
            data[lost:] = bytes(len(data) - lost)
        (path / name).write_bytes(data)


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
