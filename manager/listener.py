"""The TLS listener on 2377: joins and Raft streams behind one port, told apart by ALPN (architecture section 7).

gRPC can only demand a client certificate or ignore it; a node that joins has none yet, a manager must show one. So
this is asyncio: the handshake asks for a certificate (``CERT_OPTIONAL``), and what may follow depends on it:

- ``swarm-join/1``: anybody; ``manager.ca.service.JoinService``;
- ``swarm-raft/1``: a manager of this cluster that was not removed; the stream is then the Raft transport's.

Everything is bounded before it costs something: connections in all, those that have not shown who they are by address
and in all, the time of a handshake. The context is looked up for each connection, so a renewed certificate is served
from the next one on, and streams that are open stay open.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from base.rate_limit import RateLimit
from base.tasks import OwnedTasks
from manager.ca.service import JoinService
from manager.log_limit import LogLimit
from pki.certificates import Identity
from pki.errors import PKIError, UntrustedCertificateError
from pki.node_certificate import NodeCertificate, utc_now
from pki.tls import JOIN_ALPN, RAFT_ALPN, TLSContexts, peer_identity, require_manager

log = structlog.get_logger(__name__)

HANDSHAKE_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0
_BACKLOG = 128
_ACCEPT_PAUSE_S = 0.1
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_SUCH_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
_STREAM_LIMIT_BYTES = 256 * 1024

RaftAccept = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]]
"""Takes a verified manager's stream and its node ID; owns the stream until it returns, then it is closed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What strangers may take up.

    Attributes:
        strangers_max: connections at once that are in a handshake or joining.
        strangers_per_address_max: of these, from one address.
        burst_per_address: connections that an address may make at once ...
        rate_per_address_s: ... and how many more a second; a handshake costs milliseconds of this thread.
        burst, rate_s: the same for all together: Raft's heartbeats wait on this thread, too.
    """

    strangers_max: int = 512
    strangers_per_address_max: int = 64
    burst_per_address: int = 128
    rate_per_address_s: float = 32.0
    burst: int = 256
    rate_s: float = 128.0


def source_network(address: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 that an IPv6 host may pick its addresses from."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    return str(ipaddress.IPv6Network((int(parsed), 64), strict=False))


class Listener:
    """The open port. Made, started and closed on one loop (the Raft thread's)."""

    def __init__(
        self,
        source: NodeCertificate,
        *,
        join: JoinService,
        raft_accept: RaftAccept,
        refuses_manager: Callable[[Identity], bool],
        is_member: Callable[[str], bool] = lambda _network: False,
        limits: Limits = Limits(),
    ) -> None:
        """
        Args:
            source: our certificate; the newest is served.
            join: serves those who join.
            raft_accept: takes the streams of managers.
            refuses_manager: whether the certificate of a removed or demoted node is shown; quick, safe on this thread.
            is_member: whether a manager of the group has an address in that ``source_network``. It waits for no stranger:
                only the limits of one address count for it.
            limits: see ``Limits``.
        """
        self._contexts = TLSContexts(source)
        self._source, self._join, self._raft_accept = source, join, raft_accept
        self._refuses_manager, self._is_member, self._limits = refuses_manager, is_member, limits
        self._sockets: list[socket.socket] = []
        self._acceptors, self._connections = OwnedTasks(), OwnedTasks()
        self._strangers: Counter[str] = Counter()
        self._rate = RateLimit(limits.burst_per_address, limits.rate_per_address_s)
        self._rate_of_all = RateLimit(limits.burst, limits.rate_s)
        self._lines = LogLimit()

    async def start(self, host: str, port: int) -> None:
        """Listen on every address of ``host`` (empty: all).

        Raises:
            OSError: the address is in use, or not one of this host.
        """
        loop = asyncio.get_running_loop()
        self._sockets = await _listening_sockets(loop, host, port)
        for server in self._sockets:
            self._acceptors.spawn(self._accept(server), name=f"listener {server.getsockname()}")
        log.info("listener.started", addresses=[str(server.getsockname()) for server in self._sockets])

    @property
    def port(self) -> int:
        """The port in use, also when 0 was asked for."""
        return int(self._sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and close every connection."""
        await self._acceptors.close()
        for server in self._sockets:
            server.close()
        await self._connections.close()

    async def _accept(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(server)
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    if (left_out := self._lines.due("accept")) is not None:
                        log.error(
                            "listener.accept_paused", reason=str(error), pause_s=_ACCEPT_PAUSE_S, left_out=left_out
                        )
                    await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue  # the rest is about a connection that is gone already
            peer = source_network(str(address[0]))
            if not self._admit(peer):
                connection.close()
                continue
            self._connections.spawn(self._serve(connection, peer), name=f"2377 {peer}")

    def _admit(self, peer: str) -> bool:
        limits, now_s = self._limits, asyncio.get_running_loop().time()
        admitted = self._strangers[peer] < limits.strangers_per_address_max and self._rate.take(peer, now_s)
        if admitted and not self._is_member(peer):
            admitted = self._strangers.total() < limits.strangers_max and self._rate_of_all.take("", now_s)
        if not admitted:
            if (left_out := self._lines.due(("refused", peer))) is not None:
                reason = "too many connections without a certificate"
                log.warning("connection.refused", peer=peer, reason=reason, left_out=left_out)
            return False
        self._strangers[peer] += 1
        return True

    async def _serve(self, connection: socket.socket, peer: str) -> None:
        stranger = _Once(lambda: self._forget(peer))
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await self._handshake(connection)
            await self._route(reader, writer, peer, stranger)
        except (OSError, TimeoutError, EOFError, PKIError) as error:
            if (left_out := self._lines.due(("failed", peer))) is not None:
                reason = str(error) or type(error).__name__
                log.info("connection.failed", peer=peer, reason=reason, left_out=left_out)
        finally:
            stranger()
            if writer:
                await _close(writer)

    def _forget(self, peer: str) -> None:
        self._strangers[peer] -= 1
        if not self._strangers[peer]:
            del self._strangers[peer]

    async def _handshake(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            context = self._contexts.listener()
        except BaseException:
            connection.close()
            raise
        # From here on the socket is its transport's, which closes it also when the handshake fails: closing it here
        # as well would free its number under the transport's feet.
        reader = asyncio.StreamReader(limit=_STREAM_LIMIT_BYTES, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            connection,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
            ssl_shutdown_timeout=CLOSE_TIMEOUT_S,
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _route(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str, stranger: Callable[[], None]
    ) -> None:
        tls = writer.get_extra_info("ssl_object")
        spoken = tls.selected_alpn_protocol()
        if spoken == JOIN_ALPN:
            await self._join.serve(reader, writer, peer)
        elif spoken == RAFT_ALPN:
            identity = self._require_member(peer_identity(tls))
            stranger()
            await self._raft_accept(reader, writer, identity.node_id)
        else:
            raise UntrustedCertificateError(f"peer speaks neither {JOIN_ALPN} nor {RAFT_ALPN}")

    def _require_member(self, peer: Identity | None) -> Identity:
        identity = require_manager(peer, self._source.identity.cluster_id)
        identity.check_time(utc_now())
        if self._refuses_manager(identity):
            raise UntrustedCertificateError(f"node {identity.node_id} was removed from the cluster or demoted")
        return identity


class _Once:
    """Calls a function the first time it is called."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function: Callable[[], None] | None = function

    def __call__(self) -> None:
        function, self._function = self._function, None
        if function:
            function()


async def _close(writer: asyncio.StreamWriter) -> None:
    """Say goodbye for a moment, then hang up: the peer may not be listening."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await writer.wait_closed()
    writer.transport.abort()


async def _listening_sockets(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[socket.socket]:
    where = f"{host or '*'}:{port}"
    try:
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from error
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                sockets.append(_listening_socket(family, address))
            except OSError as error:
                if error.errno not in _NO_SUCH_FAMILY:
                    raise
                missing = error  # a host without IPv6 is told about [::] all the same
        if not sockets and missing:
            raise missing
    except OSError as error:
        for server in sockets:
            server.close()
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from error
    return sockets


def _listening_socket(family: int, address: tuple[object, ...]) -> socket.socket:
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setblocking(False)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(address)
        server.listen(_BACKLOG)
    except OSError:
        server.close()
        raise
    return server
