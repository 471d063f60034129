"""Layers are unpacked by a process of its own, under limits: whatever becomes of it, the daemon has one clear error."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from base.threads import AbortedError
from runtime.images import DigestMismatchError, ImageStore, LayerError, snapshots, unpacking
from runtime.images.snapshots import Snapshots
from runtime.images.unpacking import Unpacker, wait_until_left
from runtime.unpack.process import FILES_MAX, MEMORY_BYTES_MAX
from tests.support_images import busybox_archive, in_chunks, make_tar, sha256
from tests.unit.images.test_bounds import greedy_xz
from tests.waiting import until

pytestmark = pytest.mark.root


@pytest.fixture
def unpacker() -> Iterator[Unpacker]:
    unpacker = Unpacker()
    yield unpacker
    unpacker.close()


class Unpacking:
    """A layer that comes through a pipe, byte by byte as the test wants it, and what becomes of it."""

    def __init__(self, unpacker: Unpacker, work: Path) -> None:
        work.mkdir()
        self.work, self.abort = work, threading.Event()
        self.blob, self.feed = os.pipe()
        self.error: BaseException | None = None
        self._unpacker = unpacker
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._unpacker.unpack(self.blob, self.work, [], self.abort)
        except BaseException as error:
            self.error = error

    async def child(self) -> int:
        """The process that unpacks."""
        found = list[int]()

        def is_there() -> bool:
            server = self._unpacker.pid
            found[:] = map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split()) if server else []
            return bool(found) and (self.work / "fs").exists()

        await until(is_there, "a child unpacks")
        return found[0]

    def end(self) -> BaseException | None:
        self._thread.join()
        os.close(self.blob)
        os.close(self.feed)
        return self.error


async def test_a_layer_is_unpacked_under_limits_and_ends_when_nobody_waits(tmp_path: Path, unpacker: Unpacker) -> None:
    running = Unpacking(unpacker, tmp_path / "work")
    child = await running.child()
    limits = Path(f"/proc/{child}/limits").read_text()
    words = {line[:26].strip(): line[26:].split() for line in limits.splitlines()[1:]}
    assert words["Max address space"][1] == str(MEMORY_BYTES_MAX)
    assert words["Max open files"][1] == str(FILES_MAX)
    assert words["Max core file size"][1] == "0"
    assert words["Max cpu time"][1] != "unlimited"
    with pytest.raises(BlockingIOError), unpacking.locked(running.work):
        pass
    running.abort.set()
    assert isinstance(running.end(), AbortedError)
    assert not Path(f"/proc/{child}").exists()
    wait_until_left(running.work)


async def test_a_child_that_dies_is_one_layer_that_failed(tmp_path: Path, unpacker: Unpacker) -> None:
    running = Unpacking(unpacker, tmp_path / "work")
    os.kill(await running.child(), signal.SIGKILL)
    error = running.end()
    assert isinstance(error, LayerError)
    assert "Killed" in str(error)
    assert unpack(unpacker, tmp_path / "next") == 1


async def test_the_process_comes_back_when_it_has_died(tmp_path: Path, unpacker: Unpacker) -> None:
    assert unpack(unpacker, tmp_path / "a") == 1
    os.kill(unpacker.pid, signal.SIGKILL)
    assert unpack(unpacker, tmp_path / "b") == 1


async def test_the_process_goes_when_it_has_nothing_to_do(
    tmp_path: Path, unpacker: Unpacker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "IDLE_S", 0.01)
    assert unpack(unpacker, tmp_path / "a") == 1

    def is_gone() -> bool:
        return unpacker.pid == 0

    await until(is_gone, "the process has gone")
    assert unpack(unpacker, tmp_path / "b") == 1


def unpack(unpacker: Unpacker, work: Path) -> int:
    work.mkdir()
    blob = work.with_suffix(".tar")
    blob.write_bytes(make_tar([("f", b"x")]))
    with blob.open("rb") as file:
        return unpacker.unpack(file.fileno(), work, []).size_bytes


async def test_hostile_and_wrong_layers_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    found = Snapshots(tmp_path)
    found.open()
    try:
        for data, diff_id, error in (
            (greedy_xz(), "", LayerError),
            (make_tar([("../out", b"")]), "", LayerError),
            (make_tar([("f", b"")]), sha256(b"other"), DigestMismatchError),
        ):
            (tmp_path / "blob").write_bytes(data)
            with (tmp_path / "blob").open("rb") as file, pytest.raises(error):
                await asyncio.to_thread(found.unpack, [], diff_id, file.fileno())
            assert list((tmp_path / "tmp").iterdir()) == []
            assert found.chains() == []
    finally:
        found.close()


async def test_an_import_that_wants_4_gb_is_refused(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    await store.open()
    try:
        with pytest.raises(LayerError, match=r"(?i)memory"):
            await store.import_tar(in_chunks(greedy_xz()))
        assert await store.load(in_chunks(busybox_archive())) == ["busybox:latest"]
    finally:
        await store.close()


async def test_what_a_start_cannot_clean_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Snapshots(tmp_path)
    first.open()
    first.close()
    stuck = "layers/fedcba9876543210fedcba98"
    for name in ("tmp/left", "tmp/other", "layers/0123456789abcdef01234567", stuck):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    removed, tried = list[Path](), list[Path]()

    def refusing(path: Path) -> None:
        if path.name == "left":
            tried.append(path)
            raise PermissionError(1, "Operation not permitted", str(path))
        removed.append(path)

    rename = Path.rename

    def busy(path: Path, target: Path) -> Path:
        if path.name == Path(stuck).name:  # somebody mounted something there
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(path, target)

    monkeypatch.setattr(snapshots, "remove_tree", refusing)
    monkeypatch.setattr(Path, "rename", busy)
    second = Snapshots(tmp_path)
    second.open()
    second.close()
    assert tried
    assert len(removed) >= 2
    assert (tmp_path / "tmp/left/file").exists()
    assert not (tmp_path / "layers/0123456789abcdef01234567").exists()
    assert (tmp_path / stuck / "file").exists()
