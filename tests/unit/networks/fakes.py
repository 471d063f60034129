"""Stand-ins of the tests: a kernel in memory that records, and a driver that makes nothing."""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, assert_never

import msgspec

from runtime.errors import HostError
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
    IPInterface,
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
from runtime.networks.driver import Endpoint, EndpointRequest, Network, Pool
from runtime.networks.ports import PortRequest
from runtime.networks.rules import PublishedPort

Step = type[Change] | Literal["rules", "sysctls", "flows", "watch"]


@dataclass
class Device:
    """A link in memory."""

    bridge: str = ""
    kind: str = ""
    up: bool = False
    isolated: bool = False
    addresses: list[IPInterface] = field(default_factory=list)
    peer: tuple[str, str] | None = None
    parent: tuple[str, str] | None = None
    vxlan: VxlanLink | None = None
    places: dict[str, str] = field(default_factory=dict)
    """Of a bridge: MAC to port."""


class RecordingKernel:
    """``KernelNetwork`` in memory (``tests/contract/test_kernel_network.py``); ``done`` is what it was asked, in order.

    ``refuse`` makes it refuse the next step of a kind.
    """

    def __init__(self) -> None:
        self.devices: dict[str, dict[str, Device]] = {"": {"lo": Device(up=True)}}
        self.rules: dict[str, str] = {}
        self.rules_inside: dict[str, dict[str, str]] = {}
        self.routing_rules: list[AddMarkRule] = []
        self.flows: dict[str, set[Translation]] = {}
        self.link_watchers: list[tuple[str, Callable[[str], None]]] = []
        self.sysctls: dict[str, str] = {"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0"}
        self.watchers: list[Callable[[], None]] = []
        self.obstacles: dict[str, str] = {}
        self.done: list[Change | FlowsTo | FlowPattern | str] = []
        self.refused: Counter[Step] = Counter()
        self.default_routes: dict[int, str] = {}
        """Links by address family, of the last namespace that got one."""

    def refuse(self, step: Step, times: int = 1) -> None:
        self.refused[step] += times

    def add_namespace(self, path: str) -> None:
        self.devices[path] = {"lo": Device()}

    def end_namespace(self, path: str) -> None:
        """As the kernel does: with its links and their far ends."""
        for name in list(self.devices[path]):
            self._delete(path, name)
        del self.devices[path]

    async def apply(self, *batches: Batch) -> None:
        for batch in batches:
            if batch.namespace not in self.devices:
                raise _error(errno.ENOENT, batch.namespace)
            for change in batch.changes:
                if self._is_refused(type(change)):
                    raise _error(errno.EBUSY, f"{change}")
                self._make(change, batch.namespace)
                self.done.append(change)

    async def keep_namespace(self, path: str, of: str = "") -> None:
        if of not in self.devices:
            raise _error(errno.ENOENT, of)
        self.devices.setdefault(path, self.devices[of] if of else {"lo": Device()})

    async def drop_namespace(self, path: str) -> None:
        found = self.devices.get(path)
        if found is not None and sum(found is each for each in self.devices.values()) > 1:
            del self.devices[path]  # it has processes, or is kept elsewhere too
        elif found is not None:
            self.end_namespace(path)

    async def has_namespace(self, path: str) -> bool:
        return path in self.devices

    async def vxlan(self, name: str, namespace: str = "") -> VxlanLink | None:
        await self.links(namespace)
        device = self.devices[namespace].get(name)
        return msgspec.structs.replace(device.vxlan, bridge=device.bridge) if device and device.vxlan else None

    async def translations(self, namespace: str = "") -> set[Translation]:
        await self.links(namespace)
        return set(self.flows.get(namespace, ()))

    async def forget_translations(self, gone: Collection[FlowPattern], namespace: str = "") -> None:
        await self.links(namespace)
        left = {flow for flow in self.flows.get(namespace, ()) if not any(each.fits(flow) for each in gone)}
        self.flows[namespace] = left
        self.done += gone

    def watch_links(self, changed: Callable[[str], None], namespace: str = "") -> Callable[[], None]:
        if namespace not in self.devices:
            raise _error(errno.ENOENT, namespace)
        entry = namespace, changed
        self.link_watchers.append(entry)
        return lambda: self.link_watchers.remove(entry)

    async def links(self, namespace: str = "") -> dict[str, Link]:
        if namespace not in self.devices:
            raise _error(errno.ENOENT, namespace)
        return {name: Link(name, device.bridge, device.kind) for name, device in self.devices[namespace].items()}

    async def routes(self) -> list[Route]:
        return [
            Route(each.network, name)
            for name, device in self.devices[""].items()
            for each in device.addresses
            if device.up and each.version == 4
        ]

    async def read_sysctl(self, name: str) -> str:
        if name not in self.sysctls:
            raise _error(errno.ENOENT, name)
        return self.sysctls[name]

    async def set_sysctls(self, values: Mapping[str, str], namespace: str = "") -> None:
        self._refuse_if_told("sysctls")
        await self.links(namespace)
        for name, value in values.items():
            found = re.fullmatch(r"ipv[46]/conf/(.+)/\w+", name)
            if found and found[1] not in {"default", "all", *self.devices[namespace]}:
                raise _error(errno.ENOENT, name)
            if not namespace:
                self.sysctls[name] = value

    async def run_rules(self, commands: str, namespace: str = "") -> None:
        self._refuse_if_told("rules")
        await self.links(namespace)
        tables = dict(self.rules_inside.get(namespace, {}) if namespace else self.rules)
        rest = commands
        while rest := rest.lstrip():
            line = re.match(r"(?:add|flush|delete) (?:element|chain|rule) (\w+ [\w-]+) .*\n", rest)
            if line and line[1] in tables:
                tables[line[1]] = _changed(tables[line[1]], line[0])
                rest = rest[line.end() :]
                continue
            found = re.match(r"(?:(add|delete) )?table (\w+ [\w-]+)(?: (\{.*?^\}))?", rest, re.DOTALL | re.MULTILINE)
            if found is None or (found[1] == "delete" and found[2] not in tables):
                raise HostError(f"nftables: refused: {rest.splitlines()[0]}")
            if found[1] == "delete":
                del tables[found[2]]
            else:
                tables[found[2]] = found[3] or tables.get(found[2], "")
            rest = rest[found.end() :]
        has_lost = "delete table" in commands
        if namespace:
            self.rules_inside[namespace] = tables
        else:
            self.rules = tables
        self.done.append("rules")
        if has_lost and not namespace:
            self._tell()

    async def forget_flows(self, flows: Sequence[FlowsTo]) -> None:
        self._refuse_if_told("flows")
        self.done += flows

    def watch_rules(self, changed: Callable[[], None], namespace: str = "") -> Callable[[], None]:
        self._refuse_if_told("watch")
        if namespace not in self.devices:
            raise _error(errno.ENOENT, namespace)
        self.watchers.append(changed)
        return lambda: self.watchers.remove(changed)

    def flush_rules(self) -> None:
        """As somebody else does."""
        self.rules.clear()
        self._tell()

    def _tell(self) -> None:
        for changed in self.watchers:
            changed()

    async def tables(self, namespace: str = "") -> set[str]:
        await self.links(namespace)
        return set(self.rules_inside.get(namespace, {}) if namespace else self.rules)

    async def dropping_forwards(self) -> dict[str, str]:
        return dict(self.obstacles)

    async def names_in(self, table: str, name: str) -> set[str]:
        if table not in self.rules:
            raise HostError("nftables: No such file or directory")
        return set(re.findall(rf'^{name} {{ "(.+)" }}$', self.rules[table], re.MULTILINE))

    def _refuse_if_told(self, step: Step) -> None:
        if self._is_refused(step):
            raise HostError("nftables: busy") if step == "rules" else _error(errno.EROFS, str(step))

    def _is_refused(self, step: Step) -> bool:
        if step not in self.refused:
            return False
        self.refused -= Counter([step])
        return True

    def _make(self, change: Change, namespace: str) -> None:
        here = self.devices[namespace]
        if isinstance(change, AddBridge):
            here.setdefault(change.name, Device(kind="bridge", up=True))
        elif isinstance(change, AddVeth):
            self._make_pair(change, namespace)
        elif isinstance(change, AddVxlan):
            self._make_vxlan(change)
        elif isinstance(change, AddDummy):
            here.setdefault(change.name, Device(kind="dummy", up=True))
        elif isinstance(change, AddVlan | AddSublink):
            self._make_on_top(change, namespace)
        elif isinstance(change, SetReflecting):
            if change.link not in here:
                raise _error(errno.ENODEV, change.link)
            here[change.link].isolated = change.isolated
        elif isinstance(change, SetPort | AddPort):
            if change.bridge not in here or change.link not in here:
                raise _error(errno.ENODEV, f"{change}")
            here[change.link].bridge, here[change.link].up = change.bridge, True
        elif isinstance(change, SetForwarding | DeleteForwarding | SetNeighbour | DeleteNeighbour):
            self._note_place(change, here)
        elif isinstance(change, AddMarkRule | DeleteMarkRule):
            rule = AddMarkRule(change.link, change.mark, change.mask, change.table)
            self.routing_rules = [each for each in self.routing_rules if each != rule]
            if isinstance(change, AddMarkRule):
                self.routing_rules.append(rule)
        elif isinstance(change, AddRoute):
            if not (change.link in here and here[change.link].up):
                raise _error(errno.ENODEV, f"{change}")
        elif isinstance(change, DeleteLink):
            self._delete(namespace, change.name)
        elif isinstance(change, AddDefaultRoute):
            self._route(change, here)
        elif isinstance(change, AddAddress | SetUp):
            if change.link not in here:
                raise _error(errno.ENODEV, change.link)
            if isinstance(change, SetUp):
                here[change.link].up = True
            elif change.address not in here[change.link].addresses:
                here[change.link].addresses.append(change.address)
        else:
            assert_never(change)

    def _route(self, change: AddDefaultRoute, here: Mapping[str, Device]) -> None:
        if change.link and change.link not in here:
            raise _error(errno.ENODEV, change.link)
        links = [here[change.link]] if change.link else here.values()
        nets = [each.network for device in links if device.up for each in device.addresses]
        if not change.gateway.is_unspecified and not any(change.gateway in net for net in nets):
            raise _error(errno.ENETUNREACH, f"{change}")
        self.default_routes[change.gateway.version] = change.link

    def _make_on_top(self, change: AddVlan | AddSublink, namespace: str) -> None:
        if change.parent not in self.devices[namespace]:
            raise _error(errno.ENODEV, change.parent)
        device = Device(parent=(namespace, change.parent), kind="vlan" if isinstance(change, AddVlan) else change.kind)
        if isinstance(change, AddVlan):
            self.devices[namespace].setdefault(change.name, device)
            return
        there = self.devices.get(change.namespace)
        if there is None:
            raise _error(errno.ENOENT, change.namespace)
        if change.name in there:
            raise _error(errno.EEXIST, change.name)
        there[change.name] = device

    def _make_pair(self, change: AddVeth, namespace: str) -> None:
        here, there = self.devices[namespace], self.devices.get(change.peer_namespace)
        if change.bridge not in here:
            raise _error(errno.ENODEV, change.bridge)
        if there is None:
            raise _error(errno.ENOENT, change.peer_namespace)
        if change.name in here or change.peer in there:
            raise _error(errno.EEXIST, change.name)
        here[change.name] = Device(change.bridge, "veth", up=True, peer=(change.peer_namespace, change.peer))
        there[change.peer] = Device(kind="veth", peer=(namespace, change.name))

    def _make_vxlan(self, change: AddVxlan) -> None:
        there = self.devices.get(change.namespace)
        if there is None:
            raise _error(errno.ENOENT, change.namespace)
        twins = (each.vxlan for devices in self.devices.values() for each in devices.values() if each.vxlan)
        if change.name in there or any((each.vni, each.port) == (change.vni, change.port) for each in twins):
            raise _error(errno.EEXIST, change.name)
        made = VxlanLink(change.vni, change.local, change.port, change.mtu, "", {}, {})
        there[change.name] = Device(vxlan=made)

    def _note_place(
        self, change: SetForwarding | DeleteForwarding | SetNeighbour | DeleteNeighbour, here: dict[str, Device]
    ) -> None:
        device = here.get(change.link)
        if device is None:
            raise _error(errno.ENODEV, change.link)
        if isinstance(change, SetForwarding) and change.host is None:
            if device.bridge not in here:
                raise _error(errno.EOPNOTSUPP, f"{change}")
            here[device.bridge].places[change.mac] = change.link
            return
        if device.vxlan is None:
            raise _error(errno.EOPNOTSUPP, f"{change}")
        if isinstance(change, SetForwarding) and change.host:
            device.vxlan.forwarding[change.mac] = change.host
        elif isinstance(change, DeleteForwarding):
            device.vxlan.forwarding.pop(change.mac, None)
        elif isinstance(change, SetNeighbour):
            device.vxlan.neighbours[change.address] = change.mac
        elif isinstance(change, DeleteNeighbour):
            device.vxlan.neighbours.pop(change.address, None)

    def _delete(self, namespace: str, name: str) -> None:
        gone = self.devices[namespace].pop(name, None)
        if gone:
            for place, changed in tuple(self.link_watchers):
                if place == namespace:
                    changed(name)
        for device in self.devices[namespace].values():
            device.bridge = "" if device.bridge == name else device.bridge
        if gone and gone.peer:
            self.devices[gone.peer[0]].pop(gone.peer[1], None)
        for place, devices in self.devices.items():
            for each in [each for each, device in devices.items() if gone and device.parent == (namespace, name)]:
                self._delete(place, each)


