"""The writer of small files: one content or the other, whoever else writes, and nothing left behind."""

from __future__ import annotations

import fcntl
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Timer

import pytest

from base.files import lock_file, make_public_folder, remove_leftovers, write_atomic


def test_it_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for data in (b"old", b"", b"new" * 100_000):
        write_atomic(path, data, durable=True)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_threads_that_write_one_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have written before either renames: with one temporary name they would mix, or one rename would fail."""
    path, both_written = tmp_path / "x.json", Barrier(2, timeout=60)
    close = os.close

    def close_together(descriptor: int) -> None:
        close(descriptor)
        both_written.wait()

    contents = [b"a" * 10, b"b" * 20]
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as threads:
        patch.setattr(os, "close", close_together)
        list(threads.map(lambda data: write_atomic(path, data, durable=False), contents))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_what_fails_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, b"old", durable=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path if call == "replace" else os, call, full)
        with pytest.raises(OSError, match="No space left"):
            write_atomic(path, b"new", durable=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_and_folder_are_synced_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = list[str]()
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> None:
        steps.append("rename")
        replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_atomic(tmp_path / "x", b"1", durable=True)
    write_atomic(tmp_path / "x", b"2", durable=False)
    assert steps == ["file", "rename", "folder", "rename"]


def test_what_a_crash_left_is_removed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PowerLoss(BaseException):
        pass

    write_atomic(tmp_path / "x.json", b"old", durable=True)
    (tmp_path / ".kept").write_bytes(b"")
    with monkeypatch.context() as patch:

        def lost(*_: object, **__: object) -> None:
            raise PowerLoss

        def crash(*_: object) -> None:
            patch.setattr(Path, "unlink", lost)  # nothing is tidied any more
            raise PowerLoss

        patch.setattr(Path, "replace", crash)
        with pytest.raises(PowerLoss):
            write_atomic(tmp_path / "x.json", b"new", durable=True)
    remove_leftovers(tmp_path, "y.json")
    assert len(list(tmp_path.iterdir())) == 3
    remove_leftovers(tmp_path, "x.json")
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", ".kept"}


def test_a_lock_is_had_once_a_look_at_it_is_over_and_not_from_who_keeps_it(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("ab") as theirs, (tmp_path / "lock").open("ab") as ours:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            lock_file(ours, patience_s=0.01)
        look = Timer(0.05, fcntl.flock, (theirs, fcntl.LOCK_UN))
        look.start()
        lock_file(ours, patience_s=60)
        look.join()


def test_a_public_folder_is_public_whatever_the_umask_and_one_that_exists_stays(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        (tmp_path / "own").mkdir()
        make_public_folder(tmp_path / "own" / "a" / "b")
        make_public_folder(tmp_path / "own")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / "own" / name).stat().st_mode) for name in ("", "a", "a/b")]
    assert modes == [0o700, 0o755, 0o755]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_public_folder(tmp_path / "file")
