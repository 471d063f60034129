"""A manager's channel to the leader, and what becomes of calls to an old one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from manager import leader_link
from manager.consensus.inprocess import InProcessConsensus
from manager.consensus.port import LeaderState, Member, NodeID
from manager.health import HealthService
from manager.leader_link import LeaderLink
from manager.store import Store
from proto.ca_pb2 import ManagerAddress
from proto.health_pb2 import HealthCheckRequest, HealthCheckResponse
from proto.health_pb2_grpc import HealthStub, add_HealthServicer_to_server
from tests.unit.manager.test_other_managers import Eyes
from tests.waiting import DEADLINE_S, until

OLD, NEW = NodeID("old"), NodeID("new")


class Group(InProcessConsensus):
    """A follower in a group of which it hears whom the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = {OLD, NEW}

    @property
    def members(self) -> tuple[Member, ...]:
        return Member(OLD, "127.0.0.1:1"), Member(NEW, "127.0.0.1:2")

    @property
    def reachable(self) -> frozenset[NodeID]:
        return frozenset(self.heard)

    def follow(self, leader: NodeID | None) -> None:
        self._set_leader(LeaderState(self.leader.term + 1, leader, False))


class SlowHealth(HealthService):
    """Answers when told to."""

    def __init__(self) -> None:
        super().__init__(InProcessConsensus(), Eyes({}))
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def Check(  # noqa: N802 - the name is the RPC's
        self, request: HealthCheckRequest, context: object
    ) -> HealthCheckResponse:
        self.asked.set()
        await self.answer.wait()
        return HealthCheckResponse(node_id="old")


@asynccontextmanager
async def calling_the_old_leader() -> AsyncIterator[tuple[Group, SlowHealth, asyncio.Task[HealthCheckResponse]]]:
    """A call to the leader that is under way when another one leads."""
    server, health, group = grpc.aio.server(), SlowHealth(), Group()
    add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    addrs = {OLD: f"127.0.0.1:{port}", NEW: "127.0.0.1:1"}
    known = [ManagerAddress(node_id=node_id, grpc_addr=addr) for node_id, addr in addrs.items()]
    link = LeaderLink(Store(group, clock=time.time), group, grpc.aio.insecure_channel, known)
    group.on_leader_change(lambda _state: link.leader_changed())
    group.follow(OLD)
    channel = link.channel()
    assert channel is not None
    assert link.channel() is channel
    call = asyncio.ensure_future(HealthStub(channel).Check(HealthCheckRequest(), timeout=DEADLINE_S))
    try:
        await health.asked.wait()
        yield group, health, call
    finally:
        await link.close()
        await asyncio.wait([call])
        await server.stop(None)


async def test_an_old_leader_that_is_heard_may_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_link, "RETIRE_GRACE_S", DEADLINE_S)
    async with calling_the_old_leader() as (group, health, call):
        group.follow(NEW)
        await asyncio.sleep(0.05)
        health.answer.set()
        assert (await call).node_id == "old"
        group.heard.discard(OLD)


async def test_nobody_waits_for_an_old_leader_that_is_heard_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_link, "RETIRE_GRACE_S", DEADLINE_S)
    async with calling_the_old_leader() as (group, _health, call):
        group.follow(None)
        group.follow(NEW)
        await asyncio.sleep(0.05)
        assert not call.done()
        group.heard.discard(OLD)
        await until(call.done, what="the call ends")
        assert call.cancelled() or call.exception() is not None


async def test_an_old_leader_has_no_more_than_its_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_link, "RETIRE_GRACE_S", 0.05)
    async with calling_the_old_leader() as (group, _health, call):
        group.follow(NEW)
        await until(call.done, what="the call ends")
