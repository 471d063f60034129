"""Just enough rtnetlink for a bridge port: links, addresses, routes, each batch in one system call.

A container start sends two batches, one in each namespace, and takes about a millisecond with this. pyroute2 costs
several times that on this path: its synchronous calls drive an event loop inside, and opening one socket in another
namespace starts a helper. Messages are built by pure functions (rtnetlink(7)).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence

import msgspec

from runtime.kernel.network import IPAddress, IPInterface
from runtime.kernel.syscalls import CLONE_NEWNET, setns

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_GETADDR, _RTM_NEWROUTE = 20, 22, 24
_REQUEST, _ACK, _DUMP, _CREATE, _EXCL, _REPLACE = 0x1, 0x4, 0x300, 0x400, 0x200, 0x100
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 10, 18, 28
_IFLA_EXT_MASK, _SKIP_STATS = 29, 8
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER, _IFLA_BR_MCAST_SNOOPING = 1, 2, 1, 23
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFA_F_NODAD = 2
_RTM_SETLINK = 19
"""Of a bridge's port there is no other: RTM_NEWLINK is taken, and does nothing."""
_IFLA_PROTINFO, _BRPORT_MODE, _BRPORT_ISOLATED, _NESTED = 12, 4, 33, 0x8000
_RTA_GATEWAY, _RTA_OIF = 5, 4
_IFF_UP = 1
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_PART = 128
_GROUP_LINK, _DATAGRAMS_A_TURN = 1, 64
_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")
ROUTE, NETFILTER = 0, 12
"""Protocols of netlink (netlink(7))."""
SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
"""Addresses that other hosts may know (rtnetlink(7)); those of a link or of the host itself have other scopes."""


class Message(msgspec.Struct, frozen=True):
    """One request; ``ignore`` are error numbers that mean "already so"."""

    kind: int
    flags: int
    body: bytes
    what: str
    ignore: tuple[int, ...] = ()


class LinkAddress(msgspec.Struct, frozen=True):
    """An address of a link."""

    link_index: int
    ip: IPAddress
    scope: int


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)


def link_name(name: str) -> bytes:
    """As an attribute."""
    return attribute(_IFLA_IFNAME, name.encode() + b"\0")


def link(index: int, attributes: bytes, *, up: bool = False, family: int = socket.AF_UNSPEC) -> bytes:
    """The body of a message about a link, 0 for none or one named by an attribute."""
    flags = _IFF_UP if up else 0
    return _IFINFO.pack(family, 0, index, flags, flags) + attributes


def link_index_of(body: bytes) -> int:
    """Which link an answer is about."""
    index: int = _IFINFO.unpack_from(body)[2]
    return index


def link_attributes(body: bytes) -> dict[int, bytes]:
    """What an answer says of a link."""
    return dict(attributes(body[_IFINFO.size :]))


def add_bridge(name: str, mac: str, *, snooping: bool) -> Message:
    """A bridge that is up. A MAC of its own keeps it from taking on that of a port that comes or goes."""
    data = b"" if snooping else attribute(_INFO_DATA, attribute(_IFLA_BR_MCAST_SNOOPING, b"\0"))
    info = attribute(_IFLA_LINKINFO, attribute(_INFO_KIND, b"bridge") + data)
    mac_bytes = attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    return Message(
        _RTM_NEWLINK,
        _CREATE | _EXCL,
        link(0, link_name(name) + mac_bytes + info, up=True),
        f"bridge {name}",
        (errno.EEXIST,),
    )


def add_veth(host_name: str, bridge_index: int, peer_name: str, peer_mac: str, peer_namespace_fd: int, mtu: int) -> Message:  # fmt: skip
    """A pair whose far end is born inside the other namespace, its near end a port of the bridge and up.

    The far end cannot be up yet: it is made first, and has no peer at that moment (ENOTCONN).
    """
    peer = link(
        0,
        link_name(peer_name)
        + attribute(_IFLA_ADDRESS, bytes.fromhex(peer_mac.replace(":", "")))
        + attribute(_IFLA_MTU, struct.pack("=I", mtu))
        + attribute(_IFLA_NET_NS_FD, struct.pack("=I", peer_namespace_fd)),
    )
    data = attribute(_INFO_DATA, attribute(_VETH_INFO_PEER, peer))
    body = link(
        0,
        link_name(host_name)
        + attribute(_IFLA_MTU, struct.pack("=I", mtu))
        + attribute(_IFLA_MASTER, struct.pack("=I", bridge_index))
        + attribute(_IFLA_LINKINFO, attribute(_INFO_KIND, b"veth") + data),
        up=True,
    )
    return Message(_RTM_NEWLINK, _CREATE | _EXCL, body, f"veth {host_name}")


