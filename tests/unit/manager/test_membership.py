"""Managers that leave, over real gRPC: a leader hands over first, and its successor takes it out (features A1.11, A4.05)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from manager.authorization import LocalInterceptor
from manager.consensus.inprocess import InProcessConsensus
from manager.consensus.port import Member, NodeID
from manager.membership import MembershipService
from manager.store import Store
from pki.certificates import Identity, Role
from pki.node_certificate import utc_now
from proto.raft_pb2 import RaftLeaveRequest
from proto.raft_pb2_grpc import RaftMembershipStub, add_RaftMembershipServicer_to_server

LEAVING, NEXT = NodeID("leaving"), NodeID("next")


class Link:
    """The way to the leader; ``asked`` is set when somebody takes it."""

    def __init__(self) -> None:
        self.to: grpc.aio.Channel | None = None
        self.asked = asyncio.Event()

    def channel(self) -> grpc.aio.Channel | None:
        self.asked.set()
        return self.to

    def leader_addr(self) -> str:
        return ""


class Manager:
    """One that does not lead yet, with both in its Raft group."""

    def __init__(self, node_id: NodeID) -> None:
        self.node_id, self.link = node_id, Link()
        self.consensus = InProcessConsensus(node_id)
        self.store = Store(self.consensus, clock=lambda: 0.0)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[grpc.aio.Channel]:
        await self.consensus.start(self.store)
        for other in (LEAVING, NEXT):
            await self.consensus.add_member(Member(other, f"{other}:2377"))
        self.consensus.lose_leadership()
        identity = Identity(self.node_id, Role.MANAGER, "cluster", 1, utc_now(), utc_now())
        server = grpc.aio.server(interceptors=[LocalInterceptor(lambda: identity)])
        service = MembershipService(self.store, self.consensus, self.link)  # type: ignore[arg-type]  # as much as is asked of it
        add_RaftMembershipServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield channel
        finally:
            await server.stop(None)


async def test_a_manager_leaves_by_a_leader_that_does_not_know_yet_that_it_leads() -> None:
    leaving, following = Manager(LEAVING), Manager(NEXT)
    async with leaving.serving() as own, following.serving() as other:
        call = asyncio.ensure_future(RaftMembershipStub(own).Leave(RaftLeaveRequest(node_id=LEAVING)))
        await leaving.link.asked.wait()  # nobody leads
        leaving.link.to = other
        leaving.link.asked.clear()
        await leaving.link.asked.wait()  # the next leader is known to others sooner than to itself
        leaving.link.asked.clear()
        await leaving.link.asked.wait()
        following.consensus.regain_leadership()
        async with asyncio.timeout(30):
            await call
    assert [member.node_id for member in following.consensus.members] == [NEXT]


async def test_a_manager_takes_out_nobody_but_itself() -> None:
    leaving = Manager(LEAVING)
    async with leaving.serving() as own:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RaftMembershipStub(own).Leave(RaftLeaveRequest(node_id=NEXT))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_what_the_leader_refuses_is_said_at_once() -> None:
    leaving, following = Manager(LEAVING), Manager(NEXT)
    async with leaving.serving() as own, following.serving() as other:
        following.consensus.regain_leadership()
        await following.consensus.remove_member(LEAVING)
        leaving.link.to = other
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RaftMembershipStub(own).Leave(RaftLeaveRequest(node_id=LEAVING))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
