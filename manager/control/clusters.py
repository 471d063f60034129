"""The cluster object: settings, join tokens (features A1.08 to A1.11, A1.16, A1.19, A1.22)."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp

from manager.control.defaults import complete_cluster_spec
from manager.control.lookup import check_version
from manager.control.nodes import expire_removed_nodes
from manager.control.validation import validate_cluster_spec
from manager.store import Working
from pki.tokens import replace_secret
from proto.objects_pb2 import Cluster
from proto.specs_pb2 import ClusterSpec


def update_cluster(
    working: Working,
    cluster: Cluster,
    spec: ClusterSpec,
    *,
    version: int,
    rotate_worker_token: bool,
    rotate_manager_token: bool,
    now: Timestamp,
    new_token: Callable[[str], str] = replace_secret,
) -> Cluster:
    """Replace the whole spec (what is absent falls to its default) and, if asked, the join tokens.

    A replaced token is refused from the moment this is applied; members are not touched.

    Raises:
        OutOfSequenceError, InvalidArgumentError, InvalidRequestError, UnimplementedError.
    """
    full = complete_cluster_spec(spec)
    validate_cluster_spec(full, cluster)
    check_version(cluster, version)
    changed = Cluster()
    changed.CopyFrom(cluster)
    changed.spec.CopyFrom(full)
    changed.updated_at.CopyFrom(now)
    expire_removed_nodes(changed, now)
    tokens = changed.root_ca.join_tokens
    if rotate_worker_token:
        tokens.worker = new_token(tokens.worker)
    if rotate_manager_token:
        tokens.manager = new_token(tokens.manager)
    working.update(changed)
    return changed
