"""What this host's kernel knows of the connections of this process: when it last heard the other kernel.

A connection without traffic says nothing about its other end. TCP's keep-alive does, in the kernels alone: a probe a
second that the other kernel acknowledges, whatever its processes do, and no work for this process but to ask now and
then (``tcp_info``). gRPC has no door to its sockets, so they are found by the address of the peer; they stay gRPC's.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

KEEP_ALIVE_S = 1
"""After so long without a packet the kernel asks, and again after as long."""

_LAST_RECEIVED, _LAST_RECEIVED_OFFSET, _INFO_SIZE_BYTES = struct.Struct("=II"), 52, 60
"""``tcpi_last_data_recv`` and ``tcpi_last_ack_recv`` in ``struct tcp_info`` (linux/tcp.h), in milliseconds."""

Peer = tuple[str, int]


def peer_of(text: str) -> Peer | None:
    """The address and port that gRPC's ``context.peer()`` names; None for what is no TCP connection."""
    kind, _, rest = unquote(text).partition(":")
    return peer_at(rest) if kind in ("ipv4", "ipv6") else None


def peer_at(text: str) -> Peer | None:
    """The address and port of ``host:port``; None where the host is no literal IP address."""
    host, _, port = text.rpartition(":")
    host = _plain(host.removeprefix("[").removesuffix("]"))
    try:
        ipaddress.ip_address(host)
        return host, int(port)
    except ValueError:
        return None


def _plain(host: str) -> str:
    return host.removeprefix("::ffff:") if "." in host else host


@dataclass(frozen=True, slots=True)
class KernelConnection:
    """One connection.

    Attributes:
        peer: the address of its other end.
        descriptor: gRPC's, which may close it at any time; the number may name something else then.
    """

    peer: Peer
    descriptor: int
    family: socket.AddressFamily

    def silence_s(self) -> float | None:
        """Seconds since anything came from the other kernel; None when the connection is gone."""
        silences = self.silences_s()
        return None if silences is None else min(silences)

    def silences_s(self) -> tuple[float, float] | None:
        """Seconds since the other process's bytes came in, and since the other kernel acknowledged anything.

        None when the connection is gone.
        """
        # A leader asks this of a thousand connections twice a second: no family is looked up again, and the plain
        # class of the interpreter does not make an enumeration of each number.
        try:
            connection = socket.SocketType(self.family, socket.SOCK_STREAM, 0, self.descriptor)
        except OSError:
            return None
        try:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE_BYTES)
            host, port = connection.getpeername()[:2]
        except (OSError, ValueError):  # ValueError: the name of a unix socket
            return None
        finally:
            connection.detach()
        if port != self.peer[1] or (host != self.peer[0] and _plain(host) != self.peer[0]):
            return None
        data_ms, acknowledged_ms = _LAST_RECEIVED.unpack_from(info, _LAST_RECEIVED_OFFSET)
        return data_ms / 1000, acknowledged_ms / 1000


def find_each(peer: Peer) -> list[KernelConnection]:
    """All connections of this process with that peer, with keep-alive switched on, by descriptor."""
    return [connection for connection in _connections(()) if connection.peer == peer and _keep_alive(connection)]


def find_all(peers: Iterable[Peer], taken: Container[int]) -> dict[Peer, KernelConnection]:
    """A connection of this process with each of those peers, with keep-alive switched on. All descriptors are looked at once.

    Args:
        taken: descriptors known to be others', looked at last: there may be a thousand of them.
    """
    wanted, found = {*peers}, dict[Peer, KernelConnection]()
    if wanted:
        for connection in _connections(taken):
            if connection.peer in wanted and _keep_alive(connection):
                wanted.discard(connection.peer)
                found[connection.peer] = connection
                if not wanted:
                    break
    return found


def _connections(taken: Container[int]) -> Iterator[KernelConnection]:
    """Over TCP, whoever's; those of descriptors that are taken last."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # without descriptors there is none to look with, either
        return
    for descriptor in sorted(numbers, key=lambda number: (number in taken, number)):
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with _borrowed(descriptor) as connection:
                    if (peer := _peer(connection)) is not None:
                        yield KernelConnection(peer, descriptor, connection.family)
        except OSError:
            continue  # closed meanwhile, or not connected


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """A socket object that leaves the descriptor open."""
    connection = socket.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def _peer(connection: socket.socket) -> Peer | None:
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    host, port = connection.getpeername()[:2]
    return _plain(host), port


def _keep_alive(connection: KernelConnection) -> bool:
    """False when it is gone by now."""
    try:
        with _borrowed(connection.descriptor) as borrowed:
            borrowed.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_S)
            borrowed.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_S)
            borrowed.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except OSError:
        return False
    return True
