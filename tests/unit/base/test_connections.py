"""What this kernel hears of the kernels at the other ends of gRPC's connections."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from base import connections
from base.connections import KernelConnection, Peer, peer_at, peer_of
from proto.health_pb2 import HealthCheckRequest, HealthCheckResponse, LookRequest, LookResponse
from proto.health_pb2_grpc import HealthServicer, HealthStub, add_HealthServicer_to_server
from tests.waiting import until


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("ipv4:192.0.2.1:4711", ("192.0.2.1", 4711)),
        ("ipv6:[2001:db8::1]:4711", ("2001:db8::1", 4711)),
        ("ipv6:%5B2001:db8::1%5D:4711", ("2001:db8::1", 4711)),
        ("ipv6:[::ffff:192.0.2.1]:4711", ("192.0.2.1", 4711)),
        ("unix:/run/swarm/manager.sock", None),
        ("unix:", None),
        ("", None),
    ],
)
def test_a_peer_is_read_as_grpc_writes_it(text: str, peer: Peer | None) -> None:
    assert peer_of(text) == peer


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("192.0.2.1:7946", ("192.0.2.1", 7946)),
        ("[2001:db8::1]:7946", ("2001:db8::1", 7946)),
        ("manager-1:7946", None),
        ("192.0.2.1", None),
        ("192.0.2.1:", None),
        ("unix:/run/manager.sock", None),
    ],
)
def test_an_address_is_a_peer_when_it_is_literal(text: str, peer: Peer | None) -> None:
    assert peer_at(text) == peer


class Health(HealthServicer):
    def __init__(self) -> None:
        self.peers: list[str] = []

    async def Check(  # noqa: N802 - the name is the RPC's
        self, request: HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> HealthCheckResponse:
        self.peers.append(context.peer())
        return HealthCheckResponse()

    async def Look(  # noqa: N802 - the name is the RPC's
        self, request: LookRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> LookResponse:
        raise NotImplementedError


@asynccontextmanager
async def called(addr: str) -> AsyncIterator[tuple[Peer, Callable[[], object]]]:
    """A server on that address and a client that has called it: the client's end, and what closes it."""
    server, health = grpc.aio.server(), Health()
    add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port(addr)
    await server.start()
    channel = grpc.aio.insecure_channel(addr.rpartition(":")[0].replace("0.0.0.0", "127.0.0.1") + f":{port}")
    try:
        await HealthStub(channel).Check(HealthCheckRequest())
        peer = peer_of(health.peers[0])
        assert peer is not None
        yield peer, channel.close
    finally:
        await channel.close()
        await server.stop(None)


@pytest.mark.parametrize("addr", ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"])
async def test_the_connection_of_a_peer_is_found_and_kept_alive(addr: str) -> None:
    async with called(addr) as (peer, close):
        (found,) = connections.find_each(peer)
        assert connections.find_all([peer], {found.descriptor}) == {peer: found}
        with socket.socket(fileno=os.dup(found.descriptor)) as connection:
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == connections.KEEP_ALIVE_S
        silence_s = found.silence_s()
        assert silence_s is not None
        assert 0 <= silence_s < 60
        # Idle, it is heard all the same: its kernel acknowledges.
        await until(lambda: (found.silence_s() or 0) > 0.5)
        await until(lambda: (found.silence_s() or 9) < 0.5)
        await close()  # type: ignore[misc]  # a coroutine
        await until(lambda: found.silence_s() is None)


def test_each_connection_of_one_peer_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = ("127.0.0.1", server.getsockname()[1])
        with socket.create_connection(peer) as one, socket.create_connection(peer) as other:
            found = connections.find_each(peer)
            assert [connection.descriptor for connection in found] == sorted([one.fileno(), other.fileno()])


async def test_many_connections_are_found_at_once() -> None:
    async with called("127.0.0.1:0") as (first, _), called("127.0.0.1:0") as (second, _):
        found = connections.find_all([first, second, ("192.0.2.1", 1)], ())
        assert {peer: connection.peer for peer, connection in found.items()} == {first: first, second: second}
        assert connections.find_all([second], {found[second].descriptor}) == {second: found[second]}
        assert connections.find_all([], ()) == {}


def test_a_descriptor_that_names_something_else_now_is_not_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, address = server.accept()
        with accepted:
            assert KernelConnection(address, accepted.fileno(), socket.AF_INET).silence_s() is not None
            assert KernelConnection(address, client.fileno(), socket.AF_INET).silence_s() is None
            assert KernelConnection(address, server.fileno(), socket.AF_INET).silence_s() is None
            assert KernelConnection(("192.0.2.1", 1), accepted.fileno(), socket.AF_INET).silence_s() is None
            assert accepted.send(b"still open") == 10
    with open("/dev/null") as file:
        assert KernelConnection(("127.0.0.1", 1), file.fileno(), socket.AF_INET).silence_s() is None
        file.read()
    assert KernelConnection(("127.0.0.1", 1), 10**6, socket.AF_INET).silence_s() is None
