"""Joining a cluster with a token: fetch the root, compare its digest, believe the peer, and only then send the secret
(A1.15).

All of it on one connection, which begins with anybody. Once the root is the one that the token names, the certificate of
this very connection has to be a manager's by that root; that the peer holds the certificate's key the handshake has shown
(TLS 1.3 signs what was said in it, whether the certificate is believed or not). So what follows goes to a manager alone,
as it would on a second connection, which every joining node would cost its manager a handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime

import msgspec
import structlog

from pki.addresses import split_host_port
from pki.certificates import TrustRoot, new_csr, root_digest
from pki.errors import (
    CertificateExpiredError,
    FingerprintMismatchError,
    FrameError,
    InvalidCertificateError,
    JoinRefusedError,
    JoinUnreachableError,
    UntrustedCertificateError,
)
from pki.join import JoinClientProtocol, encode_frame
from pki.keys import new_key
from pki.node_certificate import NodeCredentials, utc_now
from pki.tls import JOIN_ALPN, join_context, peer_certificate
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


async def _join_at(
    host: str,
    port: int,
    token: JoinToken,
    availability: NodeAvailability.ValueType,
    clock: Callable[[], datetime],
) -> JoinResult:
    async with _connected(host, port) as connection:
        root = await _fetch_root(connection, token)
        connection.require_manager(root, clock())  # before the secret leaves
        key = new_key()
        request = IssueNodeCertificateRequest(csr_pem=new_csr(key), token=token.text, availability=availability)
        response = await connection.ask(JoinRequest(issue_node_certificate=request))
    if response.WhichOneof("response") != "issue_node_certificate":
        raise FrameError("join protocol: the answer is not to the question")
    answer = response.issue_node_certificate
    credentials = NodeCredentials.verified(chain_pem=answer.certificate_chain_pem, key=key, root=root)
    _check_answer(credentials, answer, clock())
    return JoinResult(credentials=credentials, managers=tuple(answer.managers))


async def _fetch_root(connection: _Connection, token: JoinToken) -> TrustRoot:
    """Ask whoever answers for its root, and believe that if the token names it."""
    response = await connection.ask(JoinRequest(get_root_ca_certificate=GetRootCACertificateRequest()))
    if response.WhichOneof("response") != "get_root_ca_certificate":
        raise FrameError("join protocol: the answer is not to the question")
    pem = response.get_root_ca_certificate.root_ca_pem
    if not hmac.compare_digest(root_digest(pem), token.root_digest):
        raise FingerprintMismatchError(expected=token.root_digest)
    return TrustRoot(pem)


def _check_answer(credentials: NodeCredentials, answer: IssueNodeCertificateResponse, now: datetime) -> None:
    identity = credentials.identity
    try:
        identity.check_time(now)
    except CertificateExpiredError as error:
        raise CertificateExpiredError(f"{error}; {_CLOCKS}") from error
    if identity.node_id != answer.node_id or identity.cluster_id != answer.cluster_id:
        raise InvalidCertificateError("node certificate: not for the node that the manager says we are")


@contextlib.asynccontextmanager
async def _connected(host: str, port: int) -> AsyncIterator[_Connection]:
    """A connection with whoever listens there. Raises: JoinUnreachableError, FrameError."""
    where = f"{host}:{port}"
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=join_context())
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise JoinUnreachableError(f"could not connect to {where}: {str(error) or 'timeout'}") from error
    try:
        yield _Connection(where, reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await writer.wait_closed()


class _Connection:
    """Questions and answers, one after another. It may be with anybody until ``require_manager`` has returned."""

    def __init__(self, where: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._where, self._reader, self._writer = where, reader, writer
        self._tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        if self._tls.selected_alpn_protocol() != JOIN_ALPN:
            raise FrameError("the peer does not speak the join protocol: not a manager's port 2377")

    def require_manager(self, root: TrustRoot, now: datetime) -> None:
        """Believe that the other end is a manager by that root. Raises: InvalidCertificateError."""
        try:
            certificate = peer_certificate(self._tls)
            if certificate is None:
                raise UntrustedCertificateError("it showed no certificate")
            root.verify_manager(certificate, now)
        except CertificateExpiredError as error:
            raise InvalidCertificateError(f"{self._where}: {error}; {_CLOCKS}") from error
        except (UntrustedCertificateError, InvalidCertificateError) as error:
            text = f"{self._where} is no manager of the cluster of this token: {error}"
            raise InvalidCertificateError(text) from error

    async def ask(self, request: JoinRequest) -> JoinResponse:
        """Raises: JoinRefusedError, JoinUnreachableError, FrameError."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                response = await self._exchange(request)
        except (OSError, TimeoutError) as error:
            raise JoinUnreachableError(f"no answer from {self._where}: {str(error) or 'timeout'}") from error
        if response.HasField("error"):
            if response.error.code == _UNAVAILABLE:
                raise JoinUnreachableError(f"{self._where}: {response.error.message}")
            raise JoinRefusedError(response.error.code, response.error.message)
        return response

    async def _exchange(self, request: JoinRequest) -> JoinResponse:
        protocol = JoinClientProtocol()
        self._writer.write(encode_frame(request))
        await self._writer.drain()
        while data := await self._reader.read(_READ_SIZE_BYTES):
            response = protocol.receive(data)
            if response is not None:
                return response
        raise ConnectionResetError("connection closed before the answer")
