"""The part of rtnetlink that macvlan and ipvlan networks need: devices on top of another one, VLANs, dummies.

Messages are built by pure functions (rtnetlink(7), linux/if_link.h).
"""

from __future__ import annotations

import errno
import struct

from runtime.kernel import netlink
from runtime.kernel.netlink import Message, attribute
from runtime.kernel.network import AddSublink

_NEWLINK, _CREATE, _EXCL = 16, 0x400, 0x200
_IFLA_ADDRESS, _IFLA_LINK, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 5, 18, 28
_INFO_KIND, _INFO_DATA = 1, 2
_VLAN_ID = 1
_MODE, _IPVLAN_FLAGS = 1, 2
_MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
_IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
_IPVLAN_FLAG_BITS = {"bridge": 0, "private": 1, "vepa": 2}


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _u16(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=H", value))


def _info(kind: str, data: bytes = b"") -> bytes:
    inner = attribute(_INFO_DATA, data) if data else b""
    return attribute(_IFLA_LINKINFO, attribute(_INFO_KIND, kind.encode()) + inner)


def add_dummy(name: str) -> Message:
    """Up; what is sent by it goes nowhere."""
    body = netlink.link(0, netlink.link_name(name) + _info("dummy"), up=True)
    return Message(_NEWLINK, _CREATE | _EXCL, body, f"dummy {name}", (errno.EEXIST,))


def add_vlan(name: str, parent_index: int, vlan_id: int) -> Message:
    """Down: a device whose parent is down cannot come up, and is of use as soon as that does."""
    body = netlink.link(
        0, netlink.link_name(name) + _u32(_IFLA_LINK, parent_index) + _info("vlan", _u16(_VLAN_ID, vlan_id))
    )
    return Message(_NEWLINK, _CREATE | _EXCL, body, f"VLAN {vlan_id} as {name}", (errno.EEXIST,))


def add_sublink(change: AddSublink, parent_index: int, namespace_fd: int) -> Message:
    """Born down inside the other namespace, under its name there."""
    if change.kind == "macvlan":
        data = _u32(_MODE, _MACVLAN_MODES[change.mode])
    else:
        data = _u16(_MODE, _IPVLAN_MODES[change.mode]) + _u16(_IPVLAN_FLAGS, _IPVLAN_FLAG_BITS[change.flag])
    mac = attribute(_IFLA_ADDRESS, bytes.fromhex(change.mac.replace(":", ""))) if change.mac else b""
    body = netlink.link(
        0,
        netlink.link_name(change.name)
        + mac
        + _u32(_IFLA_LINK, parent_index)
        + _u32(_IFLA_NET_NS_FD, namespace_fd)
        + _info(change.kind, data),
    )
    return Message(_NEWLINK, _CREATE | _EXCL, body, f"{change.kind} {change.name} on {change.parent}")
