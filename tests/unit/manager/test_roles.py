"""Who is to be a manager, and who is: the decision of manager/roles.py (features A4.05, D12)."""

from __future__ import annotations

import pytest

from manager.consensus.port import Member, NodeID
from manager.roles import RemoveMember, SetRole, decide
from proto.objects_pb2 import Node
from proto.specs_pb2 import NodeRole

MANAGER, WORKER = NodeRole.NODE_ROLE_MANAGER, NodeRole.NODE_ROLE_WORKER
LEADER = NodeID("a")


def node(name: str, wanted: NodeRole.ValueType, observed: NodeRole.ValueType) -> Node:
    made = Node(id=name, role=observed, raft_addr=f"{name}:2377" if observed == MANAGER else "")
    made.spec.role = wanted
    return made


def member(name: str, *, learner: bool = False) -> Member:
    return Member(NodeID(name), f"{name}:2377", learner)


def test_nothing_is_done_when_everything_agrees() -> None:
    nodes = [node("a", MANAGER, MANAGER), node("b", WORKER, WORKER)]
    assert decide(nodes, [member("a")], LEADER) == []


def test_a_promoted_node_has_to_come_by_itself() -> None:
    assert decide([node("a", MANAGER, MANAGER), node("b", MANAGER, WORKER)], [member("a")], LEADER) == []


def test_a_new_voter_is_recorded_and_a_learner_is_not_yet() -> None:
    nodes = [node("a", MANAGER, MANAGER), node("b", MANAGER, WORKER), node("c", MANAGER, WORKER)]
    members = [member("a"), member("b"), member("c", learner=True)]
    assert decide(nodes, members, LEADER) == [SetRole(NodeID("b"), MANAGER, "b:2377")]


def test_a_demoted_node_leaves_the_group_before_its_role_changes() -> None:
    nodes = [node("a", MANAGER, MANAGER), node("b", WORKER, MANAGER)]
    assert decide(nodes, [member("a"), member("b")], LEADER) == [RemoveMember(NodeID("b"))]
    assert decide(nodes, [member("a")], LEADER) == [SetRole(NodeID("b"), WORKER)]


def test_the_leader_removes_itself_last() -> None:
    nodes = [node("a", WORKER, MANAGER), node("b", WORKER, MANAGER), node("c", MANAGER, MANAGER)]
    members = [member("a"), member("b"), member("c")]
    assert decide(nodes, members, LEADER) == [RemoveMember(NodeID("b")), RemoveMember(LEADER)]


@pytest.mark.parametrize("learner", [True, False])
def test_a_removed_node_leaves_the_group(learner: bool) -> None:
    members = [member("a"), member("gone", learner=learner)]
    assert decide([node("a", MANAGER, MANAGER)], members, LEADER) == [RemoveMember(NodeID("gone"))]


def test_a_new_address_is_recorded() -> None:
    moved = Member(NodeID("a"), "elsewhere:2377")
    assert decide([node("a", MANAGER, MANAGER)], [moved], LEADER) == [SetRole(LEADER, MANAGER, "elsewhere:2377")]
