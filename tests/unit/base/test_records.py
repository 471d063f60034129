"""Records that the disk cannot take now: kept, copied, tried again, and never an older one over a later one."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from base import records as records_module
from base.files import write_atomic
from base.records import Records
from base.retrying import Retrier
from tests.waiting import wait_until

NEVER_S = 1000.0


class Disk:
    """Folders that refuse what is written to them."""

    def __init__(self) -> None:
        self.full: set[Path] = set()
        self.tries = 0

    def write(self, path: Path, data: bytes, *, durable: bool = True) -> None:
        self.tries += 1
        if path.parent in self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_atomic(path, data, durable=durable)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(records_module, "write_atomic", disk.write)
    return disk


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    state = tmp_path / "state"
    state.mkdir()
    return state, tmp_path / "run" / "unsaved"


def test_a_record_that_cannot_be_saved_is_saved_when_there_is_room(disk: Disk, folders: tuple[Path, Path]) -> None:
    state, spill = folders
    records, file = Records(spill, first_s=0.01), state / "state.json"
    assert records.keep(file, b"running")
    disk.full = {state}
    assert records.keep(file, b"exited 7")  # the copy outlives us
    assert file.read_bytes() == b"running"
    assert records.unsaved == (1, "[Errno 28] No space left on device")
    disk.full = set()
    wait_until(lambda: file.read_bytes() == b"exited 7", what="the record to be saved")
    wait_until(lambda: records.unsaved == (0, ""), what="nothing to be left")
    assert list(spill.iterdir()) == []
    records.close()


def test_an_orderly_end_saves_what_is_left(disk: Disk, folders: tuple[Path, Path]) -> None:
    state, _ = folders
    records, file = Records(first_s=NEVER_S, max_s=NEVER_S), state / "state.json"
    disk.full = {state}
    assert not records.keep(file, b"exited 7")  # nowhere to put a copy
    assert not records.is_safe(file)
    disk.full = set()
    records.close()
    assert file.read_bytes() == b"exited 7"


def test_a_copy_that_could_not_be_written_is_written_once_there_is_room_for_it(
    disk: Disk, folders: tuple[Path, Path]
) -> None:
    state, spill = folders
    records, file = Records(spill, first_s=0.01), state / "state.json"
    disk.full = {state, spill}
    assert not records.keep(file, b"exited 7")
    disk.full = {state}
    wait_until(lambda: records.is_safe(file), what="the copy to be written")
    assert Records(spill, first_s=NEVER_S, max_s=NEVER_S).read(file) == b"exited 7"
    records.close()


def test_the_next_daemon_reads_what_a_killed_one_could_not_save(disk: Disk, folders: tuple[Path, Path]) -> None:
    state, spill = folders
    file, other = state / "state.json", state / "gone.json"
    killed = Records(spill, first_s=NEVER_S, max_s=NEVER_S)
    killed.keep(file, b"running")
    disk.full = {state}
    killed.keep(file, b"exited 7")
    killed.keep(other, b"of a container that is removed by hand")
    successor = Records(spill, first_s=0.01)
    assert successor.read(file) == b"exited 7"
    successor.tidy()
    assert [copy.read_bytes() for copy in spill.iterdir()] == [b"exited 7"]
    disk.full = set()
    wait_until(lambda: file.read_bytes() == b"exited 7", what="the record to be saved")
    wait_until(lambda: list(spill.iterdir()) == [], what="the copy to go")
    successor.close()


def test_a_copy_that_is_older_than_the_file_does_not_count(disk: Disk, folders: tuple[Path, Path]) -> None:
    state, spill = folders
    file = state / "state.json"
    killed = Records(spill, first_s=NEVER_S, max_s=NEVER_S)
    disk.full = {state}
    killed.keep(file, b"old")
    (copy,) = spill.iterdir()
    write_atomic(file, b"new")  # and killed before the copy went
    os.utime(copy, ns=(1, 1))
    assert Records(spill, first_s=NEVER_S, max_s=NEVER_S).read(file) == b"new"


def test_a_late_try_does_not_bring_an_older_record_back(disk: Disk, folders: tuple[Path, Path]) -> None:
    state, spill = folders
    records, file = Records(spill, first_s=NEVER_S, max_s=NEVER_S), state / "state.json"
    disk.full = {state}
    records.keep(file, b"old")
    disk.full = set()
    records.write(file, b"new")
    records.close()
    assert file.read_bytes() == b"new"
    assert list(spill.iterdir()) == []


def test_a_record_of_something_removed_is_not_saved(disk: Disk, folders: tuple[Path, Path]) -> None:
    state, spill = folders
    records, file = Records(spill, first_s=NEVER_S, max_s=NEVER_S), state / "state.json"
    disk.full = {state}
    records.keep(file, b"old")
    records.drop(file)
    disk.full = set()
    records.close()
    assert not file.exists()
    assert list(spill.iterdir()) == []


def test_what_is_refused_changes_nothing(disk: Disk, folders: tuple[Path, Path]) -> None:
    state, spill = folders
    records, file = Records(spill, first_s=NEVER_S, max_s=NEVER_S), state / "state.json"
    disk.full = {state}
    records.keep(file, b"kept")
    with pytest.raises(OSError, match="No space left"):
        records.write(file, b"asked for")
    disk.full = set()
    records.close()
    assert file.read_bytes() == b"kept"


def test_a_full_disk_is_tried_with_one_record_however_many_wait(disk: Disk, folders: tuple[Path, Path]) -> None:
    state, spill = folders
    records = Records(spill, first_s=NEVER_S, max_s=NEVER_S)
    disk.full = {state}
    for number in range(50):
        records.keep(state / f"{number}.json", b"x")
    before = disk.tries
    records.close()
    assert disk.tries == before + 1


def test_a_retrier_has_a_thread_only_while_something_is_left() -> None:
    left, done = [1], threading.Event()

    def attempt() -> None:
        left.clear()
        done.set()

    retrier = Retrier(attempt, lambda: bool(left), name="test-retrier", first_s=0.01)
    for _ in range(2):
        retrier.wake()
        assert done.wait(10)
        wait_until(lambda: "test-retrier" not in {thread.name for thread in threading.enumerate()}, what="its end")
        left.append(1)
        done.clear()
    retrier.close()
    retrier.wake()
    assert "test-retrier" not in {thread.name for thread in threading.enumerate()}


def test_a_retrier_makes_one_attempt_at_a_time_and_its_end_waits_for_it() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def attempt() -> None:
        begun.set()
        assert go_on.wait(10)
        ended.set()

    retrier = Retrier(attempt, lambda: True, name="test-retrier", first_s=0.01)
    retrier.wake()
    assert begun.wait(10)
    retrier.wake()
    assert [thread.name for thread in threading.enumerate()].count("test-retrier") == 1
    closing = threading.Thread(target=retrier.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    go_on.set()
    closing.join(10)
    assert ended.is_set()


def test_a_retrier_survives_an_attempt_that_raises() -> None:
    tries: list[int] = []

    def attempt() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise LookupError("a defect")

    retrier = Retrier(attempt, lambda: len(tries) < 2, name="test-retrier", first_s=0.01)
    retrier.wake()
    wait_until(lambda: len(tries) == 2, what="a second try")
    retrier.close()
