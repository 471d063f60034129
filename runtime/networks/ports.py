"""Which host port leads to which container port, and the claim on the host ports.

A claim is a bound socket that never listens: the kernel then refuses the port to everybody else, and finds a free one
when the user leaves the choice. The traffic itself never reaches it, nftables redirects it before.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Sequence

import msgspec

from base.numbers import natural
from runtime.errors import InvalidParameterError, UnavailableError
from runtime.networks.rules import PublishedPort
from runtime.types import ContainerConfig, HostConfig, PortBinding

ANY_ADDRESS = "0.0.0.0"
PORT_MAX = 65535
_QUOTED_MAX = 200


class PortRequest(msgspec.Struct, frozen=True):
    """``host_ports`` are to be tried in order; (0,) is any free one."""

    protocol: str
    container_port: int
    host_ip: str
    host_ports: tuple[int, ...]


def requests(config: ContainerConfig, host: HostConfig) -> list[PortRequest]:
    """What a container publishes. Raises InvalidParameterError."""
    wanted: dict[str, Sequence[PortBinding]] = {key: value or () for key, value in (host.PortBindings or {}).items()}
    if host.PublishAllPorts:
        for key in config.ExposedPorts or ():
            wanted.setdefault(key if "/" in key else f"{key}/tcp", ())
    found = []
    for key, bindings in wanted.items():
        protocol, port = parse_port(key)
        found += [
            PortRequest(protocol, port, _host_address(binding.HostIp), _host_ports(binding.HostPort))
            for binding in bindings or (PortBinding(),)
        ]
    return found


def requests_of(published: Sequence[PublishedPort]) -> list[PortRequest]:
    """For the very ports that are published."""
    return [PortRequest(each.protocol, each.container_port, each.host_ip, (each.host_port,)) for each in published]


def _host_address(text: str) -> str:
    """An address, and no name: bind(2) would ask DNS for that, and the text goes into a rule."""
    try:
        address = ipaddress.ip_address(text or ANY_ADDRESS)
    except ValueError:
        raise InvalidParameterError(f"invalid IP address: {text[:100]!r}") from None
    if address.version != 4:
        raise InvalidParameterError(f"cannot publish on {address}: the bridge network has no IPv6")
    return str(address)


def parse_port(key: str) -> tuple[str, int]:
    """("tcp", 80) of "80/tcp" or "80". Raises InvalidParameterError."""
    number, _, protocol = key.partition("/")
    if not (port := natural(number, largest=PORT_MAX)):
        raise InvalidParameterError(f"invalid port specification: {key[:_QUOTED_MAX]!r}")
    if (protocol or "tcp") not in ("tcp", "udp", "sctp"):
        raise InvalidParameterError(f"invalid proto: {protocol}")
    return protocol or "tcp", port


def _host_ports(text: str) -> tuple[int, ...]:
    first, separator, last = (text or "0").partition("-")
    low, high = (natural(number, largest=PORT_MAX) for number in (first, last if separator else first))
    if low is None or high is None or low > high:
        raise InvalidParameterError(f"invalid port specification: {text[:_QUOTED_MAX]!r}")
    return tuple(range(low, high + 1))


class PortClaims:
    """The host ports in use, by owner (an endpoint's ID)."""

    def __init__(self) -> None:
        self._sockets: dict[str, list[socket.socket]] = {}
        self._ports: dict[str, list[PublishedPort]] = {}

    def all(self) -> list[PublishedPort]:
        """Every published port."""
        return [port for ports in self._ports.values() for port in ports]

    def claim(self, owner: str, wanted: Sequence[PortRequest], container_ip: str) -> list[PublishedPort]:
        """All or none. Raises UnavailableError with dockerd's text when a port is taken."""
        if not wanted:
            return []
        held: list[socket.socket] = []
        ports = []
        try:
            for request in wanted:
                held.append(_bind(request))
                number = held[-1].getsockname()[1]
                ports.append(
                    PublishedPort(request.protocol, request.host_ip, number, container_ip, request.container_port)
                )
        except BaseException:
            for made in held:
                made.close()
            raise
        self._sockets[owner], self._ports[owner] = held, ports
        return ports

    def adopt(self, owner: str, ports: Sequence[PublishedPort]) -> None:
        """Take back the ports of an owner that was there before; a lost claim stays published."""
        held = []
        for port in ports:
            with contextlib.suppress(UnavailableError):
                held.append(_bind(PortRequest(port.protocol, port.container_port, port.host_ip, (port.host_port,))))
        self._sockets[owner], self._ports[owner] = held, list(ports)

    def release(self, owner: str) -> bool:
        """Give them back; true when there were any."""
        for held in self._sockets.pop(owner, ()):
            held.close()
        return bool(self._ports.pop(owner, None))

    def close(self) -> None:
        """Let go of every socket."""
        for owner in list(self._sockets):
            self.release(owner)


def _bind(request: PortRequest) -> socket.socket:
    kinds = {"tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0), "sctp": (socket.SOCK_STREAM, 132)}
    kind, protocol = kinds[request.protocol]
    for port in request.host_ports:
        try:
            made = socket.socket(socket.AF_INET, kind, protocol)
        except OSError as error:
            raise UnavailableError(f"cannot publish {request.protocol} ports on this host: {error.strerror}") from None
        try:
            made.bind((request.host_ip, port))
        except OSError as error:
            made.close()
            if error.errno != errno.EADDRINUSE:
                raise UnavailableError(
                    f"failed to bind host port {request.host_ip}:{port}/{request.protocol}: {error.strerror}"
                ) from None
        else:
            return made
    raise UnavailableError(
        f"failed to set up container networking: Bind for {request.host_ip}:{request.host_ports[0]} failed: "
        "port is already allocated"
    )
