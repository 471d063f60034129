"""Managers that leave, over real gRPC: a leader hands over first, and its successor takes it out (features A1.18, A4.05)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from manager.authorization import LocalInterceptor
from manager.consensus.inprocess import InProcessConsensus
from manager.consensus.port import Member, NodeID
from manager.raft_membership import MembershipService, why_claim_is_of_a_copy
from manager.store import Store
from pki.certificates import Identity, Role
from pki.node_certificate import utc_now
from proto.objects_pb2 import Machine, Node
from proto.raft_pb2 import MachineClaim, RaftJoinRequest, RaftLeaveRequest
from proto.raft_pb2_grpc import RaftMembershipStub, add_RaftMembershipServicer_to_server
from proto.specs_pb2 import NodeRole

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


class Consensus(InProcessConsensus):
    """A removal takes as long as the test wants."""

    def __init__(self, node_id: NodeID) -> None:
        super().__init__(node_id)
        self.asked, self.go_on, self.given_up = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.go_on.set()
        self.connected: dict[NodeID, str] = {}

    @property
    def instances(self) -> Mapping[NodeID, str]:
        return self.connected

    async def remove_member(self, node_id: NodeID, *, timeout_s: float = 20.0) -> None:
        self.asked.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        await super().remove_member(node_id, timeout_s=timeout_s)


class Manager:
    """One that does not lead yet, with both in its Raft group."""

    def __init__(self, node_id: NodeID) -> None:
        self.node_id, self.link = node_id, Link()
        self.port = 0
        self.void: set[str] = set()
        self.consensus = Consensus(node_id)
        self.store = Store(self.consensus, clock=lambda: 0.0)

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[grpc.aio.Channel]:
        await self.consensus.start(self.store)
        for other in (LEAVING, NEXT):
            await self.consensus.add_member(Member(other, f"{other}:2377"))
        self.consensus.lose_leadership()
        identity = Identity(self.node_id, Role.MANAGER, "cluster", 1, utc_now(), utc_now())
        server = grpc.aio.server(interceptors=[LocalInterceptor(lambda: identity)])
        service = MembershipService(
            self.store,
            self.consensus,
            self.link,  # type: ignore[arg-type]  # as much as is asked of it
            refuses_manager=lambda identity: identity.node_id in self.void,
        )
        add_RaftMembershipServicer_to_server(service, server)
        self.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with self.channel() as channel:
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


async def test_a_leave_whose_way_to_the_leader_is_closed_under_it_finds_another() -> None:
    """The leader died over it, and there is another one: the channel to the first is closed under the call."""
    leaving, following = Manager(LEAVING), Manager(NEXT)
    async with leaving.serving() as own, following.serving() as other:
        following.consensus.regain_leadership()
        following.consensus.go_on.clear()
        leaving.link.to = other
        call = asyncio.ensure_future(RaftMembershipStub(own).Leave(RaftLeaveRequest(node_id=LEAVING)))
        async with asyncio.timeout(30):
            await following.consensus.asked.wait()
        async with following.channel() as again:
            leaving.link.to = again
            await other.close()
            async with asyncio.timeout(30):
                await following.consensus.given_up.wait()
            following.consensus.go_on.set()
            async with asyncio.timeout(30):
                await call
    assert [member.node_id for member in following.consensus.members] == [NEXT]


async def promoted(leading: Manager, node: Node) -> None:
    """It leads again, and the node is to be a manager."""
    leading.consensus.regain_leadership()
    node.spec.role = NodeRole.NODE_ROLE_MANAGER
    await leading.store.update(lambda working: working.create(node))


async def test_a_manager_with_a_certificate_from_before_its_demotion_is_not_taken_in() -> None:
    """Promoted again, it may still be removing the log of before: as a member it would lose what it has stored."""
    leading = Manager(NEXT)
    async with leading.serving() as channel:
        await promoted(leading, Node(id=NEXT))
        await leading.consensus.remove_member(LEAVING)
        join = RaftMembershipStub(channel).Join
        request = RaftJoinRequest(raft_addr="b:1", grpc_addr="b:2", group_id=leading.consensus.group_id)
        leading.void = {NEXT}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await join(request)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        leading.void = set()
        await join(request)
        assert leading.store.view.nodes.find(NEXT).grpc_addr == "b:2"


@pytest.mark.parametrize("what", ["hardware", "boots", "instance"])
async def test_a_copy_of_a_manager_is_not_taken_in_at_its_address(what: str) -> None:
    leading = Manager(NEXT)
    async with leading.serving() as channel:
        node = Node(id=NEXT, machine=Machine(id="one", hardware="board"), boot_nonce="last")
        await promoted(leading, node)
        own = MachineClaim(machine=node.machine, boots=["last"])
        request = RaftJoinRequest(
            raft_addr="b:1", grpc_addr="b:2", group_id=leading.consensus.group_id, instance="it", claim=own
        )
        leading.consensus.connected = {NEXT: "it"}
        if what == "hardware":
            request.claim.machine.hardware = "another board"
        elif what == "boots":
            request.claim.boots[:] = ["one before"]
        else:
            request.instance = "another process"
        join = RaftMembershipStub(channel).Join
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await join(request)
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
        assert not leading.store.view.nodes.find(NEXT).raft_addr
        request.instance, own.boots[:] = "it", ["last", "next"]
        request.claim.CopyFrom(own)
        await join(request)
        assert leading.store.view.nodes.find(NEXT).raft_addr == "b:1"


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        (MachineClaim(machine=Machine(id="one", hardware="board"), boots=["last", "next"]), ""),
        (MachineClaim(), ""),
        (
            MachineClaim(machine=Machine(id="two", hardware="board"), boots=["last"]),
            "its /etc/machine-id is another one",
        ),
        (MachineClaim(machine=Machine(id="one", hardware="other"), boots=["last"]), "its hardware has another ID"),
        (MachineClaim(machine=Machine(id="one", hardware="board"), boots=["before"]), "the node has run since"),
    ],
)
def test_a_manager_is_told_from_its_copy_by_what_its_node_registered_last(claim: MachineClaim, why: str) -> None:
    node = Node(id="n", machine=Machine(id="one", hardware="board"), boot_nonce="last")
    found = why_claim_is_of_a_copy(node, claim.SerializeToString())
    assert found.startswith(why)
    assert bool(found) == bool(why)
    assert why_claim_is_of_a_copy(None, claim.SerializeToString()) == ""
    assert "makes no sense" in why_claim_is_of_a_copy(node, b"\xff")


async def test_a_manager_without_a_group_is_told_where_its_log_has_to_get_before_it_is_taken_in() -> None:
    leading = Manager(NEXT)
    async with leading.serving() as channel:
        await promoted(leading, Node(id=NEXT))
        await leading.consensus.remove_member(LEAVING)
        answer = await RaftMembershipStub(channel).Join(RaftJoinRequest(raft_addr="b:1", grpc_addr="b:2"))
        assert answer.admission.group_id == leading.consensus.group_id
        assert answer.admission.index == leading.consensus.applied_index
        assert (answer.admission.term, answer.admission.leader_id) == (leading.consensus.leader.term, NEXT)
        assert not leading.store.view.nodes.find(NEXT).grpc_addr


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
