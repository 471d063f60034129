"""Joining a cluster, as far as the files: ask its managers until one answers, then write down what it said (A1.15)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import structlog

from base.grpc_codes import CODE_BY_NUMBER, go_text
from pki.certificates import Role
from pki.errors import (
    FrameError,
    InvalidCertificateError,
    InvalidTokenError,
    JoinRefusedError,
    JoinUnreachableError,
    PKIError,
)
from pki.join_client import JoinResult, join_cluster
from pki.node_certificate import NodeCertificate
from proto.node_pb2 import LocalState
from proto.specs_pb2 import NodeRole
from worker.membership import local_state
from worker.membership.cluster_member import InvalidRequestError, JoinRequest
from worker.membership.host import Host
from worker.membership.own_addresses import OwnAddresses
from worker.membership.state_folder import CERTIFICATES

log = structlog.get_logger(__name__)

_RETRY_S = 1.0


async def join_by_token(request: JoinRequest, *, tell: Callable[[str], None]) -> JoinResult:
    """Ask the managers until one answers, for as long as it takes.

    Args:
        tell: given what is in the way whenever nobody could be reached.

    Raises:
        InvalidRequestError: refused, or the token or the answer is not to be used.
    """
    while True:
        try:
            return await join_cluster(request.remote_addrs, request.join_token, availability=request.availability)
        except JoinUnreachableError as error:
            tell(str(error))
            log.info("join.retried", reason=str(error))
            await asyncio.sleep(_RETRY_S)
        except JoinRefusedError as error:
            code = CODE_BY_NUMBER.get(error.code, grpc.StatusCode.UNKNOWN)
            raise InvalidRequestError(go_text(code, str(error))) from error
        except (InvalidTokenError, InvalidCertificateError, FrameError, PKIError, ValueError) as error:
            raise InvalidRequestError(str(error)) from error


async def settle(
    host: Host, request: JoinRequest, addresses: OwnAddresses, result: JoinResult
) -> tuple[LocalState, NodeCertificate]:
    """Write down what the managers gave: the certificate first, by which node.json is checked. Raises: OSError."""
    identity = result.credentials.identity
    certificate = await asyncio.to_thread(NodeCertificate.create, host.state_dir / CERTIFICATES, result.credentials)
    manager = identity.role is Role.MANAGER
    state = LocalState(
        node_id=identity.node_id,
        cluster_id=identity.cluster_id,
        availability=request.availability,
        managers=result.managers,
        role=NodeRole.NODE_ROLE_MANAGER if manager else NodeRole.NODE_ROLE_WORKER,
    )
    addresses.write_to(state)
    await asyncio.to_thread(local_state.save, host.state_dir, state)
    return state, certificate
