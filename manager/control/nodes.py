"""Nodes: change of labels, availability and role, removal (features A4.03 to A4.06, A2.09, D12).

A role is only *wanted* here (``spec.role``): the role manager changes the Raft membership and the certificate after
it. What would leave the swarm without a quorum is refused before it is wanted. Source: swarmkit
``manager/controlapi/node.go``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from google.protobuf.timestamp_pb2 import Timestamp

from manager.consensus.port import LeaderState, Member
from manager.control.defaults import NODE_CERT_EXPIRY_NS
from manager.control.errors import FailedPreconditionError
from manager.control.lookup import check_version
from manager.model.nodes import copy_node
from manager.model.tasks import copy_task, has_ended
from manager.model.transitions import Owner, replace_status
from manager.store import Working
from proto.objects_pb2 import (
    Cluster,
    ManagerStatus,
    Node,
    NodeState,
    Reachability,
    TaskState,
    TaskStatus,
)
from proto.specs_pb2 import NodeRole, NodeSpec

REMOVED_GRACE = timedelta(days=7)
"""How long a removed node stays banned after its last certificate must have expired."""


@dataclass(frozen=True)
class Membership:
    """The Raft group, as its leader sees it.

    Attributes:
        members: voters and learners.
        reachable: node IDs heard from lately.
        leader: who leads.
    """

    members: Sequence[Member]
    reachable: Set[str]
    leader: LeaderState

    def member(self, node_id: str) -> Member | None:
        return self.by_id.get(node_id)

    @cached_property
    def by_id(self) -> Mapping[str, Member]:
        return {member.node_id: member for member in self.members}


def with_manager_status(node: Node, membership: Membership) -> Node:
    """The node as the API shows it: a copy with ``ManagerStatus`` for a member of the Raft group, else as it is."""
    member = membership.member(node.id)
    if member is None:
        return node
    reachable = node.id in membership.reachable
    copy = copy_node(node)
    copy.manager_status.CopyFrom(
        ManagerStatus(
            leader=membership.leader.leader_id == node.id,
            reachability=Reachability.REACHABILITY_REACHABLE if reachable else Reachability.REACHABILITY_UNREACHABLE,
            addr=member.address,
        )
    )
    return copy


def update_node(
    working: Working, node: Node, spec: NodeSpec, membership: Membership, *, version: int, now: Timestamp
) -> Node:
    """Give a node another spec (valid already).

    Raises:
        OutOfSequenceError: the node has another version now.
        FailedPreconditionError: a demotion that would leave no manager, or no quorum.
    """
    check_version(node, version)
    demoted = node.spec.role == NodeRole.NODE_ROLE_MANAGER and spec.role == NodeRole.NODE_ROLE_WORKER
    if demoted:
        _check_demotion(working, node, membership)
    copy = copy_node(node)
    copy.spec.CopyFrom(spec)
    copy.updated_at.CopyFrom(now)
    working.update(copy)
    return copy


def _check_demotion(working: Working, node: Node, membership: Membership) -> None:
    """Refuse to lose the last manager, or the quorum.

    Managers whose demotion is wanted already are counted as gone, though they still vote: else several demotions in
    a row would each look harmless.
    """
    managers = {other.id for other in working.nodes if other.spec.role == NodeRole.NODE_ROLE_MANAGER}
    if managers <= {node.id}:
        raise FailedPreconditionError("attempting to demote the last manager of the swarm")
    staying = [
        member.node_id
        for member in membership.members
        if not member.learner and member.node_id in managers and member.node_id != node.id
    ]
    reachable = sum(1 for node_id in staying if node_id in membership.reachable)
    if not staying or reachable < len(staying) // 2 + 1:
        raise FailedPreconditionError("can't remove member from the raft: this would result in a loss of quorum")


def remove_node(
    working: Working, cluster: Cluster, node: Node, membership: Membership, *, force: bool, now: Timestamp
) -> None:
    """Take a node out of the cluster: its certificate is banned, its tasks become ORPHANED, its object goes.

    One transaction: nobody would report the tasks' end afterwards, and the node must not come back in between. Where
    it is too large for one entry it may be split at its boundaries: the ban comes first and the object goes last, so
    what is left after a failure is a banned node that can be removed again.

    Raises:
        FailedPreconditionError: it is a member of the Raft group, or up while ``force`` is not given.
    """
    if membership.member(node.id) is not None:
        raise FailedPreconditionError(
            f"node {node.id} is a cluster manager and is a member of the raft cluster. "
            "It must be demoted to worker before removal"
        )
    if not force and node.status.state == NodeState.NODE_STATE_READY:
        raise FailedPreconditionError(f"node {node.id} is not down and can't be removed")
    changed = Cluster()
    changed.CopyFrom(cluster)
    changed.updated_at.CopyFrom(now)
    expire_removed_nodes(changed, now)
    changed.removed_nodes[node.id].refuse_until.CopyFrom(_refuse_until(cluster, now))
    working.update(changed)
    working.boundary()
    for task in list(working.tasks.by_node(node.id)):
        if not has_ended(task):
            orphan = copy_task(task)
            status = TaskStatus(
                timestamp=now,
                state=TaskState.TASK_STATE_ORPHANED,
                message="Task belonged to a node that has been deleted",
            )
            replace_status(orphan, Owner.CONTROL, status)
            working.update(orphan)
            working.boundary()
    working.remove(node)


def expire_removed_nodes(cluster: Cluster, now: Timestamp) -> None:
    """Forget, in place, the removed nodes whose certificates are long past."""
    over = [
        node_id
        for node_id, removed in cluster.removed_nodes.items()
        if (removed.refuse_until.seconds, removed.refuse_until.nanos) < (now.seconds, now.nanos)
    ]
    for node_id in over:
        del cluster.removed_nodes[node_id]


def _refuse_until(cluster: Cluster, now: Timestamp) -> Timestamp:
    """The node's certificate cannot live longer than the longest life certificates are given, counted from now."""
    expiry_ns = max(cluster.spec.ca_config.node_cert_expiry_ns, NODE_CERT_EXPIRY_NS)
    until = Timestamp()
    until.FromNanoseconds(now.ToNanoseconds() + expiry_ns + int(REMOVED_GRACE.total_seconds()) * 10**9)
    return until