def _changed(table: str, line: str) -> str:
    """A table's text with one command more: elements come and go, all else is noted as it is told."""
    element = re.fullmatch(r"(add|delete) element \w+ \S+ (\S+) \{ (.*?)(?: : (.*))? \}\n", line)
    if element is None or "type filter hook" not in table:
        return table + line
    key = f"{element[2]} {{ {element[3]}"
    lines = [each for each in table.splitlines() if each.startswith(f"{key} ")]
    if element[1] == "add":
        wanted = f"{key} : {element[4]} }}" if element[4] else f"{key} }}"
        if lines and lines != [wanted]:
            raise HostError(f"nftables: File exists: {line}")
        return table if lines else f"{table}\n{wanted}"
    if not lines:
        raise HostError(f"nftables: No such file or directory: {line}")
    return table.replace(f"\n{lines[0]}", "")


def _error(number: int, what: str) -> OSError:
    return OSError(number, f"{what}: {os.strerror(number)}")


class FakeDriver:
    """A driver that notes what it is told; ``refuse`` names a step and network at which it fails."""

    def __init__(self, name: str = "fake", *, routes: bool = True, scope: Literal["local", "swarm"] = "local") -> None:
        self.name, self.routes, self.scope = name, routes, scope
        self.done: list[tuple[str, str]] = []
        self.requests: dict[str, EndpointRequest] = {}
        self.default_routes: list[str] = []
        self.refuse: set[tuple[str, str]] = set()
        self._numbers = itertools.count(1)

    def _note(self, step: str, network: Network) -> None:
        if (step, network.Name) in self.refuse:
            raise HostError(f"{step} {network.Name}")
        self.done.append((step, network.Name))

    async def settle(self, network: Network, others: Sequence[Network] = ()) -> Network:
        asked = [
            Pool(Subnet=each.Subnet, Gateway=each.Subnet.replace("0/", "1/")[:-3]) for each in network.IPAM.Config or ()
        ]
        return msgspec.structs.replace(network, Pools=network.Pools or asked, Settled=True)

    async def create(self, network: Network) -> None:
        self._note("create", network)

    async def remove(self, network: Network) -> None:
        self._note("remove", network)

    async def reserve(self, network: Network, request: EndpointRequest) -> Endpoint:
        self._note("reserve", network)
        self.requests[network.Name] = request
        return Endpoint(
            NetworkID=network.ID,
            ID=f"endpoint-{next(self._numbers)}",
            Interface=request.interface,
            Aliases=request.settings.Aliases,
            Ports=_published(request.ports),
        )

    async def attach(self, network: Network, endpoint: Endpoint, namespace: str, *, default_route: bool) -> None:
        self._note("attach", network)
        if default_route:
            self.default_routes.append(network.Name)

    async def publish(self, network: Network, endpoint: Endpoint, ports: Sequence[PortRequest]) -> Endpoint:
        self._note("publish" if ports else "withdraw", network)
        return msgspec.structs.replace(endpoint, Ports=_published(ports))

    async def detach(self, network: Network, endpoint: Endpoint, namespace: str) -> None:
        self._note("detach", network)

    async def release(self, network: Network, endpoint: Endpoint) -> None:
        self._note("release", network)

    def adopt(self, network: Network, endpoint: Endpoint) -> None:
        self._note("adopt", network)

    async def reconcile(self, network: Network, endpoints: Sequence[Endpoint]) -> None:
        self._note("reconcile", network)

    def close(self) -> None:
        pass


def _published(ports: Sequence[PortRequest]) -> list[PublishedPort]:
    return [
        PublishedPort(each.protocol, each.host_ip, each.host_ports[0] or 49153, "", each.container_port)
        for each in ports
    ]