def set_reflecting(index: int, *, isolated: bool) -> Message:
    """Flags of a bridge's port."""
    flags = attribute(_BRPORT_MODE, b"\1") + attribute(_BRPORT_ISOLATED, bytes((isolated,)))
    body = link(index, attribute(_IFLA_PROTINFO | _NESTED, flags), family=socket.AF_BRIDGE)
    return Message(_RTM_SETLINK, 0, body, f"port flags of link {index}")


def delete_link(name: str) -> Message:
    """Gone already is fine."""
    return Message(_RTM_DELLINK, 0, link(0, link_name(name)), f"delete {name}", (errno.ENODEV,))


def set_up(index: int) -> Message:
    """Switch a link on."""
    return Message(_RTM_NEWLINK, 0, link(index, b"", up=True), f"up link {index}")


def add_address(index: int, address: IPInterface) -> Message:
    """With the broadcast address of its subnet, in IPv4; there already is fine.

    In use at once, in IPv6 too: addresses come from one hand, so that nobody has to ask who else has it.
    """
    packed, flags = address.ip.packed, _IFA_F_NODAD if address.version == 6 else 0
    body = _IFADDR.pack(_FAMILIES[address.version], address.network.prefixlen, flags, SCOPE_UNIVERSE, index)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    if address.version == 4:
        body += attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    return Message(_RTM_NEWADDR, _CREATE | _EXCL, body, f"address {address}", (errno.EEXIST,))


def add_default_route(gateway: IPAddress, index: int = 0) -> Message:
    """Default route of the gateway's address family, in the main table; by a link (0: the one that leads there).

    An unspecified gateway is none: the destinations are neighbours on the link.
    """
    on_link = gateway.is_unspecified
    scope = _SCOPE_LINK if on_link and gateway.version == 4 else SCOPE_UNIVERSE
    body = struct.pack("=BBBBBBBBI", _FAMILIES[gateway.version], 0, 0, 0, 254, 3, scope, 1, 0)
    if not on_link:
        body += attribute(_RTA_GATEWAY, gateway.packed)
    if index:
        body += attribute(_RTA_OIF, struct.pack("=I", index))
    return Message(_RTM_NEWROUTE, _CREATE | _REPLACE, body, f"default route via {gateway}")


def encode(messages: Sequence[Message]) -> bytes:
    """All messages in one datagram, numbered from 1, each to be acknowledged."""
    parts = []
    for number, message in enumerate(messages, 1):
        length = _HEADER.size + len(message.body)
        header = _HEADER.pack(length, message.kind, message.flags | _REQUEST | _ACK, number, 0)
        parts.append(header + message.body + b"\0" * (-length % 4))
    return b"".join(parts)


def decode(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence number, body) of each message of a datagram; stops at a malformed one."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _flags, number, _pid = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield kind, number, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


