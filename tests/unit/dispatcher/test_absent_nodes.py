"""Nodes that joined and never showed up are forgotten; all others stay until somebody removes them."""

from __future__ import annotations

import time

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from manager.constants import NEVER_CAME_FORGET_S
from manager.dispatcher.nodes import is_given_up
from proto.objects_pb2 import Node, NodeState
from proto.specs_pb2 import NodeRole
from tests.unit.dispatcher.support import Manager, leading_manager, make_node
from tests.waiting import until

NOW_S = 1_000_000


def absent_node(node_id: str = "n1", *, down_since_s: float = NOW_S - NEVER_CAME_FORGET_S) -> Node:
    """A worker that joined and was given up by the heartbeats."""
    node = make_node(node_id)
    node.status.state = NodeState.NODE_STATE_DOWN
    node.status_since.FromNanoseconds(int(down_since_s * 1e9))
    return node


def given_up(node: Node) -> bool:
    return is_given_up(node, Timestamp(seconds=NOW_S))


def test_a_worker_that_never_came_is_given_up_after_an_hour() -> None:
    assert given_up(absent_node())
    assert not given_up(absent_node(down_since_s=NOW_S - NEVER_CAME_FORGET_S + 1))
    assert not given_up(absent_node(down_since_s=NOW_S + 1000)), "a clock that was ahead"


@pytest.mark.parametrize("state", [NodeState.NODE_STATE_UNKNOWN, NodeState.NODE_STATE_READY])
def test_one_that_may_yet_come_is_not(state: NodeState.ValueType) -> None:
    node = absent_node()
    node.status.state = state
    assert not given_up(node)


def test_one_that_was_there_is_never_given_up() -> None:
    node = absent_node(down_since_s=0)
    node.description.hostname = "h"
    assert not given_up(node)


@pytest.mark.parametrize("field", ["wanted", "observed"])
def test_a_manager_is_never_given_up(field: str) -> None:
    node = absent_node(down_since_s=0)
    if field == "wanted":
        node.spec.role = NodeRole.NODE_ROLE_MANAGER
    else:
        node.role = NodeRole.NODE_ROLE_MANAGER
    assert not given_up(node)


async def test_the_leader_removes_them_and_leaves_the_others() -> None:
    async with leading_manager() as manager:
        was_there = absent_node("was-there", down_since_s=0)
        was_there.description.hostname = "h"
        await manager.add(absent_node("gone", down_since_s=0), absent_node("late", down_since_s=time.time()), was_there)
        await manager.dispatcher._liveness.give_up_once()
        assert node_ids(manager) == ["late", "was-there"]


async def test_a_new_leader_looks_by_itself() -> None:
    manager = Manager()
    await manager.start()
    try:
        await manager.add(absent_node("gone", down_since_s=0), make_node("n2"))
        manager.lead()
        await until(lambda: node_ids(manager) == ["n2"])
    finally:
        await manager.stop()


def node_ids(manager: Manager) -> list[str]:
    return sorted(node.id for node in manager.store.view.nodes)
