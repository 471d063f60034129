"""When to write a snapshot, and how much of the log to keep behind it. Pure.

A restart loads the newest snapshot and replays what was applied since; a snapshot writes the whole state. Counting
entries alone bounds neither: an entry holds one object or 200, a state ten objects or a million. So both are weighed by
what they weigh on the disk, where every object that an entry touches, and every one that a snapshot holds, takes tens
to hundreds of bytes:

- the log since the snapshot weighs at most as much as the state: a replay takes a small multiple of the load;
- a snapshot is written for at least half its weight of log: writing snapshots is a bounded share of the work of writing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from manager.consensus.settings import SnapshotPolicy

ENTRY_WEIGHT_BYTES = 256
"""An entry costs this much beside its bytes: its place in the log, its command ID, a turn of the state machine."""

STATE_PER_LOG_MAX = 2
"""A snapshot weighs at most so many times what was applied since the last one (unless both are small)."""

RETRY_GROWTH = 1.1
"""After a failure the log grows by a tenth before the next try."""


@dataclass(frozen=True, slots=True)
class LogGrowth:
    """What was applied since the newest snapshot."""

    entries: int = 0
    size_bytes: int = 0

    def and_more(self, entries: int, size_bytes: int) -> LogGrowth:
        return LogGrowth(self.entries + entries, self.size_bytes + size_bytes)

    def without(self, earlier: LogGrowth) -> LogGrowth:
        return LogGrowth(self.entries - earlier.entries, self.size_bytes - earlier.size_bytes)

    @property
    def weight_bytes(self) -> int:
        return self.size_bytes + self.entries * ENTRY_WEIGHT_BYTES


def is_due(policy: SnapshotPolicy, since: LogGrowth, *, state_bytes: int, failed: LogGrowth | None) -> bool:
    """Whether to write a snapshot now.

    Args:
        since: applied since the newest snapshot, or since the beginning.
        state_bytes: what the newest snapshot takes on the disk; 0 where there is none.
        failed: ``since`` of the last try, where that could not be written.
    """
    weight = since.weight_bytes
    if not since.entries or (failed is not None and weight < failed.weight_bytes * RETRY_GROWTH):
        return False
    if weight >= max(policy.log_bytes_min, state_bytes):
        return True
    return since.entries >= policy.interval_entries and state_bytes <= max(
        policy.log_bytes_min, STATE_PER_LOG_MAX * weight
    )


def log_start(
    policy: SnapshotPolicy, snapshot_index: int, *, needed: int, state_bytes: int, entry_bytes: Callable[[int], int]
) -> int:
    """Where the log may begin once there is a snapshot: nothing before the index returned is needed.

    Kept are the policy's entries, and those that a member lacks which is being sent some, as long as they weigh no more
    than the state: beyond that the snapshot is the shorter way.

    Args:
        needed: the first index that a member which is connected lacks.
        entry_bytes: the size of the entry at an index, 0 below the log's beginning.
    """
    wanted = max(1, min(snapshot_index - policy.trailing_entries, needed - 1))
    budget = max(policy.log_bytes_min, state_bytes)
    start = snapshot_index
    while start > wanted:
        size_bytes = entry_bytes(start)
        if not size_bytes:
            break
        budget -= size_bytes + ENTRY_WEIGHT_BYTES
        if budget < 0:
            break
        start -= 1
    return start
