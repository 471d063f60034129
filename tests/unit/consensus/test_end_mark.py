"""A journal that lost its end is refused, wherever it was cut: a crash leaves none of these behind."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from manager.consensus.files import OSFiles
from manager.consensus.journal import Journal
from manager.consensus.port import CorruptStateError
from manager.consensus.sealed import KeyRing
from tests.simulation.disk import Crash, Fault, SimDisk

KEYS = KeyRing(b"j" * 32)
FOLDER = Path("/raft/journal")
MARK = Path("/raft/journal.end")


def filled(disk: SimDisk, count: int = 5, *, segment_size_bytes: int = 1 << 20) -> Journal:
    log = Journal(disk, FOLDER, KEYS, "a", segment_size_bytes=segment_size_bytes)
    for index in range(len(log) + 1, len(log) + 1 + count):
        log.add(b"\x00entry %d" % index, index, 1)
        log.sync()
    return log


def newest(disk: SimDisk) -> Path:
    return FOLDER / disk.names(FOLDER)[-1]


def test_an_end_that_was_cut_off_is_refused_wherever_it_was_cut() -> None:
    disk = SimDisk()
    filled(disk)
    path = newest(disk)
    whole = disk.read(path)
    for size in range(len(whole)):
        disk.truncate(path, size)
        with pytest.raises(
            CorruptStateError, match=r"/raft/journal/journal-0000000001: ends at \d+, but \d+ bytes were"
        ):
            Journal(disk, FOLDER, KEYS, "a")
        assert disk.names(FOLDER) == [path.name], "what is left stays for a person to look at"
        assert disk.read(path) == whole[:size]
        restore(disk, path, whole)
    assert len(Journal(disk, FOLDER, KEYS, "a")) == 5


def restore(disk: SimDisk, path: Path, content: bytes) -> None:
    disk.unlink(path)
    file = disk.create(path)
    file.write(content)
    file.sync()


def test_an_end_of_zeros_is_refused() -> None:
    disk = SimDisk()
    log = filled(disk)
    log.add(bytes(1) + random.Random(1).randbytes(3000), 6, 1)
    log.sync()
    path = newest(disk)
    whole = disk.read(path)
    restore(disk, path, whole[:-1500] + bytes(1500))
    with pytest.raises(CorruptStateError, match="ends at"):
        Journal(disk, FOLDER, KEYS, "a")


@pytest.mark.parametrize("left", [0, 1, 3])
def test_segments_that_are_missing_at_the_end_are_refused(left: int) -> None:
    disk = SimDisk()
    filled(disk, 60, segment_size_bytes=600)
    for name in disk.names(FOLDER)[left:]:
        disk.unlink(FOLDER / name)
    with pytest.raises(CorruptStateError, match=r"/raft/journal: segment \d+ is missing, which was on the disk"):
        Journal(disk, FOLDER, KEYS, "a")


@pytest.mark.parametrize("mark", [b"", b"nonsense", bytes(24)], ids=["empty", "short", "zeros"])
def test_a_mark_that_says_nothing_costs_nothing(mark: bytes) -> None:
    disk = SimDisk()
    filled(disk)
    restore(disk, MARK, mark)
    assert len(Journal(disk, FOLDER, KEYS, "a")) == 5


def test_a_journal_without_a_mark_is_taken_and_gets_one() -> None:
    disk = SimDisk()
    filled(disk)
    disk.unlink(MARK)
    filled(disk, 1)
    disk.truncate(newest(disk), len(disk.read(newest(disk))) - 1)
    with pytest.raises(CorruptStateError, match="ends at"):
        Journal(disk, FOLDER, KEYS, "a")


def test_no_power_loss_makes_the_mark_say_too_much() -> None:
    """Whatever of journal and mark the disk has: all that was synced comes back, and nothing is refused."""
    for seed in range(300):
        rng, disk = random.Random(seed), SimDisk()
        kept = 0
        for _ in range(4):
            disk.fault = Fault(rng.randrange(1, 60), rng.choice(["crash-before", "crash-after"]))
            try:
                log = filled(disk, 0, segment_size_bytes=500)
                assert len(log) == 0 or log.last_index >= kept
                for index in range(log.last_index + 1 if len(log) else 1, 99):
                    log.add(b"\x00" + rng.randbytes(rng.randrange(200)), index, 1)
                    log.sync()
                    kept = index
                    log.compact(index - 3)
            except Crash:
                pass
            disk.lose_power(rng)
        back = filled(disk, 0)
        assert kept == 0 or back.last_index >= kept


def test_a_full_disk_under_the_mark_alone_stops_nobody() -> None:
    disk = SimDisk()
    log = filled(disk)
    log.add(b"\x00x", 6, 1)
    disk.fault = Fault(3, "full")  # the record, its sync, the mark
    log.sync()
    assert disk.fault is None
    assert len(Journal(disk, FOLDER, KEYS, "a")) == 6


def test_the_real_disk_tells_it_too(tmp_path: Path) -> None:
    log = Journal(OSFiles(), tmp_path / "journal", KEYS, "a")
    log.add(b"\x00entry", 1, 1)
    log.sync()
    log.close()
    path = tmp_path / "journal" / "journal-0000000001"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorruptStateError, match=f"{path}: ends at"):
        Journal(OSFiles(), tmp_path / "journal", KEYS, "a")
