"""Which addresses a node listens on and tells others: what the user wrote, resolved against the host.

Rules and wording follow moby daemon/cluster/listen_addr.go. Pure but for ``system_addresses``.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Sequence

import msgspec

from pki.addresses import AddressError, join_host_port, split_host_port
from runtime.kernel import netlink

GRPC_PORT = 7946
_OURS = ("docker", "swarm", "br-", "veth", "lo")


class SystemAddress(msgspec.Struct, frozen=True):
    """An address of an interface of this host."""

    interface: str
    ip: str


def resolve_listen(text: str, system: Sequence[SystemAddress]) -> str:
    """``ip:port`` to bind, from "IP", "IP:PORT", "INTERFACE" or ":PORT". Raises: AddressError."""
    host, port = split_host_port(text, empty_host=True)
    return join_host_port(_resolve_host(host or "0.0.0.0", system), port)


def resolve_advertise(text: str, listen: str, system: Sequence[SystemAddress]) -> str:
    """``ip:port`` to tell others; without ``text`` the listen address, or the host's only address.

    Raises:
        AddressError: nothing fits, or more than one does and the user has to choose.
    """
    listen_host, listen_port = split_host_port(listen)
    if text:
        host, port = split_host_port(text, listen_port)
        ip = _resolve_host(host, system)
        if ipaddress.ip_address(ip).is_unspecified:
            raise AddressError(
                "advertise address must be a non-zero IP address or network interface (with optional port number)"
            )
        return join_host_port(ip, port)
    if not ipaddress.ip_address(listen_host).is_unspecified:
        return join_host_port(listen_host, listen_port)
    return join_host_port(_only_address(system), listen_port)


def follows_host(text: str, listen: str) -> bool:
    """Whether an advertise address, as written, is whatever the host has: ``text`` and ``listen`` name no IP."""
    if not text:
        return ipaddress.ip_address(split_host_port(listen)[0]).is_unspecified
    try:
        ipaddress.ip_address(split_host_port(text)[0])
    except ValueError:
        return True
    return False


def is_here(ip: str) -> bool:
    """Whether this host has the address; costs two system calls."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def resolve_data_path(text: str, advertise: str, system: Sequence[SystemAddress]) -> str:
    """The IP that other nodes send VXLAN to; the advertise address unless given. Raises: AddressError."""
    if not text:
        return split_host_port(advertise)[0]
    ip = _resolve_host(text, system)
    if ipaddress.ip_address(ip).is_unspecified:
        raise AddressError("data path address must be a non-zero IP address or network interface")
    return ip


def _resolve_host(host: str, system: Sequence[SystemAddress]) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    of_interface = [a.ip for a in system if a.interface == host]
    v4 = [ip for ip in of_interface if ":" not in ip]
    chosen = v4 or of_interface
    if not chosen:
        raise AddressError(f"could not find an IP address or network interface named {host!r} on this host")
    if len(chosen) > 1:
        raise AddressError(f"interface {host} has more than one IP address ({chosen[0]} and {chosen[1]})")
    return chosen[0]


def _only_address(system: Sequence[SystemAddress]) -> str:
    candidates = [a for a in system if not a.interface.startswith(_OURS)]
    v4 = [a for a in candidates if ":" not in a.ip]
    chosen = v4 or candidates
    if not chosen:
        raise AddressError("could not find the system's IP address - specify one with --advertise-addr")
    if len(chosen) == 1:
        return chosen[0].ip
    first, second = chosen[:2]
    if first.interface == second.interface:
        where = f"this system has multiple addresses on interface {first.interface} ({first.ip} and {second.ip})"
    else:
        where = (
            "this system has multiple addresses on different interfaces "
            f"({first.ip} on {first.interface} and {second.ip} on {second.interface})"
        )
    raise AddressError(f"could not choose an IP address to advertise since {where} - specify one with --advertise-addr")


async def system_addresses() -> list[SystemAddress]:
    """Every global address of this host, in the order of the kernel."""
    return await asyncio.to_thread(_read_system_addresses)


def _read_system_addresses() -> list[SystemAddress]:
    with netlink.connection() as sock:
        names = {index: name for name, (index, _, _) in netlink.links(sock).items()}
        return [
            SystemAddress(names.get(address.link_index, ""), str(address.ip))
            for address in netlink.addresses(sock)
            if address.scope == netlink.SCOPE_UNIVERSE and names.get(address.link_index) != "lo"
        ]
