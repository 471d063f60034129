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
from runtime.networks.rules import ANY_IPV4, ANY_IPV6, PublishedPort
from runtime.types import ContainerConfig, HostConfig, PortBinding

PORT_MAX = 65535
_QUOTED_MAX = 200
_TRIES = 32
"""Of a port that the kernel chooses on one address, until it is free on the others too."""


class PortRequest(msgspec.Struct, frozen=True):
    """``host_ports`` are to be tried in order; (0,) is any free one.

    ``host_ip`` "" is where the network publishes by default, "0.0.0.0" and "::" each address of the host in one family.
    """

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
    """For the very ports that are published; one on each address of both families is one on each address."""
    keys = {(each.protocol, each.container_port, each.host_port, each.host_ip) for each in published}

    def is_twin(port: PublishedPort) -> bool:
        other = {ANY_IPV4: ANY_IPV6, ANY_IPV6: ANY_IPV4}.get(port.host_ip)
        return (port.protocol, port.container_port, port.host_port, other) in keys

    return [
        PortRequest(each.protocol, each.container_port, "" if is_twin(each) else each.host_ip, (each.host_port,))
        for each in published
        if not (is_twin(each) and each.host_ip == ANY_IPV6)
    ]


def requests_again(asked: Sequence[PortRequest], published: Sequence[PublishedPort]) -> list[PortRequest]:
    """What was asked for, on another network, with the numbers that it has now."""
    left, found = list(published), []
    for request in asked:
        own = [each for each in left if _serves(each, request)]
        if own and own[0].host_port:
            left = [each for each in left if not (_serves(each, request) and each.host_port == own[0].host_port)]
            request = msgspec.structs.replace(request, host_ports=(own[0].host_port,))
        found.append(request)
    return found


def _serves(port: PublishedPort, request: PortRequest) -> bool:
    return (
        (port.protocol, port.container_port) == (request.protocol, request.container_port)
        and request.host_ip in ("", port.host_ip)
        and (request.host_ports == (0,) or port.host_port in request.host_ports)
    )


def _host_address(text: str) -> str:
    """An address, and no name: bind(2) would ask DNS for that, and the text goes into a rule."""
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or "%" in text:
        raise InvalidParameterError(f"invalid IP address: {text[:100]!r}")
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


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


class PortTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Where the ports of one endpoint lead.

    ``addresses`` are the container's by address family, ``binding`` is where the network publishes by default. Families in
    ``routed`` take no port of the host.
    """

    addresses: dict[int, str]
    binding: str = ANY_IPV4
    routed: frozenset[int] = frozenset()

    def hosts(self, request: PortRequest) -> list[str]:
        """The host's addresses to claim a port on. Raises InvalidParameterError: a family that the container lacks."""
        host_ip = request.host_ip or self.binding
        if host_ip == ANY_IPV4 and not request.host_ip:
            return [{4: ANY_IPV4, 6: ANY_IPV6}[version] for version in sorted(self.addresses)]
        if _version(host_ip) not in self.addresses:
            raise InvalidParameterError(
                f"cannot publish on {host_ip}: the container has no IPv{_version(host_ip)} address on this network"
            )
        return [host_ip]


class PortClaims:
    """The host ports in use, by owner (an endpoint's ID)."""

    def __init__(self) -> None:
        self._sockets: dict[str, list[socket.socket]] = {}

    def claim(self, owner: str, wanted: Sequence[PortRequest], target: PortTarget) -> list[PublishedPort]:
        """All or none.

        Raises UnavailableError with dockerd's text when a port is taken, InvalidParameterError.
        """
        if not wanted:
            return []
        held: list[socket.socket] = []
        ports = []
        try:
            for request in wanted:
                hosts = target.hosts(request)
                bound = [host for host in hosts if _version(host) not in target.routed]
                number = 0
                if bound:
                    made, number = _bind(request, bound)
                    held += made
                ports += [
                    PublishedPort(
                        request.protocol,
                        host if host in bound else {4: ANY_IPV4, 6: ANY_IPV6}[_version(host)],
                        number if host in bound else 0,
                        target.addresses[_version(host)],
                        request.container_port,
                    )
                    for host in hosts
                ]
        except BaseException:
            for each in held:
                each.close()
            raise
        self._sockets[owner] = held
        return ports

    def adopt(self, owner: str, ports: Sequence[PublishedPort]) -> None:
        """Take back the ports of an owner that was there before; a lost claim stays published."""
        held = self._sockets[owner] = list[socket.socket]()
        for port in ports:
            if port.host_port:
                request = PortRequest(port.protocol, port.container_port, port.host_ip, (port.host_port,))
                with contextlib.suppress(UnavailableError):
                    held += _bind(request, [port.host_ip])[0]

    def release(self, owner: str) -> None:
        """Give them back. Idempotent."""
        for held in self._sockets.pop(owner, ()):
            held.close()

    def close(self) -> None:
        """Let go of every socket."""
        for owner in list(self._sockets):
            self.release(owner)


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _bind(request: PortRequest, hosts: Sequence[str]) -> tuple[list[socket.socket], int]:
    """Sockets on all the addresses with one port, the first of those wanted that is free on each. Raises UnavailableError."""
    for port in request.host_ports if request.host_ports != (0,) else (0,) * _TRIES:
        made: list[socket.socket] = []
        number = port
        try:
            for host in hosts:
                made.append(_socket(request, host, number))
                number = made[-1].getsockname()[1]
        except OSError as error:
            for each in made:
                each.close()
            if error.errno != errno.EADDRINUSE:
                raise UnavailableError(
                    f"failed to bind host port {hosts[len(made)]}:{port}/{request.protocol}: {error.strerror}"
                ) from None
        else:
            return made, number
    raise UnavailableError(
        f"failed to set up container networking: Bind for {hosts[0]}:{request.host_ports[0]} failed: "
        "port is already allocated"
    )


def _socket(request: PortRequest, host: str, port: int) -> socket.socket:
    """Bound. Raises UnavailableError: the kernel has no such protocol; OSError."""
    kinds = {"tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0), "sctp": (socket.SOCK_STREAM, 132)}
    family = socket.AF_INET if _version(host) == 4 else socket.AF_INET6
    try:
        made = socket.socket(family, *kinds[request.protocol])
    except OSError as error:
        raise UnavailableError(f"cannot publish {request.protocol} ports on this host: {error.strerror}") from None
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made
