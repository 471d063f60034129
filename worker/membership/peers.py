"""What this node asks of managers of other hosts by itself, its agent's sessions apart."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import grpc
import grpc.aio
import structlog

from pki.grpc_credentials import RotatingChannel
from pki.node_certificate import NodeCertificate
from proto.ca_pb2 import ManagerAddress, RenewCertificateRequest, RenewCertificateResponse
from proto.ca_pb2_grpc import NodeCAStub
from proto.raft_pb2 import RaftLeaveRequest
from proto.raft_pb2_grpc import RaftMembershipStub

log = structlog.get_logger(__name__)

LEAVE_TIMEOUT_S = 10.0
RENEW_TIMEOUT_S = 5.0


async def ask_for_renewal(
    managers: Sequence[ManagerAddress], certificate: NodeCertificate, csr_pem: bytes
) -> RenewCertificateResponse:
    """Ask the managers in turn, the leader first.

    Raises:
        TimeoutError: no manager is known.
        grpc.aio.AioRpcError: what the last one said.
    """
    failure: grpc.aio.AioRpcError | None = None
    for manager in managers:
        async with RotatingChannel(manager.grpc_addr, certificate) as channel:
            try:
                request = RenewCertificateRequest(csr_pem=csr_pem)
                answer: RenewCertificateResponse = await NodeCAStub(channel).RenewCertificate(
                    request, timeout=RENEW_TIMEOUT_S
                )
                return answer
            except grpc.aio.AioRpcError as error:
                failure = error
    if failure is None:
        raise TimeoutError("no manager is known")
    raise failure


async def ask_out(managers: Sequence[ManagerAddress], certificate: NodeCertificate) -> None:
    """Have the other managers take this host's out of the Raft group: it is stopped, and cannot ask any more.

    It may be a member by now though it never answered here: a member that is gone counts for the quorum. Returns when
    one has said yes or no, and after 10 s at the latest.
    """
    node_id = certificate.identity.node_id
    request = RaftLeaveRequest(node_id=node_id)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LEAVE_TIMEOUT_S):
            for manager in [manager for manager in managers if manager.node_id != node_id]:
                async with RotatingChannel(manager.grpc_addr, certificate) as channel:
                    try:
                        await RaftMembershipStub(channel).Leave(request, timeout=LEAVE_TIMEOUT_S)
                    except grpc.aio.AioRpcError as error:
                        log.info("member.not_left", manager=manager.grpc_addr, reason=error.details())
                        if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                            continue
                return
