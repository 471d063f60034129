"""The RaftMembership service: managers that come and go (proto/raft.proto)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from manager.authorization import caller
from manager.consensus.port import (
    Consensus,
    ConsensusError,
    Member,
    MembershipError,
    NodeID,
    NoQuorumError,
    NotLeaderError,
    ProposalUnknownError,
)
from manager.control.rpc import FORWARDED
from manager.dispatcher.nodes import why_copy
from manager.leader_link import LeaderLink, leader_answer
from manager.model.nodes import copy_node
from manager.store import Store, StoreError, Working
from pki.certificates import Identity
from proto.objects_pb2 import Node
from proto.raft_pb2 import (
    MachineClaim,
    RaftAdmission,
    RaftJoinRequest,
    RaftJoinResponse,
    RaftLeaveRequest,
    RaftLeaveResponse,
    RaftMember,
)
from proto.raft_pb2_grpc import RaftMembershipServicer, RaftMembershipStub
from proto.specs_pb2 import NodeRole

log = structlog.get_logger(__name__)

CHANGE_TIMEOUT_S = 20.0
LEADER_WAIT_S = 3.0
"""How long a leaving manager looks for a leader: a handover takes milliseconds, and a group that is lost has none."""
RETRY_S = 0.1
_FORWARDED = (FORWARDED, "1")
Context = grpc.aio.ServicerContext[Any, Any]  # Any: of the messages of whatever RPC

_CODES: dict[type[ConsensusError], grpc.StatusCode] = {
    NotLeaderError: grpc.StatusCode.UNAVAILABLE,
    NoQuorumError: grpc.StatusCode.UNAVAILABLE,
    ProposalUnknownError: grpc.StatusCode.UNAVAILABLE,
    MembershipError: grpc.StatusCode.FAILED_PRECONDITION,
}


class MembershipService(RaftMembershipServicer):
    """Takes managers into the Raft group and out of it. The leader does it; the others pass the call on once."""

    def __init__(
        self,
        store: Store,
        consensus: Consensus,
        link: LeaderLink,
        *,
        refuses_manager: Callable[[Identity], bool] = lambda _identity: False,
    ) -> None:
        """
        Args:
            refuses_manager: whether a manager's certificate is from before its node's demotion.
        """
        self._store, self._consensus, self._link = store, consensus, link
        self._refuses_manager = refuses_manager

    async def Join(self, request: RaftJoinRequest, context: Context) -> RaftJoinResponse:  # noqa: N802 - the RPC's name
        """A manager asks to be taken in, or tells its new address. It must come itself: it is not passed on."""
        if not self._consensus.leader.is_leader:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, f"this manager does not lead, ask {self._link.leader_addr()}"
            )
        node_id = NodeID(caller().node_id)
        node = self._store.view.nodes.get(node_id)
        if node is None or node.spec.role != NodeRole.NODE_ROLE_MANAGER:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"node {node_id} is not to be a manager")
        if self._refuses_manager(caller()):
            # A host that has just been demoted, and promoted again, removes its log: as a member it would lose entries.
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, f"node {node_id} needs a certificate from after its demotion"
            )
        await self._refuse_copy(node, request, context)
        if request.group_id not in ("", self._consensus.group_id):
            # As a learner it would never catch up, and count as an unreachable manager for ever.
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"node {node_id} has the log of another Raft group, from before a new cluster was forced: "
                "let it leave the swarm and join again",
            )
        try:
            if not request.group_id:
                return RaftJoinResponse(admission=await self._admission())
            self._consensus.update_address(node_id, request.raft_addr)
            await self._consensus.add_member(Member(node_id, request.raft_addr), timeout_s=CHANGE_TIMEOUT_S)
            await self._store.update(_manager_at(node_id, request))
        except (ConsensusError, StoreError) as error:
            await _abort(context, error)
        log.info("member.added", node_id=node_id, address=request.raft_addr)
        return RaftJoinResponse(
            members=[
                RaftMember(node_id=member.node_id, raft_addr=member.address, learner=member.learner)
                for member in self._consensus.members
            ]
        )

    async def _refuse_copy(self, node: Node, request: RaftJoinRequest, context: Context) -> None:
        """One machine a member (``Links`` holds streams to the same): its address would become the copy's."""
        connected = self._consensus.instances.get(NodeID(node.id), request.instance)
        reason = why_copy(node, request.claim.machine, request.claim.boots)
        if reason or connected != request.instance:
            reason = reason or "another process is connected with its certificate"
            await context.abort(
                grpc.StatusCode.ALREADY_EXISTS,
                f"node {node.id} is another machine, or another manager of it: {reason}. If this machine has a copy of its "
                "state folder, remove the copy and join the swarm anew; see docker info there",
            )

    async def _admission(self) -> RaftAdmission:
        admission = await self._consensus.admission(timeout_s=CHANGE_TIMEOUT_S)
        return RaftAdmission(
            group_id=admission.group_id, term=admission.term, leader_id=admission.leader_id, index=admission.index
        )

    async def Leave(self, request: RaftLeaveRequest, context: Context) -> RaftLeaveResponse:  # noqa: N802 - the RPC's name
        """A manager is taken out. Only the node itself may ask; anybody else changes the node's role.

        A leader hands over before it goes, and for a moment nobody leads, or only others know who does: the manager
        that was asked first tries until somebody has done it.
        """
        forwarded = _is_forwarded(context)
        if not forwarded and request.node_id != caller().node_id:
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, "a manager may only take out itself: demote the node"
            )
        end = asyncio.get_running_loop().time() + LEADER_WAIT_S
        while not await self._take_out(request, context, forwarded=forwarded):
            if forwarded or asyncio.get_running_loop().time() > end:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the leader is not known")
            await asyncio.sleep(RETRY_S)
        return RaftLeaveResponse()

    async def _take_out(self, request: RaftLeaveRequest, context: Context, *, forwarded: bool) -> bool:
        """Here where we lead, else at the leader's. False: nobody there leads, another try may help."""
        if self._consensus.leader.is_leader:
            try:
                await self._consensus.remove_member(NodeID(request.node_id), timeout_s=CHANGE_TIMEOUT_S)
            except NotLeaderError:
                return False
            except ConsensusError as error:
                await _abort(context, error)
            log.info("member.left", node_id=request.node_id)
            return True
        channel = self._link.channel()
        if channel is None or forwarded:
            return False
        leave = RaftMembershipStub(channel).Leave
        try:
            await leader_answer(lambda: leave(request, timeout=CHANGE_TIMEOUT_S, metadata=(_FORWARDED,)))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            await context.abort(error.code(), error.details() or "")
        return True


def why_claim_is_of_a_copy(node: Node | None, claim: bytes) -> str:
    """Why who makes this claim (a ``MachineClaim``) is not the machine of that node, as far as is known here; "" if it may be."""
    try:
        claimed = MachineClaim.FromString(claim)
    except DecodeError:
        return "what it says of its machine makes no sense"
    return why_copy(node, claimed.machine, claimed.boots) if node is not None else ""


def _is_forwarded(context: Context) -> bool:
    return _FORWARDED in tuple(context.invocation_metadata() or ())


async def _abort(context: Context, error: Exception) -> NoReturn:
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), grpc.StatusCode.UNAVAILABLE)
    await context.abort(code, str(error))


def _manager_at(node_id: NodeID, request: RaftJoinRequest) -> Callable[[Working], None]:
    def change(working: Working) -> None:
        old = working.nodes.get(node_id)
        if old is None:
            return
        node = copy_node(old)
        node.role = NodeRole.NODE_ROLE_MANAGER
        node.raft_addr, node.grpc_addr = request.raft_addr, request.grpc_addr
        if node != old:
            working.update(node)

    return change