@contextlib.contextmanager
def inside(namespace_fd: int | None) -> Iterator[None]:
    """Have this thread in another network namespace for a while. Raises OSError."""
    if namespace_fd is None:
        yield
        return
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(namespace_fd, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


@contextlib.contextmanager
def connection(namespace_fd: int | None = None, protocol: int = ROUTE) -> Iterator[socket.socket]:
    """A netlink socket of this thread's network namespace, or of another's (the thread comes back at once)."""
    with inside(namespace_fd):
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    with made:
        made.settimeout(5.0)
        made.bind((0, 0))
        yield made


def send(sock: socket.socket, messages: Sequence[Message]) -> None:
    """Carry out a batch in order. Raises OSError for the first that failed, naming it; the others were still done.

    In parts, for the answers to all of one have to fit into the socket's buffer.
    """
    failures = [_send(sock, messages[start : start + _PART]) for start in range(0, len(messages), _PART)]
    for failure in failures:
        if failure:
            raise failure


def _send(sock: socket.socket, messages: Sequence[Message]) -> OSError | None:
    sock.send(encode(messages))
    failure: OSError | None = None
    waiting = set(range(1, len(messages) + 1))
    while waiting:
        for kind, number, body in decode(sock.recv(65536)):
            if kind != _NLMSG_ERROR or number not in waiting:
                continue
            waiting.discard(number)
            code = -struct.unpack_from("=i", body)[0]
            message = messages[number - 1]
            if code and code not in message.ignore and failure is None:
                failure = OSError(code, f"{message.what}: {os.strerror(code)}")
    return failure


def link_index(sock: socket.socket, name: str) -> int:
    """Index of one link. Raises OSError (ENODEV)."""
    body = link(0, link_name(name) + attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATS)))
    sock.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETLINK, _REQUEST, 1, 0) + body)
    while True:
        for kind, _, answer in decode(sock.recv(1 << 18)):
            if kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", answer)[0]
                raise OSError(code, f"link {name}: {os.strerror(code)}")
            if kind == _RTM_NEWLINK:
                return link_index_of(answer)


def links(sock: socket.socket) -> dict[str, tuple[int, int, str]]:
    """Index, master's index (0: none) and kind ("bridge", "veth"; "" for hardware) of every link, by name."""
    found: dict[str, tuple[int, int, str]] = {}
    for body in dump(sock, _RTM_GETLINK, link(0, b"")):
        known = link_attributes(body)
        name = known.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode()
        master = known.get(_IFLA_MASTER)
        kind = dict(attributes(known.get(_IFLA_LINKINFO, b""))).get(_INFO_KIND, b"").rstrip(b"\0").decode()
        found[name] = (link_index_of(body), struct.unpack("=I", master)[0] if master else 0, kind)
    return found


def watch_links(gone: Callable[[str], None]) -> Callable[[], None]:
    """Call ``gone`` on the event loop with the name of a link that went from this thread's network namespace, or left its
    bridge; "" when there were more than the socket holds. Returns what ends it. Raises OSError.
    """
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    made = socket.socket(socket.AF_NETLINK, kind, ROUTE)
    try:
        made.bind((0, _GROUP_LINK))
    except BaseException:
        made.close()
        raise
    loop = asyncio.get_running_loop()

    def readable() -> None:
        names: set[str] = set()
        for _ in range(_DATAGRAMS_A_TURN):
            try:
                heard = [body for kind, _, body in decode(made.recv(65536)) if kind == _RTM_DELLINK]
                names |= {link_attributes(body).get(_IFLA_IFNAME, b"").rstrip(b"\0").decode() for body in heard}
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS
                names.add("")
        for name in names:
            gone(name)

    def stop() -> None:
        loop.remove_reader(made.fileno())
        made.close()

    loop.add_reader(made.fileno(), readable)
    return stop


def addresses(sock: socket.socket) -> list[LinkAddress]:
    """Every address of every link, in the order of the kernel; of a point-to-point link the near end's."""
    found = []
    for body in dump(sock, _RTM_GETADDR, _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        _, _, _, scope, index = _IFADDR.unpack_from(body)
        known = dict(attributes(body[_IFADDR.size :]))
        packed = known.get(_IFA_LOCAL) or known.get(_IFA_ADDRESS)
        if packed:
            found.append(LinkAddress(index, ipaddress.ip_address(packed), scope))
    return found


def dump(sock: socket.socket, kind: int, body: bytes) -> Iterator[bytes]:
    """The bodies of all answers. Raises OSError."""
    sock.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _DUMP, 1, 0) + body)
    while True:
        for answer, _, content in decode(sock.recv(1 << 18)):
            if answer == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", content)[0]
                raise OSError(code, f"list of kind {kind}: {os.strerror(code)}")
            if answer == _NLMSG_DONE:
                return
            yield content


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, value) of each attribute, the flags of its kind left out; stops at a malformed one."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
