"""The kernel network port on this host's kernel: rtnetlink, /proc and libnftables, each call in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, assert_never

from runtime.errors import HostError
from runtime.kernel import conntrack, namespaces, netlink, nft, sublinks, vxlan
from runtime.kernel.network import (
    AddAddress,
    AddBridge,
    AddDefaultRoute,
    AddDummy,
    AddMarkRule,
    AddPort,
    AddRoute,
    AddSublink,
    AddVeth,
    AddVlan,
    AddVxlan,
    Batch,
    Change,
    DeleteForwarding,
    DeleteLink,
    DeleteMarkRule,
    DeleteNeighbour,
    FlowPattern,
    FlowsTo,
    IPAddress,
    Link,
    Route,
    SetForwarding,
    SetNeighbour,
    SetPort,
    SetReflecting,
    SetUp,
    Translation,
    VxlanLink,
)

T = TypeVar("T")

_SYSCTLS = Path("/proc/sys/net")
_RTF_GATEWAY = 2
_ANYWHERE = {4: "0.0.0.0", 6: "::"}
_PROTOCOLS = {"udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}


class LinuxNetwork:
    """See ``KernelNetwork``. The daemon's own namespace is that of the thread a call runs in."""

    async def apply(self, *batches: Batch) -> None:
        await asyncio.to_thread(_apply, batches)

    async def keep_namespace(self, path: str, of: str = "") -> None:
        await asyncio.to_thread(namespaces.keep, Path(path), of)

    async def drop_namespace(self, path: str) -> None:
        await asyncio.to_thread(namespaces.remove, Path(path))

    async def has_namespace(self, path: str) -> bool:
        return await asyncio.to_thread(namespaces.exists, Path(path))

    async def links(self, namespace: str = "") -> dict[str, Link]:
        return await asyncio.to_thread(_links, namespace)

    async def vxlan(self, name: str, namespace: str = "") -> VxlanLink | None:
        return await asyncio.to_thread(_vxlan, name, namespace)

    async def routes(self) -> list[Route]:
        return await asyncio.to_thread(lambda: parse_routes(Path("/proc/thread-self/net/route").read_text()))

    async def read_sysctl(self, name: str) -> str:
        return await asyncio.to_thread(lambda: (_SYSCTLS / name).read_text().strip())

    async def set_sysctls(self, values: Mapping[str, str], namespace: str = "") -> None:
        await asyncio.to_thread(_inside, namespace, lambda: _set_sysctls(values))

    async def run_rules(self, commands: str, namespace: str = "") -> None:
        await asyncio.to_thread(_inside, namespace, lambda: nft.run(commands))

    async def forget_flows(self, flows: Sequence[FlowsTo]) -> None:
        await asyncio.to_thread(_forget_flows, flows)

    async def translations(self, namespace: str = "") -> set[Translation]:
        return await asyncio.to_thread(_translations, namespace)

    async def forget_translations(self, gone: Collection[FlowPattern], namespace: str = "") -> None:
        await asyncio.to_thread(_forget_translations, gone, namespace)

    def watch_rules(self, changed: Callable[[], None], namespace: str = "") -> Callable[[], None]:
        return _inside(namespace, lambda: nft.watch(changed))

    def watch_links(self, changed: Callable[[str], None], namespace: str = "") -> Callable[[], None]:
        return _inside(namespace, lambda: netlink.watch_links(changed))

    async def tables(self, namespace: str = "") -> set[str]:
        listed = await asyncio.to_thread(_inside, namespace, lambda: nft.run("list tables"))
        return {line.removeprefix("table ") for line in listed.splitlines()}

    async def dropping_forwards(self) -> dict[str, str]:
        return await asyncio.to_thread(_dropping_forwards)

    async def names_in(self, table: str, name: str) -> set[str]:
        return parse_names(await asyncio.to_thread(nft.run, f"list set {table} {name}"))


