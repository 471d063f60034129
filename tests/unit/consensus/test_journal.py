"""The journal on the simulated and the real disk: recovery, torn tails, damage, group commit, full disks."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest

from manager.consensus.files import OSFiles
from manager.consensus.journal import MAGIC, Journal
from manager.consensus.port import CorruptStateError, Member, NodeID, StateLockedError
from manager.consensus.recovery import force_new_group, found_group, open_state
from manager.consensus.sealed import HEADER_SIZE_BYTES, KeyRing, SealedWriter, read_sealed
from manager.consensus.snapshots import SnapshotHead
from tests.simulation.disk import Crash, Fault, SimDisk
from tests.unit.consensus.rig import configuration

KEYS = KeyRing(b"j" * 32)
FOLDER = Path("/journal")
A = NodeID("a")


def journal(disk: SimDisk, **arguments: int) -> Journal:
    return Journal(disk, FOLDER, KEYS, "a", **arguments)


def filled(disk: SimDisk, count: int = 5, **arguments: int) -> Journal:
    log = journal(disk, **arguments)
    for index in range(1, count + 1):
        log.add(b"\x00entry %d" % index, index, 1)
        log.sync()
    return log


def segments(disk: SimDisk) -> list[Path]:
    return [FOLDER / name for name in disk.names(FOLDER)]


def test_what_was_synced_comes_back() -> None:
    disk = SimDisk()
    log = filled(disk)
    log.setCurrentTerm(7, "b")
    log.cut_from(4)
    log.add(b"\x00other", 4, 7)
    log.sync()
    disk.lose_power(random.Random(1))
    back = journal(disk)
    assert back[:] == log[:]
    assert (back.getCurrentTerm(), back.getVotedForNodeId()) == (7, "b")


def test_one_sync_covers_everything_since_the_last() -> None:
    disk = SimDisk()
    log = journal(disk)
    before = log.syncs
    for index in range(1, 100):
        log.add(b"\x00x", index, 1)
    log.setCurrentTerm(2, None)
    log.sync()
    log.sync()
    assert log.syncs == before + 1


def test_a_torn_tail_is_cut_whatever_is_left_of_it() -> None:
    for seed in range(200):
        disk = SimDisk()
        log = filled(disk, 3)
        log.add(b"\x00" + random.Random(seed).randbytes(3000), 4, 1)
        disk.fault = Fault(2, "crash-before")
        with pytest.raises(Crash):
            log.sync()
        disk.lose_power(random.Random(seed))
        back = journal(disk)
        assert len(back) in (3, 4)
        back.add(b"\x00next", len(back) + 1, 2)
        back.sync()
        disk.lose_power(random.Random(seed))
        assert journal(disk)[-1][0] == b"\x00next"


def test_every_flipped_byte_is_refused_with_file_and_offset() -> None:
    disk = SimDisk()
    filled(disk, 3)
    path = segments(disk)[0]
    for offset in range(len(disk.read(path))):
        disk.flip(path, offset)
        with pytest.raises(CorruptStateError, match=r"/journal/journal-0000000001: offset \d+"):
            read_sealed(disk, path, KEYS, MAGIC)
        disk.flip(path, offset)
    assert len(read_sealed(disk, path, KEYS, MAGIC).records) == 4


def test_a_missing_segment_is_refused() -> None:
    disk = SimDisk()
    filled(disk, 60, segment_size_bytes=600)
    disk.unlink(segments(disk)[2])
    with pytest.raises(CorruptStateError, match="segment 3 is missing"):
        journal(disk)


def test_another_nodes_journal_is_refused() -> None:
    disk = SimDisk()
    filled(disk)
    with pytest.raises(CorruptStateError, match="belongs to node a, not b"):
        Journal(disk, FOLDER, KEYS, "b")


def test_a_wrong_key_says_so_and_nothing_lies_in_clear() -> None:
    disk = SimDisk()
    filled(disk)
    assert b"entry" not in b"".join(disk.read(path) for path in segments(disk))
    with pytest.raises(CorruptStateError, match="a key this manager does not have"):
        Journal(disk, FOLDER, KeyRing(b"w" * 32), "a")


def test_keys_rotate_and_the_old_one_still_reads() -> None:
    disk = SimDisk()
    log = filled(disk)
    log.rekey(KeyRing(b"n" * 32, [b"j" * 32]))
    log.add(b"\x00new", 6, 1)
    log.sync()
    assert len(Journal(disk, FOLDER, KeyRing(b"n" * 32, [b"j" * 32]), "a")) == 6


def test_no_two_files_share_a_key_stream() -> None:
    disk = SimDisk()
    for _ in range(3):
        journal(disk).add(b"\x00same", 1, 1)
        one, two = SealedWriter(disk, Path(f"/x{random.random()}"), KEYS, MAGIC), None
        two = SealedWriter(disk, Path(f"/y{random.random()}"), KEYS, MAGIC)
        one.append(b"same")
        two.append(b"same")
        assert disk.read(one.path)[HEADER_SIZE_BYTES + 16 :] != disk.read(two.path)[HEADER_SIZE_BYTES + 16 :]


def test_pickle_in_the_journal_is_refused() -> None:
    disk = SimDisk()
    folder = disk.create(FOLDER / "journal-0000000001")
    folder.write(pickle.dumps({"index": 1}, 2) + bytes(200))
    with pytest.raises(CorruptStateError):
        journal(disk)
    disk = SimDisk()
    writer = SealedWriter(disk, FOLDER / "journal-0000000001", KEYS, MAGIC)  # even under the right key
    writer.append(pickle.dumps([("c", "a", 1)], 2))
    with pytest.raises(CorruptStateError, match="record 0"):
        journal(disk)


def test_compaction_deletes_whole_segments_and_survives() -> None:
    disk = SimDisk()
    log = filled(disk, 100, segment_size_bytes=600)
    many = len(segments(disk))
    log.compact(90)
    assert len(segments(disk)) < many / 3
    back = journal(disk)
    assert back.first_index <= 90
    assert back.last_index == 100


def test_restarts_leave_no_trail_of_segments() -> None:
    disk = SimDisk()
    filled(disk)
    for _ in range(10):
        journal(disk)
    assert len(segments(disk)) == 2


def test_a_full_disk_fails_for_good_and_loses_nothing_synced() -> None:
    disk = SimDisk()
    log = filled(disk)
    log.add(b"\x00lost", 6, 1)
    disk.fault = Fault(1, "full")
    with pytest.raises(OSError, match="No space left"):
        log.sync()
    with pytest.raises(OSError, match="No space left"):
        log.sync()
    with pytest.raises(OSError, match="No space left"):
        log.add(b"\x00more", 7, 1)
    assert len(journal(disk)) == 5


def test_a_crash_at_any_step_of_rotation_and_compaction_loses_nothing() -> None:
    for kind in ("crash-before", "crash-after"):
        for step in range(1, 40):
            disk = SimDisk()
            log = filled(disk, 20, segment_size_bytes=400)
            synced = 20
            disk.fault = Fault(step, kind)
            try:
                for index in range(21, 40):
                    log.add(b"\x00entry %d" % index, index, 1)
                    log.sync()
                    synced = index
                    log.compact(index - 5)
            except Crash:
                pass
            disk.lose_power(random.Random(step))
            back = journal(disk)
            assert back.last_index >= synced
            assert back.first_index <= max(1, synced - 4)


# The state folder as a whole


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    state = open_state(OSFiles(), tmp_path / "raft", KEYS, A)
    with pytest.raises(StateLockedError, match="another process holds this state folder"):
        open_state(OSFiles(), tmp_path / "raft", KEYS, A)
    state.close()
    open_state(OSFiles(), tmp_path / "raft", KEYS, A).close()


def test_a_real_disk_takes_it_too(tmp_path: Path) -> None:
    folder = tmp_path / "raft"
    state = open_state(OSFiles(), folder, KEYS, A)
    assert state.fresh
    found_group(state, Member(A, "a:1"))
    state.store.write(SnapshotHead(2, 0, configuration(A), ((2, b"i" * 16),)), [b"chunk"] * 3)
    state.close()
    back = open_state(OSFiles(), folder, KEYS, A)
    assert not back.fresh
    assert back.head is not None
    assert back.head.command_ids == ((2, b"i" * 16),)
    assert list(back.store.open(2)[1]) == [b"chunk"] * 3
    assert back.configurations.current.voters == {A}
    back.close()
    assert (folder.stat().st_mode & 0o777) == 0o700
    assert all((path.stat().st_mode & 0o077) == 0 for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("part", ["snapshot", "journal"])
def test_half_of_the_state_is_refused_rather_than_started_empty(part: str) -> None:
    disk, folder = SimDisk(), Path("/state")
    state = open_state(disk, folder, KEYS, A)
    found_group(state, Member(A, "a:1"))
    for index in range(3, 30):
        state.journal.add(b"\x00x", index, 1)
    state.journal.sync()
    state.store.write(SnapshotHead(20, 1, configuration(A), ()), [b"chunk"])
    state.journal.reset(20, 1)
    state.close()
    where = folder / ("snapshots" if part == "snapshot" else "journal")
    for name in disk.names(where):
        disk.unlink(where / name)
    with pytest.raises(CorruptStateError, match=str(where)):
        open_state(disk, folder, KEYS, A)


def test_a_damaged_snapshot_is_refused() -> None:
    disk, folder = SimDisk(), Path("/state")
    state = open_state(disk, folder, KEYS, A)
    state.store.write(SnapshotHead(1, 0, configuration(A), ()), [b"chunk"])
    state.close()
    path = folder / "snapshots" / disk.names(folder / "snapshots")[0]
    for offset in range(len(disk.read(path))):
        disk.flip(path, offset)
        with pytest.raises(CorruptStateError):
            open_state(disk, folder, KEYS, A)
        disk.flip(path, offset)
    open_state(disk, folder, KEYS, A).close()


def test_force_new_cluster_keeps_state_and_drops_the_others() -> None:
    disk, folder = SimDisk(), Path("/state")
    state = open_state(disk, folder, KEYS, A)
    found_group(state, Member(A, "a:1"))
    old = state.configurations.current
    state.configurations.add(3, old.with_member(Member(NodeID("b"), "b:1")))
    state.journal.add(b"\x02" + state.configurations.current.encode(), 3, 1)
    state.journal.add(b"\x00data", 4, 1)
    force_new_group(state, Member(A, "elsewhere:2"))
    state.close()
    back = open_state(disk, folder, KEYS, A)
    assert back.journal.term_at(4) == 1
    assert back.journal.getCurrentTerm() == 2
    assert back.configurations.current.members == (Member(A, "elsewhere:2"),)
    assert back.configurations.current.group_id != old.group_id
    assert back.configurations.current.ancestors == (old.group_id,)


def test_who_forces_a_new_cluster_decides_against_the_one_that_was_forced_before() -> None:
    disk, folder = SimDisk(), Path("/state")
    state = open_state(disk, folder, KEYS, A)
    found_group(state, Member(A, "a:1"))
    old = state.configurations.current
    state.journal.note_superseded("theirs")
    state.journal.sync()
    state.close()
    state = open_state(disk, folder, KEYS, A)
    assert state.journal.superseded_by == "theirs"
    force_new_group(state, Member(A, "a:1"))
    state.close()
    back = open_state(disk, folder, KEYS, A)
    assert back.journal.superseded_by == ""
    assert back.configurations.current.ancestors == (old.group_id, "theirs")


def test_an_admission_is_kept_when_the_segments_before_are_gone() -> None:
    disk, folder = SimDisk(), Path("/state")
    state = open_state(disk, folder, KEYS, A)
    state.journal.note_admission("group", 7)
    state.journal.sync()
    for _ in range(3):
        state.close()
        state = open_state(disk, folder, KEYS, A)
    assert state.configurations.is_history
    assert state.configurations.current.group_id == "group"
