"""When a snapshot is due and what of the log stays behind it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.consensus import thread
from manager.consensus.compaction import ENTRY_WEIGHT_BYTES, STATE_PER_LOG_MAX, LogGrowth, is_due, log_start
from manager.consensus.settings import SnapshotPolicy

MIB = 1024 * 1024
POLICY = SnapshotPolicy()
FLOOR = POLICY.log_bytes_min


def due(since: LogGrowth, state_bytes: int, policy: SnapshotPolicy = POLICY) -> bool:
    return is_due(policy, since, state_bytes=state_bytes, failed=None)


def test_few_heavy_entries_are_as_much_as_many_light_ones() -> None:
    """200 objects an entry: 10 000 of these were 2 000 000 objects to replay."""
    assert due(LogGrowth(entries=110, size_bytes=110 * 40_000), state_bytes=100_000)
    assert not due(LogGrowth(entries=90, size_bytes=90 * 40_000), state_bytes=100_000)


def test_a_small_state_is_written_after_the_interval_exactly() -> None:
    policy = SnapshotPolicy(interval_entries=100)
    assert not due(LogGrowth(99, 99 * 50), state_bytes=MIB, policy=policy)
    assert due(LogGrowth(100, 100 * 50), state_bytes=MIB, policy=policy)


def test_a_large_state_is_not_written_for_a_few_entries() -> None:
    policy = SnapshotPolicy(interval_entries=100)
    assert not due(LogGrowth(100, 100 * 50), state_bytes=200 * MIB, policy=policy)
    assert not due(LogGrowth(5_000, 50 * MIB), state_bytes=200 * MIB, policy=policy)
    assert due(LogGrowth(5_000, 100 * MIB), state_bytes=200 * MIB, policy=policy)


def test_a_log_as_heavy_as_the_state_is_reason_enough() -> None:
    assert not due(LogGrowth(1000, 99 * MIB), state_bytes=100 * MIB)
    assert due(LogGrowth(1000, 100 * MIB), state_bytes=100 * MIB)


def test_nothing_new_is_no_reason() -> None:
    assert not due(LogGrowth(), state_bytes=0, policy=SnapshotPolicy(log_bytes_min=0))


def test_after_a_failure_the_log_grows_by_a_tenth_first() -> None:
    failed = LogGrowth(110, 4 * MIB)
    assert not is_due(POLICY, LogGrowth(111, 4 * MIB), state_bytes=0, failed=failed)
    assert is_due(POLICY, LogGrowth(120, 5 * MIB), state_bytes=0, failed=failed)


ENTRIES = st.lists(st.integers(1, 1_500_000), min_size=1, max_size=400)


@given(entries=ENTRIES, interval=st.sampled_from([1, 50, 10_000]), state=st.integers(0, 60 * MIB))
def test_snapshots_are_a_bounded_share_and_the_replay_a_bounded_multiple(
    entries: list[int], interval: int, state: int
) -> None:
    policy, since, written, taken = SnapshotPolicy(interval_entries=interval), LogGrowth(), 0, 0
    for size_bytes in entries:
        since = since.and_more(1, size_bytes)
        written += size_bytes + ENTRY_WEIGHT_BYTES
        if due(since, state, policy):
            since = LogGrowth()
            taken += state if state > FLOOR else 0
        assert since.weight_bytes < max(FLOOR, state)
    assert taken <= STATE_PER_LOG_MAX * written


@pytest.mark.parametrize(("trailing", "start"), [(0, 1000), (5, 995), (500, 500), (5000, 1)])
def test_the_policys_entries_stay(trailing: int, start: int) -> None:
    policy = SnapshotPolicy(trailing_entries=trailing)
    assert log_start(policy, 1000, needed=1001, state_bytes=0, entry_bytes=lambda index: 100) == start


def test_entries_for_slow_followers_never_outweigh_the_state() -> None:
    """500 of a megabyte each would be half a gigabyte in memory, for a member that a snapshot brings up sooner."""
    start = log_start(POLICY, 1000, needed=1001, state_bytes=MIB, entry_bytes=lambda index: MIB)
    assert start == 1000 - FLOOR // (MIB + ENTRY_WEIGHT_BYTES)


def test_what_a_member_is_being_sent_stays() -> None:
    assert (
        log_start(SnapshotPolicy(trailing_entries=5), 1000, needed=801, state_bytes=0, entry_bytes=lambda _: 1) == 800
    )
    assert log_start(SnapshotPolicy(trailing_entries=5), 1000, needed=1, state_bytes=0, entry_bytes=lambda _: MIB) > 995


@given(
    sizes=st.lists(st.integers(1, 200_000), min_size=1, max_size=200),
    trailing=st.integers(0, 300),
    needed=st.integers(1, 300),
    state=st.integers(0, 10 * MIB),
)
def test_what_stays_weighs_no_more_than_the_state(sizes: list[int], trailing: int, needed: int, state: int) -> None:
    policy, last = SnapshotPolicy(trailing_entries=trailing), len(sizes)

    def entry_bytes(index: int) -> int:
        return sizes[index - 1] if 1 <= index <= last else 0

    start = log_start(policy, last, needed=needed, state_bytes=state, entry_bytes=entry_bytes)
    kept = [entry_bytes(index) + ENTRY_WEIGHT_BYTES for index in range(start + 1, last + 1)]
    assert 0 <= start <= last
    assert sum(kept) <= max(FLOOR, state)


def test_a_snapshot_leaves_the_interpreter_to_others_behind_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses_s: list[float] = []
    monkeypatch.setattr("time.sleep", pauses_s.append)
    chunks = thread._with_pauses(iter([b"one", b"two"]))
    assert (next(chunks), pauses_s) == (b"one", [])
    assert (next(chunks), len(pauses_s)) == (b"two", 1)
    assert list(chunks) == []
    assert pauses_s == [thread.SNAPSHOT_PAUSE_S] * 2
