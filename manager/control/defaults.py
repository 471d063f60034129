"""What holds where a cluster's spec says nothing, written down as the spec comes in; what of a cluster may be shown.

Services' defaults are in ``manager.model.defaults``. Source: moby ``daemon/cluster/convert``.
"""

from __future__ import annotations

from datetime import timedelta

from manager.constants import HEARTBEAT_PERIOD_S, TASK_HISTORY_RETENTION_LIMIT
from pki.certificates import CERT_EXPIRY_DEFAULT
from proto.objects_pb2 import Cluster
from proto.specs_pb2 import ClusterSpec

_SECOND_NS = 10**9

CLUSTER_NAME = "default"
SNAPSHOT_INTERVAL = 10_000
LOG_ENTRIES_FOR_SLOW_FOLLOWERS = 500
ELECTION_TICK = 10
HEARTBEAT_TICK = 1
HEARTBEAT_PERIOD_NS = round(HEARTBEAT_PERIOD_S * _SECOND_NS)
NODE_CERT_EXPIRY_NS = CERT_EXPIRY_DEFAULT // timedelta(microseconds=1) * 1000

DEFAULT_ADDR_POOL = ("10.0.0.0/8",)
SUBNET_SIZE = 24
DATA_PATH_PORT = 4789


def complete_cluster_spec(spec: ClusterSpec) -> ClusterSpec:
    """A copy with the defaults of features A1.08 to A1.11 where the spec is silent or says 0 for what cannot be 0."""
    full = ClusterSpec()
    full.CopyFrom(spec)
    full.name = full.name or CLUSTER_NAME
    if not full.orchestration.HasField("task_history_retention_limit"):
        full.orchestration.task_history_retention_limit = TASK_HISTORY_RETENTION_LIMIT
    raft = full.raft
    raft.snapshot_interval = raft.snapshot_interval or SNAPSHOT_INTERVAL
    if not raft.HasField("keep_old_snapshots"):
        raft.keep_old_snapshots = 0
    raft.log_entries_for_slow_followers = raft.log_entries_for_slow_followers or LOG_ENTRIES_FOR_SLOW_FOLLOWERS
    raft.election_tick = raft.election_tick or ELECTION_TICK
    raft.heartbeat_tick = raft.heartbeat_tick or HEARTBEAT_TICK
    full.dispatcher.heartbeat_period_ns = full.dispatcher.heartbeat_period_ns or HEARTBEAT_PERIOD_NS
    full.ca_config.node_cert_expiry_ns = full.ca_config.node_cert_expiry_ns or NODE_CERT_EXPIRY_NS
    full.task_defaults.SetInParent()
    full.encryption_config.SetInParent()
    return full


def fill_cluster(cluster: Cluster) -> None:
    """Write the defaults of a new cluster into ``cluster``, in its spec and beside it (features A1.05, A1.06)."""
    cluster.spec.CopyFrom(complete_cluster_spec(cluster.spec))
    if not cluster.default_addr_pool:
        cluster.default_addr_pool.extend(DEFAULT_ADDR_POOL)
    cluster.subnet_size = cluster.subnet_size or SUBNET_SIZE
    cluster.data_path_port = cluster.data_path_port or DATA_PATH_PORT


def redacted_cluster(cluster: Cluster, *, tokens: bool) -> Cluster:
    """A copy that may leave the managers: no keys; join tokens only for who asks for the swarm itself."""
    copy = Cluster()
    copy.CopyFrom(cluster)
    copy.root_ca.ClearField("ca_key_pem")
    copy.spec.ca_config.ClearField("signing_ca_key")
    copy.spec.ca_config.ClearField("signing_ca_cert")
    copy.ClearField("unlock_key")
    if not tokens:
        copy.root_ca.ClearField("join_tokens")
    return copy
