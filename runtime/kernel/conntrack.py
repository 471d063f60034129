"""Just enough ctnetlink to forget flows that the kernel tracks.

A flow keeps the address translation of its first packet for as long as packets come. The kernel looks for the entries
itself (CTA_FILTER, Linux 5.8), so what is sent over and deleted is what fits, however large the table is; it walks through
the table for it, since only a whole tuple has a place there: 7 ms for an empty one of 262144 buckets, 30 with 60 000 flows.
An older kernel sends all, so each entry is looked at here as well.

Source: linux/netfilter/nfnetlink_conntrack.h; net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterator, Sequence

import msgspec

from runtime.kernel import netlink
from runtime.kernel.netlink import Message, attribute, attributes
from runtime.kernel.network import IPAddress, Translation

_GET, _DELETE = 0x101, 0x102
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ID, _ZONE, _FILTER = 1, 2, 3, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_V4_SRC, _IP_V4_DST, _IP_V6_SRC, _IP_V6_DST = 1, 2, 3, 4
_PROTO_NUM, _PROTO_DST_PORT = 1, 3
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_BY_SOURCE, _BY_PROTOCOL, _BY_PORT = 1 << 0, 1 << 3, 1 << 5
_IS_DST_NAT = 1 << 5
_NESTED = 0x8000
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_HEADERS: dict[int, bytes] = {family: struct.pack("=BBH", family, 0, 0) for family in _FAMILIES.values()}
_BATCH_LENGTH = 64
"""Deletions a system call: the answers to all of them have to fit into the socket's buffer."""
_WALKS_MAX = 8
"""Ports that the kernel looks for, each on a walk of its own; of more it sends all flows of the protocol."""


class Flow(msgspec.Struct, frozen=True):
    """Where the first packet of a flow went, and what names the flow to the kernel."""

    destination: IPAddress
    port: int
    key: bytes


class Translated(msgspec.Struct, frozen=True):
    """A flow whose destination was translated, and what names it to the kernel."""

    translation: Translation
    key: bytes


def flows(sock: socket.socket, protocol: int, ports: Collection[int], version: int) -> Iterator[Flow]:
    """Flows of an address family that began with a packet to one of the ports, of any host. Raises OSError.

    Args:
        protocol: its number in IP.
    """
    number = attribute(_PROTO_NUM, bytes((protocol,)))
    walks = [number + attribute(_PROTO_DST_PORT, struct.pack(">H", port)) for port in ports]
    flags, header = _BY_PROTOCOL | _BY_PORT, _HEADERS[_FAMILIES[version]]
    if len(ports) > _WALKS_MAX:
        walks, flags = [number], _BY_PROTOCOL
    for wanted in walks:
        for body in netlink.dump(sock, _GET, _request(header, wanted, flags)):
            found = dict(attributes(body[len(header) :]))
            if _TUPLE_ORIG in found and (flow := _flow(header, found, protocol, ports)):
                yield flow


def translated(sock: socket.socket, targets: Collection[IPAddress] | None = None) -> Iterator[Translated]:
    """Flows of both address families that were led elsewhere than they wanted, all or those led to ``targets``.

    Raises OSError.
    """
    for version, family in _FAMILIES.items():
        walks = [b""]
        if targets is not None:
            walks = [_request_by_reply(each) for each in targets if each.version == version]
            if len(walks) > 1:  # a walk through the table costs more than to look at what this namespace has in it
                walks = [b""]
        for wanted in walks:
            for body in netlink.dump(sock, _GET, _HEADERS[family] + wanted):
                if flow := _translated(family, dict(attributes(body[len(_HEADERS[family]) :]))):
                    yield flow


def forget(sock: socket.socket, keys: Sequence[bytes]) -> None:
    """Flows by what names them. Gone already is fine. Raises OSError."""
    for start in range(0, len(keys), _BATCH_LENGTH):
        batch = keys[start : start + _BATCH_LENGTH]
        netlink.send(sock, [Message(_DELETE, 0, key, "flow", (errno.ENOENT,)) for key in batch])


def _request(header: bytes, wanted: bytes, flags: int) -> bytes:
    original = attribute(_TUPLE_ORIG | _NESTED, attribute(_TUPLE_PROTO | _NESTED, wanted))
    return header + original + attribute(_FILTER | _NESTED, attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", flags)))


def _flow(header: bytes, found: dict[int, bytes], protocol: int, ports: Collection[int]) -> Flow | None:
    parts = dict(attributes(found[_TUPLE_ORIG]))
    proto = dict(attributes(parts[_TUPLE_PROTO]))
    port = int.from_bytes(proto.get(_PROTO_DST_PORT, b""), "big")
    if proto[_PROTO_NUM][0] != protocol or port not in ports:
        return None
    where = dict(attributes(parts[_TUPLE_IP]))
    destination = where[_IP_V4_DST] if _IP_V4_DST in where else where[_IP_V6_DST]
    return Flow(ipaddress.ip_address(destination), port, _key(header, found))


def _key(header: bytes, found: dict[int, bytes]) -> bytes:
    key = attribute(_TUPLE_ORIG | _NESTED, found[_TUPLE_ORIG])
    return header + key + b"".join(attribute(kind, found[kind]) for kind in (_ZONE, _ID) if kind in found)


def _request_by_reply(source: IPAddress) -> bytes:
    kind = _IP_V4_SRC if source.version == 4 else _IP_V6_SRC
    reply = attribute(_TUPLE_REPLY | _NESTED, attribute(_TUPLE_IP | _NESTED, attribute(kind, source.packed)))
    flags = attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", 0))
    flags += attribute(_FILTER_REPLY_FLAGS, struct.pack("=I", _BY_SOURCE))
    return reply + attribute(_FILTER | _NESTED, flags)


def _translated(family: int, found: dict[int, bytes]) -> Translated | None:
    status = int.from_bytes(found.get(_STATUS, b""), "big")
    if not status & _IS_DST_NAT or _TUPLE_ORIG not in found or _TUPLE_REPLY not in found:
        return None
    source, destination = (_IP_V4_SRC, _IP_V4_DST) if family == socket.AF_INET else (_IP_V6_SRC, _IP_V6_DST)
    original, reply = dict(attributes(found[_TUPLE_ORIG])), dict(attributes(found[_TUPLE_REPLY]))
    proto = dict(attributes(original[_TUPLE_PROTO]))
    translation = Translation(
        protocol=proto[_PROTO_NUM][0],
        address=ipaddress.ip_address(dict(attributes(original[_TUPLE_IP]))[destination]),
        port=int.from_bytes(proto.get(_PROTO_DST_PORT, b""), "big"),
        target=ipaddress.ip_address(dict(attributes(reply[_TUPLE_IP]))[source]),
    )
    return Translated(translation, _key(_HEADERS[family], found))
