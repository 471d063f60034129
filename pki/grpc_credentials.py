"""Credentials for gRPC that follow the node's certificate (architecture section 7, port 7946: always mutual).

Server: gRPC asks for the certificate on every new connection and takes a change at once; connections that are open
run on. Client: gRPC cannot change a channel's certificate (grpc issue 41779), so ``RotatingChannel`` makes a new
channel after a change, starts new calls there and closes the old one when its last call has ended. Stubs are made
once, on the ``RotatingChannel``.

grpcio offers no setting for the lowest TLS version: two of our own ends speak 1.3, and 1.2 with ECDHE is the floor.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio
import structlog

from base.tasks import OwnedTasks
from base.unix_rpc import rpc_error
from pki.certificates import Role
from pki.node_certificate import NodeCertificate, NodeCredentials

log = structlog.get_logger(__name__)

ChannelOptions = Sequence[tuple[str, str | int]]

T = TypeVar("T")

REQUEST_SIZE_BYTES_MAX = 5 * 1024 * 1024
"""A server takes in no larger message, whoever sends it, and reads none before its call was let in
(``manager.authorization``). What becomes an entry of the log fits."""

CONNECTIONS_MAX = 8192
"""Of one server. gRPC tells addresses apart no earlier than a call, so this is for all together."""

PING_TIMEOUT_MS = 5_000
"""An unanswered ping ends the connection after so long. ``keepalive_timeout_ms`` alone does not: gRPC waits a minute."""

STREAMS_MAX = 128
"""Calls at once on one connection; further ones wait at the client."""

_DRAIN_S = 7 * 24 * 3600.0
"""How long an old channel's calls may go on; a stream that long has met several renewals and re-opens elsewhere."""


def server_credentials(source: NodeCertificate) -> grpc.ServerCredentials:
    """For ``Server.add_secure_port``: demands a client certificate by the roots in force, serves the newest of ours."""
    given = source.current

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # On a gRPC thread, once a connection. It reads one attribute and takes no lock. Two threads that meet a
        # change at once both answer with it, which is harmless.
        nonlocal given
        newest = source.current
        if newest is given:
            return None
        given = newest
        return _server_configuration(newest)

    return grpc.dynamic_ssl_server_credentials(
        _server_configuration(given),
        fetch,  # type: ignore[arg-type]  # the stub forgets that None means "unchanged", as grpc's documentation says
        require_client_authentication=True,
    )


def channel_credentials(credentials: NodeCredentials) -> grpc.ChannelCredentials:
    """For one channel, from now to its end."""
    return grpc.ssl_channel_credentials(
        root_certificates=credentials.root.pem,
        private_key=credentials.key_pem,
        certificate_chain=credentials.chain_pem,
    )


def channel_options(server_name: str = Role.MANAGER.value) -> list[tuple[str, str | int]]:
    """The options every channel of ours has: the peer must be ``server_name``, and connections are not shared."""
    return [
        ("grpc.ssl_target_name_override", server_name),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.max_receive_message_length", 64 * 1024 * 1024),  # a node's first, complete set of assignments
    ]


def server_options() -> list[tuple[str, str | int]]:
    """The options every server of ours has: the clients' pings are welcome, a second server on the port is not."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.server_handshake_timeout_ms", 10_000),  # a stranger keeps a descriptor that long; gRPC's own is 2 min
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
        # Else each heartbeat is answered by a ping that measures the line's bandwidth, and that by the node. A window that
        # holds a report of statuses serves as well.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 256 * 1024),
        ("grpc.max_connection_age_ms", 3_600_000),  # the next call makes a new handshake; open streams go on
        ("grpc.max_concurrent_streams", STREAMS_MAX),
        ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
        ("grpc.max_receive_message_length", REQUEST_SIZE_BYTES_MAX),
    ]


def _server_configuration(credentials: NodeCredentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(credentials.key_pem, credentials.chain_pem)], root_certificates=credentials.root.pem
    )


class RotatingChannel(grpc.aio.Channel):
    """A channel to one target that is always made with the newest certificate.

    Give it to a stub like any channel and keep the stub. Everything happens on the event loop it was made on.
    A call that runs while the certificate changes is not disturbed, however long it runs.
    """

    def __init__(self, target: str, source: NodeCertificate, options: ChannelOptions = ()) -> None:
        """
        Args:
            target: gRPC target, ``host:port`` as a rule.
            source: where the credentials come from.
            options: further channel options; they win over ``channel_options``.
        """
        self.target = target
        self._source = source
        self._options = list(dict([*channel_options(), *options]).items())
        self._credentials = source.current
        self._channel = self._new_channel()
        self._generation = 0
        self._draining = OwnedTasks()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._forget = source.on_change(self._on_change)

    # What a stub hands over (serializers, flags) is passed on as it is; Any, because the types are grpc's own affair.

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Rotating(self, "unary_unary", method, args, kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Rotating(self, "unary_stream", method, args, kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Rotating(self, "stream_unary", method, args, kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Rotating(self, "stream_stream", method, args, kwargs)

    def current(self) -> tuple[int, grpc.aio.Channel]:
        """The channel for new calls and its generation, which rises by one a rotation."""
        if not self._closed and self._source.current is not self._credentials:
            self._rotate()
        return self._generation, self._channel

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.current()[1].get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.current()[1].wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.current()[1].channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Close this: calls on old channels end at once, those on the newest within ``grace`` seconds (at once: None)."""
        self._closed = True
        self._forget()
        await self._draining.close()
        await self._channel.close(grace)

    async def __aenter__(self) -> RotatingChannel:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _on_change(self, _credentials: NodeCredentials) -> None:
        """May come from any thread; late, when the loop has ended meanwhile, it is of no interest."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.current)

    def _new_channel(self) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(self.target, channel_credentials(self._credentials), options=self._options)

    def _rotate(self) -> None:
        old = self._channel
        self._credentials = self._source.current
        self._channel = self._new_channel()
        self._generation += 1
        self._draining.spawn(_drain(old), name=f"drain channel {self.target}")
        log.debug("channel.rotated", target=self.target, serial=f"{self._credentials.identity.serial:x}")


async def answer_of(call: Awaitable[T], *, if_closed: str) -> T:
    """What a call answers, also when its channel is closed under it.

    Raises:
        AioRpcError: the call's own; UNAVAILABLE with ``if_closed`` when the channel was closed: it may have been carried out.
    """
    try:
        return await call
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Nobody cancelled us: gRPC reports so that the channel was closed under the call.
        raise rpc_error(grpc.StatusCode.UNAVAILABLE, if_closed) from None


async def _drain(channel: grpc.aio.Channel) -> None:
    """Close ``channel`` when its last call has ended; at once when this is cancelled."""
    try:
        await channel.close(_DRAIN_S)
    except asyncio.CancelledError:
        await channel.close(None)
        raise


class _Rotating:
    """A multi-callable: each call goes to the channel that is current at that moment."""

    def __init__(
        self, owner: RotatingChannel, kind: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._owner, self._kind, self._method, self._args, self._kwargs = owner, kind, method, args, kwargs
        self._generation = -1
        self._callable: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        generation, channel = self._owner.current()
        if self._callable is None or generation != self._generation:
            self._callable = getattr(channel, self._kind)(self._method, *self._args, **self._kwargs)
            self._generation = generation
        return self._callable(*args, **kwargs)
