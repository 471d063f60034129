"""Who is to be a manager, and who is: the decision of manager/roles.py (features A4.05, D12)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any  # of the decision's arguments, handed on as they are

import pytest

from manager import roles
from manager.consensus.inprocess import InProcessConsensus
from manager.consensus.port import Member, NodeID
from manager.model.nodes import copy_node
from manager.roles import RemoveMember, RoleAction, RoleManager, SetRole, decide
from manager.store import SequenceConflictError, Store, Working
from proto.objects_pb2 import Node
from proto.specs_pb2 import NodeRole
from tests.waiting import until

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


# Carried out


class HeldConsensus(InProcessConsensus):
    """A removal takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__(LEADER, "a:2377")
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def remove_member(self, node_id: NodeID, *, timeout_s: float = 20.0) -> None:
        self.asked.set()
        await self.go_on.wait()
        await super().remove_member(node_id, timeout_s=timeout_s)


@asynccontextmanager
async def cluster(consensus: InProcessConsensus, *nodes: Node) -> AsyncIterator[Store]:
    store = Store(consensus, clock=lambda: 0.0)
    await consensus.start(store)
    working = store.begin()
    for made in nodes:
        working.create(made)
    await store.commit(working)
    try:
        yield store
    finally:
        await consensus.stop()


@asynccontextmanager
async def reconciling(store: Store, consensus: InProcessConsensus) -> AsyncIterator[None]:
    running = asyncio.ensure_future(RoleManager(store, consensus).run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_a_node_that_came_meanwhile_keeps_its_role_and_its_addresses() -> None:
    """Demoted, removed from the group, promoted again and taken in again, while the removal of another takes its time."""
    consensus = HeldConsensus()
    came = node("c", MANAGER, MANAGER)
    came.grpc_addr = "c:7946"
    async with cluster(consensus, node("a", MANAGER, MANAGER), node("b", WORKER, MANAGER), came) as store:
        await consensus.add_member(member("b"))
        async with reconciling(store, consensus):
            async with asyncio.timeout(30):
                await consensus.asked.wait()
            await consensus.add_member(member("c"))
            consensus.go_on.set()
            await until(lambda: store.view.nodes.find("b").role == WORKER)
        found = store.view.nodes.find("c")
        assert (found.role, found.raft_addr, found.grpc_addr) == (MANAGER, "c:2377", "c:7946")
        assert not found.HasField("manager_certificates_void_before")


async def test_a_role_that_others_write_over_is_recorded_with_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "ROLE_RECONCILE_PERIOD_S", 0.0)
    consensus, conflicts = InProcessConsensus(LEADER, "a:2377"), [1]
    async with cluster(consensus, node("a", MANAGER, MANAGER), node("b", WORKER, MANAGER)) as store:
        update = store.update

        async def contended(change: Callable[[Working], None]) -> None:
            if conflicts:
                conflicts.pop()
                raise SequenceConflictError(kind="node", object_id="b", expected=1, actual=2)
            await update(change)

        monkeypatch.setattr(store, "update", contended)
        async with reconciling(store, consensus):
            await until(lambda: store.view.nodes.find("b").role == WORKER)


async def test_what_a_worker_does_is_no_reason_to_look_at_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    consensus = InProcessConsensus(LEADER, "a:2377")
    async with cluster(consensus, node("a", MANAGER, MANAGER)) as store:

        def counted(*given: Any) -> list[RoleAction]:
            looks.append(1)
            return decide(*given)

        monkeypatch.setattr(roles, "decide", counted)
        async with reconciling(store, consensus):
            await until(lambda: looks)
            looks.clear()
            await store.update(lambda working: working.create(node("b", WORKER, WORKER)))
            await store.update(lambda working: working.remove(working.nodes.find("b")))
            assert looks == []
            await store.update(lambda working: working.create(node("c", WORKER, MANAGER)))
            await until(lambda: store.view.nodes.find("c").role == WORKER)


async def test_a_worker_that_comes_up_or_describes_itself_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand of them would be a million looks."""
    consensus, looked = InProcessConsensus(LEADER, "a:2377"), list[set[str]]()

    def watched(nodes: Iterable[Node], *others: Any) -> list[RoleAction]:
        found = list(nodes)
        looked.append({node.id for node in found})
        return decide(found, *others)

    monkeypatch.setattr(roles, "decide", watched)
    async with cluster(consensus, node("a", MANAGER, MANAGER), node("w", WORKER, WORKER)) as store:
        async with reconciling(store, consensus):
            await until(lambda: bool(looked))
            before = len(looked)

            def come_up(working: Working) -> None:
                worker = copy_node(working.nodes.find("w"))
                worker.description.hostname = "w"
                working.update(worker)

            await store.update(come_up)
            await asyncio.sleep(0)
            assert len(looked) == before

            def demoted(working: Working) -> None:
                manager = copy_node(working.nodes.find("w"))
                manager.role = MANAGER
                working.update(manager)

            await store.update(demoted)  # a manager by its role alone
            await until(lambda: store.view.nodes.find("w").role == WORKER)
        assert looked[0] == {"a"}
        assert {"a", "w"} in looked
