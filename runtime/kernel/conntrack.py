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

_GET, _DELETE = 0x101, 0x102
_TUPLE_ORIG, _ID, _ZONE, _FILTER = 1, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_V4_DST = 2
_PROTO_NUM, _PROTO_DST_PORT = 1, 3
_FILTER_ORIG_FLAGS = 1
_BY_PROTOCOL, _BY_PORT = 1 << 3, 1 << 5
_NESTED = 0x8000
_HEADER = struct.pack("=BBH", socket.AF_INET, 0, 0)
_BATCH_LENGTH = 64
"""Deletions a system call: the answers to all of them have to fit into the socket's buffer."""
_WALKS_MAX = 8
"""Ports that the kernel looks for, each on a walk of its own; of more it sends all flows of the protocol."""


class Flow(msgspec.Struct, frozen=True):
    """Where the first packet of a flow went, and what names the flow to the kernel."""

    destination: ipaddress.IPv4Address
    port: int
    key: bytes


def flows(sock: socket.socket, protocol: int, ports: Collection[int]) -> Iterator[Flow]:
    """IPv4 flows that began with a packet to one of the ports, of any host. Raises OSError.

    Args:
        protocol: its number in IP.
    """
    number = attribute(_PROTO_NUM, bytes((protocol,)))
    walks = [number + attribute(_PROTO_DST_PORT, struct.pack(">H", port)) for port in ports]
    flags = _BY_PROTOCOL | _BY_PORT
    if len(ports) > _WALKS_MAX:
        walks, flags = [number], _BY_PROTOCOL
    for wanted in walks:
        for body in netlink.dump(sock, _GET, _request(wanted, flags)):
            found = dict(attributes(body[len(_HEADER) :]))
            if _TUPLE_ORIG in found and (flow := _flow(found, protocol, ports)):
                yield flow


def forget(sock: socket.socket, found: Sequence[Flow]) -> None:
    """Gone already is fine. Raises OSError."""
    for start in range(0, len(found), _BATCH_LENGTH):
        batch = found[start : start + _BATCH_LENGTH]
        netlink.send(sock, [Message(_DELETE, 0, _HEADER + each.key, "flow", (errno.ENOENT,)) for each in batch])


def _request(wanted: bytes, flags: int) -> bytes:
    original = attribute(_TUPLE_ORIG | _NESTED, attribute(_TUPLE_PROTO | _NESTED, wanted))
    return _HEADER + original + attribute(_FILTER | _NESTED, attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", flags)))


def _flow(found: dict[int, bytes], protocol: int, ports: Collection[int]) -> Flow | None:
    parts = dict(attributes(found[_TUPLE_ORIG]))
    proto = dict(attributes(parts[_TUPLE_PROTO]))
    port = int.from_bytes(proto.get(_PROTO_DST_PORT, b""), "big")
    if proto[_PROTO_NUM][0] != protocol or port not in ports:
        return None
    key = attribute(_TUPLE_ORIG | _NESTED, found[_TUPLE_ORIG])
    key += b"".join(attribute(kind, found[kind]) for kind in (_ZONE, _ID) if kind in found)
    return Flow(ipaddress.IPv4Address(dict(attributes(parts[_TUPLE_IP]))[_IP_V4_DST]), port, key)
