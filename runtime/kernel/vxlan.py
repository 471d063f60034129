"""The part of rtnetlink that overlays need: VXLAN devices, ports of bridges, where a MAC is and which one an address has.

Messages are built by pure functions (rtnetlink(7), linux/if_link.h, linux/neighbour.h).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct

from runtime.kernel import netlink
from runtime.kernel.netlink import Message, attribute, attributes
from runtime.kernel.network import IPAddress, IPNetwork, VxlanLink

_NEWLINK, _GETLINK, _SETLINK, _NEWROUTE, _NEWNEIGH, _DELNEIGH, _GETNEIGH = 16, 18, 19, 24, 28, 29, 30
_NEWRULE, _DELRULE = 32, 33
_CREATE, _EXCL, _REPLACE = 0x400, 0x200, 0x100
_IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_PROTINFO, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 4, 10, 12, 18, 28
_INFO_KIND, _INFO_DATA = 1, 2
_ID, _LOCAL, _LEARNING, _PROXY, _PORT, _LOCAL6 = 1, 4, 7, 11, 15, 17
_BRPORT_LEARNING, _BRPORT_UNICAST_FLOOD = 8, 9
_NDA_DST, _NDA_LLADDR = 1, 2
_NTF_SELF, _NTF_MASTER = 0x2, 0x4
_NUD_NOARP, _NUD_PERMANENT = 0x40, 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_TABLE, _RTNH_ONLINK = 1, 4, 5, 15, 4
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_FRA_IIFNAME, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 3, 10, 15, 16
_MAIN_TABLE = 254
_NESTED = 0x8000
_NEIGH = struct.Struct("=BxxxiHBB")
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def add_vxlan(name: str, vni: int, local: IPAddress, port: int, mtu: int, namespace_fd: int) -> Message:
    """Born down in the other namespace; its socket is in that of the connection."""
    data = [
        _u32(_ID, vni),
        attribute(_LOCAL if local.version == 4 else _LOCAL6, local.packed),
        attribute(_PORT, struct.pack(">H", port)),
        attribute(_LEARNING, b"\0"),
        attribute(_PROXY, b"\1"),
    ]
    info = attribute(_INFO_KIND, b"vxlan") + attribute(_INFO_DATA, b"".join(data))
    body = netlink.link(
        0,
        netlink.link_name(name)
        + _u32(_IFLA_MTU, mtu)
        + _u32(_IFLA_NET_NS_FD, namespace_fd)
        + attribute(_IFLA_LINKINFO, info),
    )
    return Message(_NEWLINK, _CREATE | _EXCL, body, f"vxlan {name} (VNI {vni}, port {port})")


def set_port(index: int, bridge_index: int) -> Message:
    """A port of the bridge, and up."""
    return Message(_NEWLINK, 0, netlink.link(index, _u32(_IFLA_MASTER, bridge_index), up=True), f"port link {index}")


def set_port_flags(index: int, *, flood: bool) -> Message:
    """No learning; floods or not."""
    flags = attribute(_BRPORT_LEARNING, b"\0") + attribute(_BRPORT_UNICAST_FLOOD, bytes((flood,)))
    body = netlink.link(index, attribute(_IFLA_PROTINFO | _NESTED, flags), family=socket.AF_BRIDGE)
    return Message(_SETLINK, 0, body, f"port flags of link {index}")


def set_forwarding(index: int, mac: str, host: IPAddress | None) -> Message:
    """In place of what there is for the MAC."""
    where = attribute(_NDA_DST, host.packed) if host else b""
    state, flags = (_NUD_PERMANENT, _NTF_SELF) if host else (_NUD_NOARP, _NTF_MASTER)
    body = _NEIGH.pack(socket.AF_BRIDGE, index, state, flags, 0) + attribute(_NDA_LLADDR, _mac(mac)) + where
    return Message(_NEWNEIGH, _CREATE | _REPLACE, body, f"forwarding {mac}")


def delete_forwarding(index: int, mac: str) -> Message:
    """Gone already is fine."""
    body = _NEIGH.pack(socket.AF_BRIDGE, index, _NUD_PERMANENT, _NTF_SELF, 0) + attribute(_NDA_LLADDR, _mac(mac))
    return Message(_DELNEIGH, 0, body, f"delete forwarding {mac}", (errno.ENOENT,))


def set_neighbour(index: int, address: IPAddress, mac: str) -> Message:
    """In place of what there is for the address."""
    body = _NEIGH.pack(_FAMILIES[address.version], index, _NUD_PERMANENT, 0, 0)
    body += attribute(_NDA_DST, address.packed) + attribute(_NDA_LLADDR, _mac(mac))
    return Message(_NEWNEIGH, _CREATE | _REPLACE, body, f"neighbour {address}")


def delete_neighbour(index: int, address: IPAddress) -> Message:
    """Gone already is fine."""
    body = _NEIGH.pack(_FAMILIES[address.version], index, 0, 0, 0) + attribute(_NDA_DST, address.packed)
    return Message(_DELNEIGH, 0, body, f"delete neighbour {address}", (errno.ENOENT,))


def add_route(index: int, destination: IPNetwork, gateway: IPAddress | None, table: int) -> Message:
    """In place of another; a gateway is taken to be on the link."""
    scope, flags = (_SCOPE_UNIVERSE, _RTNH_ONLINK) if gateway else (_SCOPE_LINK, 0)
    family, length = _FAMILIES[destination.version], destination.prefixlen
    body = struct.pack("=BBBBBBBBI", family, length, 0, 0, 0 if table else _MAIN_TABLE, 3, scope, 1, flags)
    body += attribute(_RTA_DST, destination.network_address.packed) if length else b""
    body += _u32(_RTA_OIF, index) + (attribute(_RTA_GATEWAY, gateway.packed) if gateway else b"")
    body += _u32(_RTA_TABLE, table) if table else b""
    return Message(_NEWROUTE, _CREATE | _REPLACE, body, f"route to {destination}")


def mark_rule(link: str, mark: int, mask: int, table: int, *, add: bool) -> Message:
    """A rule of IPv4, there or not as asked."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 1, 0)
    body += attribute(_FRA_IIFNAME, link.encode() + b"\0")
    body += _u32(_FRA_FWMARK, mark) + _u32(_FRA_FWMASK, mask) + _u32(_FRA_TABLE, table)
    if add:
        return Message(_NEWRULE, _CREATE | _EXCL, body, f"rule for {link}", (errno.EEXIST,))
    return Message(_DELRULE, 0, body, f"delete rule for {link}", (errno.ENOENT,))