def _inside(namespace: str, work: Callable[[], T]) -> T:
    """With this thread in the namespace at the path meanwhile."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(netlink.inside(_Namespaces(stack).fd(namespace) if namespace else None))
        return work()


class _Namespaces:
    """Open namespaces by path, for the time of one call."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._fds: dict[str, int] = {}

    def fd(self, path: str) -> int:
        if path not in self._fds:
            self._fds[path] = os.open(path or "/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, self._fds[path])
        return self._fds[path]

    def connection(self, path: str, protocol: int = netlink.ROUTE) -> contextlib.AbstractContextManager[socket.socket]:
        return netlink.connection(self.fd(path) if path else None, protocol)


def _apply(batches: Sequence[Batch]) -> None:
    with contextlib.ExitStack() as stack:
        namespaces = _Namespaces(stack)
        for batch in batches:
            with namespaces.connection(batch.namespace) as sock:
                _carry_out(sock, batch.changes, namespaces)


def _carry_out(sock: socket.socket, changes: Sequence[Change], namespaces: _Namespaces) -> None:
    """In as few system calls as may be: what has gathered is sent when a change needs the index of a link."""
    pending: list[netlink.Message] = []
    indices: dict[str, int] = {}

    def index_of(link: str) -> int:
        if link not in indices:
            if pending:
                netlink.send(sock, pending)
                pending.clear()
            indices[link] = netlink.link_index(sock, link)
        return indices[link]

    for change in changes:
        pending += _messages(change, index_of, namespaces)
    if pending:
        netlink.send(sock, pending)


def _messages(change: Change, index_of: Callable[[str], int], namespaces: _Namespaces) -> Sequence[netlink.Message]:
    if isinstance(change, SetPort):
        index = index_of(change.link)
        return vxlan.set_port(index, index_of(change.bridge)), vxlan.set_port_flags(index, flood=change.flood)
    return (_message(change, index_of, namespaces),)


def _message(change: Change, index_of: Callable[[str], int], namespaces: _Namespaces) -> netlink.Message:
    if isinstance(change, AddBridge):
        return netlink.add_bridge(change.name, change.mac, snooping=change.snooping)
    if isinstance(change, AddVxlan):
        target = namespaces.fd(change.namespace)
        return vxlan.add_vxlan(change.name, change.vni, change.local, change.port, change.mtu, target)
    if isinstance(change, AddVeth):
        return netlink.add_veth(
            change.name,
            index_of(change.bridge),
            change.peer,
            change.peer_mac,
            namespaces.fd(change.peer_namespace),
            change.mtu,
        )
    if isinstance(change, AddDummy):
        return sublinks.add_dummy(change.name)
    if isinstance(change, AddVlan):
        return sublinks.add_vlan(change.name, index_of(change.parent), change.vlan_id)
    if isinstance(change, AddSublink):
        return sublinks.add_sublink(change, index_of(change.parent), namespaces.fd(change.namespace))
    if isinstance(change, AddPort):
        return vxlan.set_port(index_of(change.link), index_of(change.bridge))
    if isinstance(change, SetReflecting):
        return netlink.set_reflecting(index_of(change.link), isolated=change.isolated)
    if isinstance(change, SetForwarding):
        return vxlan.set_forwarding(index_of(change.link), change.mac, change.host)
    if isinstance(change, DeleteForwarding):
        return vxlan.delete_forwarding(index_of(change.link), change.mac)
    if isinstance(change, SetNeighbour):
        return vxlan.set_neighbour(index_of(change.link), change.address, change.mac)
    if isinstance(change, DeleteNeighbour):
        return vxlan.delete_neighbour(index_of(change.link), change.address)
    if isinstance(change, AddRoute):
        return vxlan.add_route(index_of(change.link), change.destination, change.gateway, change.table)
    if isinstance(change, AddMarkRule | DeleteMarkRule):
        add = isinstance(change, AddMarkRule)
        return vxlan.mark_rule(change.link, change.mark, change.mask, change.table, add=add)
    if isinstance(change, AddAddress):
        return netlink.add_address(index_of(change.link), change.address)
    if isinstance(change, AddDefaultRoute):
        return netlink.add_default_route(change.gateway, index_of(change.link) if change.link else 0)
    if isinstance(change, SetUp):
        return netlink.set_up(index_of(change.link))
    if isinstance(change, DeleteLink):
        return netlink.delete_link(change.name)
    if isinstance(change, SetPort):
        raise TypeError("a port takes two messages")
    assert_never(change)


def _links(namespace: str) -> dict[str, Link]:
    with contextlib.ExitStack() as stack, _Namespaces(stack).connection(namespace) as sock:
        found = netlink.links(sock)
    names = {index: name for name, (index, _, _) in found.items()}
    return {name: Link(name, names.get(master, ""), kind) for name, (_, master, kind) in found.items()}


def _vxlan(name: str, namespace: str) -> VxlanLink | None:
    with contextlib.ExitStack() as stack, _Namespaces(stack).connection(namespace) as sock:
        return vxlan.read(sock, name)


def _set_sysctls(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        path = _SYSCTLS / name
        if path.read_text().strip() != value:
            path.write_text(value)


def _forget_flows(wanted: Sequence[FlowsTo]) -> None:
    with netlink.connection() as sock:
        local = {str(address.ip) for address in netlink.addresses(sock)}
    for protocol in sorted({each.protocol for each in wanted}):
        keys = {(each.address, each.port) for each in wanted if each.protocol == protocol}
        with netlink.connection(protocol=netlink.NETFILTER) as sock:
            found = [
                flow
                for version in sorted({ipaddress.ip_address(address).version for address, _ in keys})
                for flow in conntrack.flows(sock, _PROTOCOLS[protocol], {port for _, port in keys}, version)
                if (str(flow.destination), flow.port) in keys
                or (
                    (_ANYWHERE[version], flow.port) in keys
                    and (flow.destination.is_loopback or str(flow.destination) in local)
                )
            ]
            conntrack.forget(sock, [flow.key for flow in found])


def _translations(namespace: str) -> set[Translation]:
    with contextlib.ExitStack() as stack, _Namespaces(stack).connection(namespace, netlink.NETFILTER) as sock:
        return {each.translation for each in conntrack.translated(sock)}


def _forget_translations(gone: Collection[FlowPattern], namespace: str) -> None:
    patterns: dict[IPAddress, list[FlowPattern]] = {}
    for each in gone:
        patterns.setdefault(each.target, []).append(each)
    with contextlib.ExitStack() as stack, _Namespaces(stack).connection(namespace, netlink.NETFILTER) as sock:
        found = [
            flow.key
            for flow in conntrack.translated(sock, patterns)
            if any(each.fits(flow.translation) for each in patterns.get(flow.translation.target, ()))
        ]
        conntrack.forget(sock, found)


def parse_routes(table: str) -> list[Route]:
    """What /proc/net/route says, the default route left out. Pure."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8:
            continue
        address, mask = (int.from_bytes(bytes.fromhex(fields[i]), "little") for i in (1, 7))
        if mask:
            destination = ipaddress.IPv4Network((address, mask.bit_count()), strict=False)
            found.append(Route(destination, fields[0], on_link=not int(fields[3], 16) & _RTF_GATEWAY))
    return found


def _dropping_forwards() -> dict[str, str]:
    found = {}
    for chain in parse_dropping_forwards(nft.run("list chains")):
        with contextlib.suppress(HostError):  # gone since
            found[chain] = nft.run(f"list chain {chain}")
    return found


def parse_dropping_forwards(listed: str) -> list[str]:
    """Of chains as nft lists them, family, table and name of those that hook forward with a policy of drop. Pure."""
    found, table, chain = [], "", ""
    for line in listed.splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:3])
        elif words[:1] == ["chain"]:
            chain = words[1]
        elif "hook forward " in line and line.rstrip().endswith("policy drop;"):
            found.append(f"{table} {chain}")
    return found


def parse_names(listed: str) -> set[str]:
    """Of a set as nft lists it. Pure."""
    return set(re.findall(r'"([^"]+)"', listed))
