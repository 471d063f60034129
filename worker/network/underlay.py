"""The device below the overlays."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct

from runtime.kernel import netlink
from worker.network.types import UNDERLAY_MTU

_SIOCGIFMTU = 0x8921
_IFREQ = struct.Struct("16si20x")


def mtu_of(address: str) -> int:
    """MTU of the device that has an address of this host; Ethernet's when that cannot be found out."""
    wanted = ipaddress.ip_address(address)
    try:
        with netlink.connection() as sock:
            index = next((each.link_index for each in netlink.addresses(sock) if each.ip == wanted), None)
        if index is None:
            return UNDERLAY_MTU
        request = _IFREQ.pack(socket.if_indextoname(index).encode(), 0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            answer: bytes = fcntl.ioctl(sock, _SIOCGIFMTU, request)
    except OSError:
        return UNDERLAY_MTU
    _, mtu = _IFREQ.unpack(answer)
    return int(mtu)