def read(sock: socket.socket, name: str) -> VxlanLink | None:
    """See ``KernelNetwork.vxlan``. Raises OSError."""
    names: dict[int, str] = {}
    found: tuple[int, dict[int, bytes], dict[int, bytes]] | None = None
    for body in netlink.dump(sock, _GETLINK, netlink.link(0, b"")):
        index, known = netlink.link_index_of(body), netlink.link_attributes(body)
        names[index] = known.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode()
        info = dict(attributes(known.get(_IFLA_LINKINFO, b"")))
        if names[index] == name and info.get(_INFO_KIND, b"").rstrip(b"\0") == b"vxlan":
            found = index, known, dict(attributes(info.get(_INFO_DATA, b"")))
    if found is None:
        return None
    index, known, data = found
    local = data.get(_LOCAL) or data.get(_LOCAL6)
    master = known.get(_IFLA_MASTER)
    return VxlanLink(
        vni=struct.unpack("=I", data[_ID])[0],
        local=ipaddress.ip_address(local) if local else None,
        port=int.from_bytes(data.get(_PORT, b""), "big"),
        mtu=struct.unpack("=I", known[_IFLA_MTU])[0],
        bridge=names.get(struct.unpack("=I", master)[0], "") if master else "",
        forwarding=_forwarding(sock, index),
        neighbours=_neighbours(sock, index),
    )


def _forwarding(sock: socket.socket, index: int) -> dict[str, IPAddress]:
    found = {}
    for body in netlink.dump(sock, _GETNEIGH, _NEIGH.pack(socket.AF_BRIDGE, 0, 0, 0, 0)):
        _, of, _, flags, _ = _NEIGH.unpack_from(body)
        known = dict(attributes(body[_NEIGH.size :]))
        if of == index and flags & _NTF_SELF and _NDA_DST in known and _NDA_LLADDR in known:
            found[known[_NDA_LLADDR].hex(":")] = ipaddress.ip_address(known[_NDA_DST])
    return found


def _neighbours(sock: socket.socket, index: int) -> dict[IPAddress, str]:
    found = {}
    for body in netlink.dump(sock, _GETNEIGH, _NEIGH.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        family, of, state, _, _ = _NEIGH.unpack_from(body)
        known = dict(attributes(body[_NEIGH.size :]))
        if of == index and state & _NUD_PERMANENT and family in _FAMILIES.values() and _NDA_LLADDR in known:
            found[ipaddress.ip_address(known[_NDA_DST])] = known[_NDA_LLADDR].hex(":")
    return found
