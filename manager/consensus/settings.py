"""What can be tuned: periods and when to write snapshots."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Periods in seconds.

    The library wants ``election_timeout_s_min`` above three heartbeats. Followers of a leader whose
    connection closes do not wait for the timeout (see ``RaftCore.disconnected``), so it only has to
    cover stalls and silent partitions and may be generous.
    """

    heartbeat_period_s: float = 0.1
    election_timeout_s_min: float = 0.6
    election_timeout_s_max: float = 1.1
    check_quorum_s: float = 1.0
    commit_notice_s: float = 0.005


@dataclass(slots=True)
class SnapshotPolicy:
    """When to write a snapshot; may be changed at run time.

    Attributes:
        interval_entries: ``Spec.Raft.SnapshotInterval``.
        trailing_entries: ``Spec.Raft.LogEntriesForSlowFollowers``: entries kept behind a snapshot.
        interval_bytes: also snapshot when the log in memory is larger than this.
        keep_old: ``Spec.Raft.KeepOldSnapshots``.
    """

    interval_entries: int = 10_000
    trailing_entries: int = 500
    interval_bytes: int = 64 * 1024 * 1024
    keep_old: int = 0
