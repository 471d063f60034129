"""Stand-ins of the tests: a kernel in memory that records, and a driver that makes nothing."""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, assert_never

import msgspec

from runtime.errors import HostError
from runtime.kernel.network import (
    AddAddress,
    AddBridge,
    AddDefaultRoute,
    AddVeth,
    Batch,
    Change,
    DeleteLink,
    FlowsTo,
    IPInterface,
    Link,
    Route,
    SetUp,
)
from runtime.networks.driver import Endpoint, EndpointRequest, Network

Step = (
    type[AddBridge | AddVeth | AddAddress | AddDefaultRoute | SetUp | DeleteLink]
    | Literal["rules", "sysctls", "flows", "watch"]
)


@dataclass
class Device:
    """A link in memory."""

    bridge: str = ""
    up: bool = False
    addresses: list[IPInterface] = field(default_factory=list)
    peer: tuple[str, str] | None = None


class RecordingKernel:
    """``KernelNetwork`` in memory (``tests/contract/test_kernel_network.py``); ``done`` is what it was asked, in order.

    ``refuse`` makes it refuse the next step of a kind.
    """

    def __init__(self) -> None:
        self.devices: dict[str, dict[str, Device]] = {"": {"lo": Device(up=True)}}
        self.rules: dict[str, str] = {}
        self.sysctls: dict[str, str] = {"ipv4/ip_forward": "0"}
        self.watchers: list[Callable[[], None]] = []
        self.done: list[Change | FlowsTo | str] = []
        self.refused: set[Step] = set()

    def refuse(self, step: Step) -> None:
        self.refused.add(step)

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
                if type(change) in self.refused:
                    self.refused.remove(type(change))
                    raise _error(errno.EBUSY, f"{change}")
                self._make(change, batch.namespace)
                self.done.append(change)

    async def links(self, namespace: str = "") -> dict[str, Link]:
        if namespace not in self.devices:
            raise _error(errno.ENOENT, namespace)
        return {name: Link(name, device.bridge) for name, device in self.devices[namespace].items()}

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

    async def set_sysctls(self, values: Mapping[str, str]) -> None:
        self._refuse_if_told("sysctls")
        for name, value in values.items():
            found = re.fullmatch(r"ipv[46]/conf/(.+)/\w+", name)
            if found and found[1] not in self.devices[""]:
                raise _error(errno.ENOENT, name)
            self.sysctls[name] = value

    async def run_rules(self, commands: str) -> None:
        self._refuse_if_told("rules")
        tables = dict(self.rules)
        rest = commands
        while rest := rest.lstrip():
            found = re.match(r"(?:(add|delete) )?table (\w+ [\w-]+)(?: (\{.*?^\}))?", rest, re.DOTALL | re.MULTILINE)
            if found is None or (found[1] == "delete" and found[2] not in tables):
                raise HostError(f"nftables: refused: {rest.splitlines()[0]}")
            if found[1] == "delete":
                del tables[found[2]]
            else:
                tables[found[2]] = found[3] or tables.get(found[2], "")
            rest = rest[found.end() :]
        has_lost = "delete table" in commands
        self.rules = tables
        self.done.append("rules")
        if has_lost:
            self._tell()

    async def forget_flows(self, flows: Sequence[FlowsTo]) -> None:
        self._refuse_if_told("flows")
        self.done += flows

    def watch_rules(self, changed: Callable[[], None]) -> Callable[[], None]:
        self._refuse_if_told("watch")
        self.watchers.append(changed)
        return lambda: self.watchers.remove(changed)

    def flush_rules(self) -> None:
        """As somebody else does."""
        self.rules.clear()
        self._tell()

    def _tell(self) -> None:
        for changed in self.watchers:
            changed()

    async def tables(self) -> set[str]:
        return set(self.rules)

    def _refuse_if_told(self, step: Step) -> None:
        if step in self.refused:
            self.refused.remove(step)
            raise HostError("nftables: busy") if step == "rules" else _error(errno.EROFS, str(step))

    def _make(self, change: Change, namespace: str) -> None:
        here = self.devices[namespace]
        if isinstance(change, AddBridge):
            here.setdefault(change.name, Device(up=True))
        elif isinstance(change, AddVeth):
            self._make_pair(change, namespace)
        elif isinstance(change, DeleteLink):
            self._delete(namespace, change.name)
        elif isinstance(change, AddDefaultRoute):
            nets = [each.network for device in here.values() if device.up for each in device.addresses]
            if not any(change.gateway in net for net in nets):
                raise _error(errno.ENETUNREACH, f"{change}")
        elif isinstance(change, AddAddress | SetUp):
            if change.link not in here:
                raise _error(errno.ENODEV, change.link)
            if isinstance(change, SetUp):
                here[change.link].up = True
            elif change.address not in here[change.link].addresses:
                here[change.link].addresses.append(change.address)
        else:
            assert_never(change)

    def _make_pair(self, change: AddVeth, namespace: str) -> None:
        here, there = self.devices[namespace], self.devices.get(change.peer_namespace)
        if change.bridge not in here:
            raise _error(errno.ENODEV, change.bridge)
        if there is None:
            raise _error(errno.ENOENT, change.peer_namespace)
        if change.name in here or change.peer in there:
            raise _error(errno.EEXIST, change.name)
        here[change.name] = Device(change.bridge, up=True, peer=(change.peer_namespace, change.peer))
        there[change.peer] = Device(peer=(namespace, change.name))

    def _delete(self, namespace: str, name: str) -> None:
        gone = self.devices[namespace].pop(name, None)
        for device in self.devices[namespace].values():
            device.bridge = "" if device.bridge == name else device.bridge
        if gone and gone.peer:
            self.devices[gone.peer[0]].pop(gone.peer[1], None)


def _error(number: int, what: str) -> OSError:
    return OSError(number, f"{what}: {os.strerror(number)}")


class FakeDriver:
    """A driver that notes what it is told; ``refuse`` names a step and network at which it fails."""

    scope: Literal["local"] = "local"

    def __init__(self, name: str = "fake", *, routes: bool = True) -> None:
        self.name, self.routes = name, routes
        self.done: list[tuple[str, str]] = []
        self.requests: dict[str, EndpointRequest] = {}
        self.default_routes: list[str] = []
        self.refuse: set[tuple[str, str]] = set()
        self._numbers = itertools.count(1)

    def _note(self, step: str, network: Network) -> None:
        if (step, network.Name) in self.refuse:
            raise HostError(f"{step} {network.Name}")
        self.done.append((step, network.Name))

    async def settle(self, network: Network) -> Network:
        return msgspec.structs.replace(network, Settled=True)

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
        )

    async def attach(self, network: Network, endpoint: Endpoint, namespace: str, *, default_route: bool) -> None:
        self._note("attach", network)
        if default_route:
            self.default_routes.append(network.Name)

    async def detach(self, network: Network, endpoint: Endpoint) -> None:
        self._note("detach", network)

    async def release(self, network: Network, endpoint: Endpoint) -> None:
        self._note("release", network)

    def adopt(self, network: Network, endpoint: Endpoint) -> None:
        self._note("adopt", network)

    async def reconcile(self, network: Network, endpoints: Sequence[Endpoint]) -> None:
        self._note("reconcile", network)

    def close(self) -> None:
        pass
