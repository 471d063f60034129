"""What a cluster's spec says of the Raft log, followed on every manager (A1.09)."""

from __future__ import annotations

from collections.abc import Sequence

from manager.consensus.settings import SnapshotPolicy
from manager.store import CLUSTERS, Change, Store
from proto.objects_pb2 import Cluster


def follow_spec(store: Store, policy: SnapshotPolicy) -> None:
    """Keep ``policy`` as the cluster's spec wants it. Call before the store is restored, which tells of what it holds."""

    def follow(changes: Sequence[Change]) -> None:
        for change in changes:
            if change.kind is CLUSTERS and isinstance(change.new, Cluster):
                raft = change.new.spec.raft
                policy.interval_entries = raft.snapshot_interval or policy.interval_entries
                policy.trailing_entries = raft.log_entries_for_slow_followers or policy.trailing_entries
                policy.keep_old = raft.keep_old_snapshots

    store.on_change(follow)
