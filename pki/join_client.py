"""Joining a cluster with a token: fetch the root, compare its digest, and only then send the secret (A1.15)."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ssl
from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec
import structlog

from pki.addresses import split_host_port
from pki.certificates import Role, TrustRoot, new_csr, root_digest
from pki.errors import (
    CertificateExpiredError,
    FingerprintMismatchError,
    FrameError,
    InvalidCertificateError,
    JoinRefusedError,
    JoinUnreachableError,
)
from pki.join import JoinClientProtocol, encode_frame
from pki.keys import new_key
from pki.node_certificate import NodeCredentials, utc_now
from pki.tls import JOIN_ALPN, join_context, root_fetch_context
from pki.tokens import JoinToken, parse_token
from proto.ca_pb2 import (
    GetRootCACertificateRequest,
    IssueNodeCertificateRequest,
    IssueNodeCertificateResponse,
    JoinRequest,
    JoinResponse,
    ManagerAddress,
)
from proto.specs_pb2 import NodeAvailability

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 15.0
_READ_SIZE_BYTES = 64 * 1024

_OUT_OF_TIME = frozenset({9, 10})
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""

_CLOCKS = "do the clocks of this host and of the manager agree?"
_UNAVAILABLE = 14
"""gRPC's code for "not now": another manager, or the same one later, may say yes."""


class JoinResult(msgspec.Struct, frozen=True):
    """What a node has after joining.

    Attributes:
        credentials: key, certificate and root; verified to be ours and by the root the token names. The node's ID,
            role and cluster are ``credentials.identity``.
        managers: every manager of the cluster, as the one that answered knows them.
    """

    credentials: NodeCredentials
    managers: Sequence[ManagerAddress]


async def join_cluster(
    remote_addrs: Sequence[str],
    token: str,
    *,
    availability: NodeAvailability.ValueType = NodeAvailability.NODE_AVAILABILITY_UNSPECIFIED,
    clock: Callable[[], datetime] = utc_now,
) -> JoinResult:
    """Join through the first manager that answers. The caller bounds the time, and keeps the result on disk.

    Args:
        remote_addrs: ``HOST[:PORT]`` of managers, tried in order (Swarm only ever tries the first).
        token: the join token.
        availability: what the node is to be at first; unspecified is active.
        clock: aware time, to check the certificate against.

    Raises:
        InvalidTokenError: not a join token; nothing was sent.
        ValueError: no address; AddressError, one that is none; nothing was sent.
        FingerprintMismatchError: the peer is of another cluster, or an impostor; the secret was not sent.
        JoinRefusedError: a manager said no; final.
        JoinUnreachableError: none answered, or none could decide now; later may be better.
        InvalidCertificateError, FrameError: what answered is not one of our managers.
    """
    parsed = parse_token(token)
    addresses = [split_host_port(text) for text in remote_addrs]
    if not addresses:
        raise ValueError("at least one RemoteAddr is required to join")
    failures: list[str] = []
    for host, port in addresses:
        try:
            return await _join_at(host, port, parsed, availability, clock)
        except JoinUnreachableError as error:
            failures.append(str(error))
            log.info("join.manager_skipped", host=host, port=port, reason=str(error))
    raise JoinUnreachableError("; ".join(failures))


async def fetch_root(host: str, port: int, token: JoinToken) -> TrustRoot:
    """Ask whoever listens for its root, and believe it if the token names it.

    Raises:
        FingerprintMismatchError: another root.
        JoinUnreachableError, FrameError, InvalidCertificateError, JoinRefusedError: as ``join_cluster``.
    """
    request = JoinRequest(get_root_ca_certificate=GetRootCACertificateRequest())
    response = await _ask(host, port, root_fetch_context(), request)
    if response.WhichOneof("response") != "get_root_ca_certificate":
        raise FrameError("join protocol: the answer is not to the question")
    pem = response.get_root_ca_certificate.root_ca_pem
    if not hmac.compare_digest(root_digest(pem), token.root_digest):
        raise FingerprintMismatchError(expected=token.root_digest)
    return TrustRoot(pem)


async def _join_at(
    host: str,
    port: int,
    token: JoinToken,
    availability: NodeAvailability.ValueType,
    clock: Callable[[], datetime],
) -> JoinResult:
    root = await fetch_root(host, port, token)
    key = new_key()
    request = JoinRequest(
        issue_node_certificate=IssueNodeCertificateRequest(
            csr_pem=new_csr(key), token=token.text, availability=availability
        )
    )
    response = await _ask(host, port, join_context(root), request)
    if response.WhichOneof("response") != "issue_node_certificate":
        raise FrameError("join protocol: the answer is not to the question")
    answer = response.issue_node_certificate
    credentials = NodeCredentials.verified(chain_pem=answer.certificate_chain_pem, key=key, root=root)
    _check_answer(credentials, answer, clock())
    return JoinResult(credentials=credentials, managers=tuple(answer.managers))


def _check_answer(credentials: NodeCredentials, answer: IssueNodeCertificateResponse, now: datetime) -> None:
    identity = credentials.identity
    try:
        identity.check_time(now)
    except CertificateExpiredError as error:
        raise CertificateExpiredError(f"{error}; {_CLOCKS}") from error
    if identity.node_id != answer.node_id or identity.cluster_id != answer.cluster_id:
        raise InvalidCertificateError("node certificate: not for the node that the manager says we are")


async def _ask(host: str, port: int, context: ssl.SSLContext, request: JoinRequest) -> JoinResponse:
    """One connection, one question, one answer."""
    where = f"{host}:{port}"
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(
                host,
                port,
                ssl=context,
                server_hostname=Role.MANAGER.value if context.check_hostname else None,
            )
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _OUT_OF_TIME:
            raise InvalidCertificateError(f"{where}: {error.verify_message}; {_CLOCKS}") from error
        raise InvalidCertificateError(
            f"{where} is no manager of the cluster of this token: {error.verify_message}"
        ) from error
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise JoinUnreachableError(f"could not connect to {where}: {str(error) or 'timeout'}") from error
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            response = await _exchange(reader, writer, request)
    except (OSError, TimeoutError) as error:
        raise JoinUnreachableError(f"no answer from {where}: {str(error) or 'timeout'}") from error
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await writer.wait_closed()
    if response.HasField("error"):
        if response.error.code == _UNAVAILABLE:
            raise JoinUnreachableError(f"{where}: {response.error.message}")
        raise JoinRefusedError(response.error.code, response.error.message)
    return response


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: JoinRequest) -> JoinResponse:
    connection = writer.get_extra_info("ssl_object")
    if connection.selected_alpn_protocol() != JOIN_ALPN:
        raise FrameError("the peer does not speak the join protocol: not a manager's port 2377")
    protocol = JoinClientProtocol()
    writer.write(encode_frame(request))
    await writer.drain()
    while data := await reader.read(_READ_SIZE_BYTES):
        response = protocol.receive(data)
        if response is not None:
            return response
    raise ConnectionResetError("connection closed before the answer")
