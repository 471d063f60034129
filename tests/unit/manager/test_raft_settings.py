"""The figures of Spec.Raft, as every manager follows them."""

from __future__ import annotations

from manager.consensus.inprocess import InProcessConsensus
from manager.consensus.settings import SnapshotPolicy
from manager.control.defaults import fill_cluster
from manager.raft_settings import follow_spec
from manager.store import Store
from proto.objects_pb2 import Cluster


async def test_the_snapshot_policy_follows_the_clusters_spec() -> None:
    policy, log = SnapshotPolicy(), InProcessConsensus()
    store = Store(log, clock=lambda: 1e9)
    follow_spec(store, policy)
    await log.start(store)
    cluster = Cluster(id="cluster")
    fill_cluster(cluster)
    working = store.begin()
    working.create(cluster)
    await store.commit(working)
    assert policy == SnapshotPolicy()
    changed = Cluster()
    changed.CopyFrom(store.view.cluster)
    changed.spec.raft.snapshot_interval = 123
    changed.spec.raft.log_entries_for_slow_followers = 7
    changed.spec.raft.keep_old_snapshots = 2
    working = store.begin()
    working.update(changed)
    await store.commit(working)
    assert policy == SnapshotPolicy(interval_entries=123, trailing_entries=7, keep_old=2)
    await log.stop()


async def test_a_restored_snapshot_tells_of_the_spec_too() -> None:
    log = InProcessConsensus()
    store = Store(log, clock=lambda: 1e9)
    await log.start(store)
    working = store.begin()
    cluster = Cluster(id="cluster")
    fill_cluster(cluster)
    cluster.spec.raft.snapshot_interval = 123
    working.create(cluster)
    await store.commit(working)
    policy, other = SnapshotPolicy(), Store(log, clock=lambda: 1e9)
    follow_spec(other, policy)
    other.load(store.snapshot()(), store.index)()
    assert policy.interval_entries == 123
    await log.stop()
