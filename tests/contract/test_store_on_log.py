"""Store and reconcile loop on both logs: the one in memory, and Raft with its journal and snapshots on disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from manager.consensus.inprocess import InProcessConsensus
from manager.consensus.port import Consensus, NodeID, NotLeaderError
from manager.consensus.raft import RaftConsensus
from manager.consensus.sealed import KeyRing
from manager.consensus.settings import RaftConfig, SnapshotPolicy
from manager.reconcile.loop import ReconcileLoop
from manager.store import NameConflictError, SequenceConflictError, Store, Working
from pki.identifiers import new_id
from proto.objects_pb2 import NODE_STATE_READY, TASK_STATE_ASSIGNED, Node, Secret, Service, Task
from proto.specs_pb2 import NODE_AVAILABILITY_ACTIVE
from tests.support_addresses import free_port, loopback
from tests.unit.consensus.cluster import FOUNDER, KEY, Authority, peer_identity
from tests.waiting import until


class Member:
    """One manager, which can be stopped and started on the same folder."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self._address = f"{loopback()}:{free_port(loopback())}"
        self._authority = Authority(folder)
        self._pem = self._authority.issue("a")
        self.consensus: Consensus
        self.store: Store

    async def start(self) -> Store:
        if self.kind == "raft":
            self.consensus = RaftConsensus(
                RaftConfig(
                    node_id=NodeID("a"),
                    address=self._address,
                    folder=self.folder / "state",
                    keys=KeyRing(KEY),
                    client_ssl=lambda: self._authority.client(self._pem),
                    peer_identity=peer_identity,
                    timing=FOUNDER,
                    policy=SnapshotPolicy(interval_entries=40, trailing_entries=5),
                )
            )
        else:
            self.consensus = InProcessConsensus(NodeID("a"))
        self.store = Store(self.consensus, clock=time.time, debug=True)
        await self.consensus.start(self.store)
        await until(lambda: self.consensus.leader.is_leader)
        return self.store


@pytest.fixture(params=["raft", "inprocess"])
async def member(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Member]:
    made = Member(request.param, tmp_path)
    await made.start()
    yield made
    made.store.check_unmutated()
    await made.consensus.stop(transfer=False)


def secret(name: str) -> Secret:
    made = Secret(id=f"id-{name}")
    made.spec.name = name
    return made


async def test_a_commit_is_seen_when_it_returns(member: Member) -> None:
    working = member.store.begin()
    working.create(secret("one"))
    index = await member.store.commit(working)
    assert member.store.view.secrets.find("one").version.index == index
    assert member.consensus.applied_index >= index


async def test_refusals_reach_the_one_who_wrote(member: Member) -> None:
    first, second = member.store.begin(), member.store.begin()
    first.create(secret("one"))
    twin = secret("one")
    twin.id = "twin"
    second.create(twin)
    results = await asyncio.gather(member.store.commit(first), member.store.commit(second), return_exceptions=True)
    assert isinstance(results[0], int)
    assert isinstance(results[1], NameConflictError)


async def test_many_writers_of_one_object_lose_nothing(member: Member) -> None:
    await member.store.update(lambda working: working.create(secret("one")))

    def count_up(working: Working) -> None:
        current = working.secrets.find("one")
        copy = Secret()
        copy.CopyFrom(current)
        copy.spec.labels["n"] = str(int(current.spec.labels.get("n", "0")) + 1)
        working.update(copy)

    await asyncio.gather(*(member.store.update(count_up, attempts=50) for _ in range(20)))
    assert member.store.view.secrets.find("one").spec.labels["n"] == "20"
    with pytest.raises(SequenceConflictError):
        await asyncio.gather(*(member.store.update(count_up, attempts=1) for _ in range(5)))


async def test_a_service_is_brought_up_by_the_running_loop(member: Member) -> None:
    store = member.store

    def set_up(working: Working) -> None:
        for name in ("n1", "n2"):
            node = Node(id=name)
            node.status.state = NODE_STATE_READY
            node.spec.availability = NODE_AVAILABILITY_ACTIVE
            working.create(node)
        service = Service(id="s", spec_version=1)
        service.spec.name = "web"
        service.spec.mode.replicated.replicas = 300
        working.create(service)

    async with asyncio.TaskGroup() as group:
        running = group.create_task(ReconcileLoop(store, time.time, new_id).run(), name="loop")
        await store.update(set_up)
        await until(lambda: sum(task.status.state == TASK_STATE_ASSIGNED for task in store.view.tasks) == 300)
        running.cancel()
    assert {len(store.view.tasks.by_node(name)) for name in ("n1", "n2")} == {150}


async def test_a_stopped_member_commits_nothing(member: Member) -> None:
    await member.consensus.stop(transfer=False)
    with pytest.raises(NotLeaderError):
        await member.store.update(lambda working: working.create(secret("one")))


async def test_the_state_survives_a_restart(tmp_path: Path) -> None:
    """Over a snapshot and the entries behind it, byte for byte."""
    member = Member("raft", tmp_path)
    store = await member.start()
    for number in range(130):
        await store.update(lambda working, number=number: working.create(Task(id=f"t{number}", service_id="s")))  # type: ignore[misc]  # a default binds the loop's variable
    before = b"".join(store.snapshot()())
    await member.consensus.stop(transfer=False)
    again = await member.start()
    assert len(again.view.tasks) == 130
    assert len(again.view.tasks.by_service("s")) == 130
    assert b"".join(again.snapshot()()) == before
    await member.consensus.stop(transfer=False)
