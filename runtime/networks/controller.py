"""The networks of a host: which there are, which driver makes them, and which containers are on them.

The engine speaks to this alone. A container may be on many networks at once: at its start their endpoints are reserved
together, at its end released together, and in between it may join one more (``extend``, ``attach``) and leave one
(``leave``, ``give_back``). One of them gets the default route and the published ports (``sandbox``). What is kept of a
network is in networks.json; what is kept of an endpoint in its container's record, and comes back by ``adopt`` after a
restart.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import datetime as dt
import ipaddress
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from base.files import read_text
from base.records import Records
from runtime.errors import (
    AddressInUseError,
    ConflictError,
    EngineError,
    ForbiddenError,
    HostError,
    InvalidParameterError,
    NetworkNotFoundError,
    NotFoundError,
    UnavailableError,
)
from runtime.events import EventBus
from runtime.kernel.network import AddAddress, AddDefaultRoute, Batch, IPAddress, KernelNetwork
from runtime.network_types import (
    NetworkCreateRequest,
    NetworkCreateResponse,
    NetworkPruneReport,
    NetworkResource,
)
from runtime.networks import definition, obstacles, options, sandbox, views
from runtime.networks.driver import Driver, Endpoint, EndpointRequest, Network, Sandbox
from runtime.networks.ports import PortRequest, requests_again, requests_of
from runtime.networks.reservations import Reservations
from runtime.types import EndpointSettings

log = structlog.get_logger(__name__)

TABLE_FILE = "networks.json"


_WAY_OUT_PRIORITY = -(1 << 62)
"""Of the network that leads out for others: any that was asked for comes first."""


class _Saved(msgspec.Struct):
    """networks.json."""

    Networks: list[Network]


class _Held:
    """What one container has, by network name: what was asked, endpoints in memory, which of them are attached."""

    def __init__(self, endpoints: Mapping[str, Endpoint] | None = None) -> None:
        self.wanted: dict[str, EndpointSettings] = {}
        self.reserving = ""
        """The network that an endpoint is being reserved on."""
        self.endpoints = dict(endpoints or {})
        self.attached = set(self.endpoints)
        self.gateways: tuple[str, ...] = ()

    def sandbox(self, *, without: str = "") -> Sandbox:
        endpoints = {name: endpoint for name, endpoint in self.endpoints.items() if name != without}
        return Sandbox(endpoints, self.gateways)

    def main(self) -> str:
        """The network that has the published ports, or ""."""
        return self.gateways[0] if self.gateways else ""


class Networks:
    """The networks below one state folder.

    Args:
        state: where networks.json is.
        drivers: one of each kind that ``predefined`` or the file needs.
        predefined: networks there always are; ID, time and a settled subnet come from the file once it has them.
        kernel: for what is no driver's: default routes and parameters of interfaces in the namespaces of containers.
        events: is told who connects and disconnects.
        name_of: a container's name by ID, for inspect.
        ways_out: by the name of a driver, the network that leads out for containers that are on networks of that driver
            and on none that leads out by itself. It is made when first needed; a user may make it before.
    """

    def __init__(
        self,
        state: Path,
        *,
        drivers: Sequence[Driver],
        predefined: Sequence[Network],
        kernel: KernelNetwork,
        events: EventBus,
        name_of: Callable[[str], str],
        ways_out: Mapping[str, NetworkCreateRequest] | None = None,
    ) -> None:
        self._state, self._file, self._records = state, state / TABLE_FILE, Records()
        self._drivers = {driver.name: driver for driver in drivers}
        self._predefined = {network.Name: network for network in predefined}
        self._kernel, self._events, self._name_of = kernel, events, name_of
        self._ways_out = dict(ways_out or {})
        self._table: dict[str, Network] = {}
        self._held: dict[str, _Held] = {}
        self.reservations = Reservations()
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Read the table, or make it. Touches no device."""
        saved = {network.Name: network for network in read_table(self._state)}
        created = _now()
        self._table = {
            **{name: _kept(wanted, saved.get(name), created) for name, wanted in self._predefined.items()},
            **{name: network for name, network in saved.items() if name not in self._predefined},
        }
        if self._table != saved:  # what the configuration says counts, on a full disk too
            await asyncio.to_thread(self._records.keep, self._file, _encoded(self._table), durable=True)

    async def close(self) -> None:
        """Give back the sockets; devices and rules stay for the containers that run on."""
        for driver in self._drivers.values():
            driver.close()
        await asyncio.to_thread(self._records.close)

    @property
    def unsaved(self) -> tuple[int, str]:
        """How many records are not on the disk, and why."""
        return self._records.unsaved

    async def remove_devices(self) -> None:
        """Take every device and rule away, as tests do. Containers on them lose their network."""
        for network in self._table.values():
            await self._driver(network).remove(network)

    async def warnings(self) -> builtins.list[str]:
        """What of others stands in the way of containers, as sentences."""
        bridges = [
            options.parse(network).device
            for network in self._table.values()
            if network.Driver == "bridge" and network.Settled and not network.Internal
        ]
        try:
            return obstacles.warnings(await self._kernel.dropping_forwards(), bridges) if bridges else []
        except HostError as error:
            log.warning("rules.not_read", reason=str(error))
            return []

    def driver_names(self) -> builtins.list[str]:
        """Of all that networks here can be made by."""
        return [*self._drivers]

    # ---- networks ----------------------------------------------------------------------------------------------------

    async def create(self, request: NetworkCreateRequest) -> NetworkCreateResponse:
        """Make a network of the user's. It is in the table, and stays there, once this returns, and not at all if it raises.

        Raises:
            ConflictError: there is one of that name.
            ForbiddenError, InvalidParameterError, NotFoundError: with dockerd's text.
            HostError: its devices cannot be made, or the table not be saved.
        """
        async with self._lock:
            network = definition.define(request, secrets.token_hex(32), _now(), self._table.get)
            found = self._table.get(network.Name)
            if found and found.Incomplete:
                await self._take_away(found)
            elif found:
                raise ConflictError(f"network with name {network.Name} already exists")
            if network.ConfigOnly:
                await self._save({**self._table, network.Name: network})
            else:
                network = await self._make(network)
        if not network.ConfigOnly:
            self._publish(network, "create", "")
        warnings = definition.warnings(network)
        if warnings:
            log.warning("network.option_without_effect", network=network.Name, reasons=warnings)
        return NetworkCreateResponse(Id=network.ID, Warning="; ".join(warnings))

    async def _make(self, network: Network) -> Network:
        """Under the lock. It is written before there is a device, so that none is ever forgotten."""
        driver = self._drivers.get(network.Driver)
        if driver is None:
            raise NotFoundError(f'plugin "{network.Driver}" not found')
        if network.Ingress and driver.scope == "local":
            raise ForbiddenError("Ingress network can only be global scope network")
        if network.Scope == "swarm" and driver.scope == "local":
            raise ForbiddenError("cannot create a swarm scoped network when swarm is not active")
        if network.Scope == "local" and driver.scope == "swarm":
            raise ForbiddenError(f"cannot downgrade network scope for {network.Driver} networks")
        others = [other for other in self._table.values() if not other.ConfigOnly]
        network = await driver.settle(network, others)
        await self._save({**self._table, network.Name: msgspec.structs.replace(network, Incomplete=True)})
        try:
            await driver.create(network)
            await self._save({**self._table, network.Name: network})
        except BaseException:
            with contextlib.suppress(EngineError):  # it stays incomplete, and goes with the next start
                await self._take_away(network)
            raise
        return network

    async def put(self, network: Network) -> None:
        """A network that was decided elsewhere, as it is by now, under its own ID; settled. Nothing changes if it is so.

        Raises:
            ConflictError: another one here has its name.
            HostError: it cannot be made, or the table not be saved.
        """
        async with self._lock:
            found = self._table.get(network.Name)
            if found is not None and found.ID != network.ID:
                raise ConflictError(
                    f"network {network.Name} ({network.ID[:12]}) cannot be on this node: another network of this host has "
                    f"that name ({found.ID[:12]})"
                )
            if found != network:
                await self._save({**self._table, network.Name: network})
            await self._driver(network).create(network)

    async def drop(self, network_id: str, unless: Callable[[], bool]) -> None:
        """Take away a network that was put, if it is to go by then. Idempotent.

        Raises ForbiddenError: somebody is on it; HostError.
        """
        async with self._lock:
            if unless():
                return
            network = next((each for each in self._table.values() if network_id == each.ID), None)
            if network is not None:
                self._refuse_in_use(network)
                await self._take_away(network)

    async def remove(self, ref: str) -> None:
        """Take a network of the user's away, for good.

        Raises:
            NetworkNotFoundError.
            ForbiddenError: it is predefined, or somebody is on it.
            HostError: a device of it stays; nobody gets on it any more, and the next removal or start tries again.
        """
        network = self._get(ref)
        if network.Name in self._predefined:
            raise ForbiddenError(f"{network.Name} is a pre-defined network and cannot be removed")
        async with self._lock:
            network = self._get(network.ID)
            self._refuse_in_use(network)
            before = self._table
            # At once, not with the write: nobody gets on it meanwhile.
            self._table = {**before, network.Name: msgspec.structs.replace(network, Incomplete=True)}
            try:
                await self._save(self._table)
            except HostError:
                self._table = before
                raise
            await self._take_away(network)
        if not network.ConfigOnly:
            self._publish(network, "destroy", "")

    async def prune(self, filters: Mapping[str, Sequence[str]]) -> NetworkPruneReport:
        """Remove networks of the user's that nobody is on. Filters: label, label!, until. Raises InvalidParameterError."""
        leave = views.PruneFilter(filters, now_s=time.time())
        deleted = []
        for network in tuple(self._table.values()):
            is_others = network.Name in self._predefined or network.Scope == "swarm"  # the cluster's to remove
            if is_others or network.ConfigOnly or not leave.takes(network):
                continue
            try:
                await self.remove(network.ID)
            except (ForbiddenError, NetworkNotFoundError):  # in use, or removed meanwhile
                continue
            except EngineError as error:
                log.warning("network.not_removed", network=network.Name, reason=str(error))
                continue
            deleted.append(network.Name)
        self._events.publish("network", "prune", "", {"reclaimed": "0"})
        return NetworkPruneReport(NetworksDeleted=deleted or None)

    def _refuse_in_use(self, network: Network) -> None:
        if network.ConfigOnly and any(other.ConfigFrom == network.Name for other in self._table.values()):
            raise ForbiddenError(f'error while removing network: configuration network "{network.Name}" is in use')
        users = [
            f'name:"{self._name_of(container_id)}" id:"{endpoint.ID[:12] if endpoint else ""}"'
            for container_id, held in self._held.items()
            if (endpoint := held.endpoints.get(network.Name)) or held.reserving == network.Name
        ]
        if users:
            raise ForbiddenError(
                f"error while removing network: network {network.Name} has active endpoints ({', '.join(users)})"
            )

    async def _take_away(self, network: Network) -> None:
        """Under the lock, with the record saying that it goes. Raises HostError."""
        if not network.ConfigOnly:
            await self._driver(network).remove(network)
        await self._save({name: other for name, other in self._table.items() if name != network.Name})

    # ---- lookup ----------------------------------------------------------------------------------------------------

    def resolve(self, ref: str) -> str:
        """Name of a network by name, ID or unique ID prefix. Raises NetworkNotFoundError."""
        return self._get(ref).Name

    def is_predefined(self, name: str) -> bool:
        """Whether every host has a network of its own of that name."""
        return name in self._predefined

    def find(self, ref: str) -> Network:
        """A network by name, ID or unique ID prefix. Raises NetworkNotFoundError."""
        return self._get(ref)

    def id_of(self, name: str) -> str:
        """ID of a network by name; "" when it is there no more, as it may be for a container that does not run."""
        return self._table[name].ID if name in self._table else ""

    def list(
        self, filters: Mapping[str, Sequence[str]] | None = None, others: Iterable[NetworkResource] = ()
    ) -> list[NetworkResource]:
        """All networks, and those of ``others`` that are not among them.

        Filters: driver, id, name, scope, type, dangling, label. Raises InvalidParameterError.
        """
        wanted = views.NetworkFilter(filters or {})
        found = [(name in self._predefined, self.inspect(name)) for name in self._table]
        here = {network.Id for _, network in found}
        found += [(False, network) for network in others if network.Id not in here]
        return [network for builtin, network in found if wanted.fits(network, builtin=builtin)]

    def prunable(
        self, filters: Mapping[str, Sequence[str]], others: Iterable[NetworkResource]
    ) -> builtins.list[NetworkResource]:
        """Those of ``others`` that the filters of ``prune`` leave. Raises InvalidParameterError."""
        leave = views.PruneFilter(filters, now_s=time.time())
        return [network for network in others if leave.takes(network)]

    def inspect(self, ref: str) -> NetworkResource:
        """One network and who is on it. Raises NetworkNotFoundError."""
        network = self._get(ref)
        users = {
            container_id: (self._name_of(container_id), held.endpoints[network.Name])
            for container_id, held in self._held.items()
            if network.Name in held.endpoints
        }
        return views.resource(network, self._driver(network).scope, users)

    # ---- a container's endpoints -----------------------------------------------------------------------------------

    async def reserve(
        self, container_id: str, wanted: Mapping[str, EndpointSettings], ports: Sequence[PortRequest]
    ) -> Sandbox:
        """Addresses, MACs and host ports on every network wanted (by name), all or none.

        What a former run could not give back goes first.

        Raises:
            UnavailableError: no address left, an address or a port is taken.
            AddressInUseError: another container has the address that this one asks for.
            NetworkNotFoundError: a network was removed while the container did not run.
            HostError: a network could not be made.
        """
        await self.release(container_id)  # what the end of its last run could not
        wanted = await self._with_way_out(wanted)
        interfaces = sandbox.interface_names(wanted)
        held = self._held[container_id] = _Held()
        try:
            ready = {name: await self._ready(name) for name in wanted}
            held.gateways = self._gateways(wanted)
            for name, settings in wanted.items():
                published = ports if name == held.main() else ()
                await self._reserve_on(ready[name], held, container_id, settings, interfaces[name], published)
        except BaseException:
            await self.release(container_id)
            raise
        return held.sandbox()

    async def attach(self, container_id: str, pid: int) -> None:
        """Give the network namespace of a process the interfaces it lacks. Raises HostError; ``release`` then."""
        held, namespace = self._held[container_id], f"/proc/{pid}/ns/net"
        for name in held.endpoints:
            if name not in held.attached:
                await self._attach(held, container_id, name, namespace)

    async def _attach(self, held: _Held, container_id: str, name: str, namespace: str) -> None:
        network, endpoint = self._table[name], held.endpoints[name]
        await self._driver(network).attach(network, endpoint, namespace, default_route=name in held.gateways)
        await self._finish(held.wanted[name], endpoint, namespace)
        held.attached.add(name)
        self._publish(network, "connect", container_id)

    async def extend(
        self, container_id: str, name: str, settings: EndpointSettings, ports: Sequence[PortRequest]
    ) -> Sandbox:
        """Reserve an endpoint on one more network for a container that runs; ``attach`` follows, or ``leave``.

        ``ports`` are what the container publishes: they move when this network is its way out from now on.

        Raises:
            UnavailableError, AddressInUseError, HostError: as ``reserve``; all is as it was.
        """
        held = self._held.setdefault(container_id, _Held())
        network = await self._ready(name)
        await self._reserve_more(network, held, container_id, settings)
        try:
            await self._lead_out(held, container_id, held.wanted)
            await self._move_ports(held, self._gateways(held.wanted), ports)
        except BaseException:
            await self.give_back(container_id, name)
            raise
        return held.sandbox()

    async def _reserve_more(self, network: Network, held: _Held, container_id: str, settings: EndpointSettings) -> None:
        taken = [endpoint.Interface for endpoint in held.endpoints.values()]
        interface = sandbox.interface_names({network.Name: settings}, taken)[network.Name]
        await self._reserve_on(network, held, container_id, settings, interface, ())

    async def _lead_out(
        self, held: _Held, container_id: str, wanted: Mapping[str, EndpointSettings]
    ) -> builtins.list[str]:
        """Reserve on the network that leads out for others, if a container with these needs it from now on."""
        more = {name: each for name, each in (await self._with_way_out(wanted)).items() if name not in held.endpoints}
        for name, settings in more.items():
            await self._reserve_more(await self._ready(name), held, container_id, settings)
        return [*more]

    def spare_way_out(self, container_id: str) -> str:
        """The network that a container that runs was put on as a way out and that none of its others needs, or ""."""
        held = self._held[container_id]
        asked = [self._table[name] for name in held.endpoints if not self.is_way_out(name)]
        if any(network.Driver in self._ways_out and not network.Internal for network in asked):
            return ""
        return next((name for name in held.endpoints if self.is_way_out(name)), "")

    async def leave(self, container_id: str, name: str, ports: Sequence[PortRequest], pid: int) -> Sandbox:
        """Take the interface of one network away from a container that runs on; returns what it has then.

        Its default route and ``ports`` go by another network, if there is one. Until ``give_back`` its address is nobody
        else's. Idempotent. Raises UnavailableError, HostError: it is on the network as before.
        """
        held = self._held[container_id]
        if name not in held.endpoints:
            return held.sandbox()
        network = self._table[name]
        rest = {other: settings for other, settings in held.wanted.items() if other != name}
        for other in await self._lead_out(held, container_id, rest):
            await self._attach(held, container_id, other, f"/proc/{pid}/ns/net")
            rest[other] = held.wanted[other]
        try:
            await self._move_ports(held, self._gateways(rest), ports)
            await self._set_routes(held, pid)
            await self._driver(network).detach(network, held.endpoints[name], f"/proc/{pid}/ns/net")
        except BaseException:
            await self._move_ports(held, self._gateways(held.wanted), ports)
            await self._set_routes(held, pid)
            raise
        if name in held.attached:
            held.attached.remove(name)
            self._publish(network, "disconnect", container_id)
        return held.sandbox(without=name)

    async def give_back(self, container_id: str, name: str) -> None:
        """Let others have what an endpoint had, once it is detached. Idempotent.

        Raises HostError: ``release`` tries again, at the end of the container.
        """
        held = self._held[container_id]
        if name not in held.endpoints:
            return
        network = self._table[name]
        await self._driver(network).release(network, held.endpoints[name])
        del held.endpoints[name], held.wanted[name]

    async def release(self, container_id: str, *, staying: str = "") -> None:
        """Give back what ``reserve`` took. Idempotent; what fails is raised once the rest is done, and may be tried again.

        ``staying`` is the path of its namespace when another container has joined that: the interfaces are taken away too,
        as the kernel does it with one that ends.
        """
        held = self._held.get(container_id)
        if held is None:
            return
        failed: list[EngineError] = []
        for name, endpoint in tuple(held.endpoints.items()):
            network = self._table[name]
            driver = self._driver(network)
            try:
                if staying and name in held.attached:
                    await driver.detach(network, endpoint, staying)
                await driver.release(network, endpoint)  # not before: its address would be given out while it is in use
            except EngineError as error:
                failed.append(error)
                continue
            del held.endpoints[name]
            held.wanted.pop(name, None)
            if name in held.attached:
                self._publish(network, "disconnect", container_id)
        if failed:
            raise failed[0]
        del self._held[container_id]

    def adopt(
        self, container_id: str, endpoints: Mapping[str, Endpoint], wanted: Mapping[str, EndpointSettings]
    ) -> None:
        """Take back what a container that ran on while the daemon was away still has; ``wanted`` is what it asked for."""
        known = {name: endpoint for name, endpoint in endpoints.items() if name in self._table}
        if lost := sorted(set(endpoints) - set(known)):
            log.error("endpoints.without_network", container_id=container_id, networks=lost)
        held = self._held[container_id] = _Held(endpoints=known)
        held.wanted = {name: wanted.get(name, EndpointSettings()) for name in known}
        for name, endpoint in known.items():
            network = self._table[name]
            self._driver(network).adopt(network, endpoint)
        held.gateways = self._gateways(held.wanted)

    async def reconcile(self) -> None:
        """After a restart, with every container adopted: the kernel's side of what is in use as it should be.

        What was being made or removed goes.
        """
        # The others first: they may share a device with what goes.
        for network in sorted(self._table.values(), key=lambda network: network.Incomplete):
            if network.Incomplete:
                await self._finish_removal(network)
            elif network.Name in self._predefined and network.Settled:
                await self._driver(network).reconcile(network, self._endpoints_on(network))
            elif network.Settled:
                try:
                    await self._driver(network).create(network)
                    await self._driver(network).reconcile(network, self._endpoints_on(network))
                except EngineError as error:  # the others go on; the next container on it tries again
                    log.error("network.not_restored", network=network.Name, reason=str(error))

    def _endpoints_on(self, network: Network) -> builtins.list[Endpoint]:
        return [held.endpoints[network.Name] for held in self._held.values() if network.Name in held.endpoints]

    async def _finish_removal(self, network: Network) -> None:
        async with self._lock:
            try:
                await self._take_away(network)
            except EngineError as error:
                log.error("network.not_removed", network=network.Name, reason=str(error), retry="next start")
            else:
                log.info("network.removed", network=network.Name)

    # ---- behind the methods ----------------------------------------------------------------------------------------

    def _get(self, ref: str) -> Network:
        if ref in self._table:
            return self._table[ref]
        found = [network for network in self._table.values() if ref and network.ID.startswith(ref)]
        if len(found) > 1:
            raise InvalidParameterError(f"network {ref} is ambiguous ({len(found)} matches found based on ID prefix)")
        if not found:
            raise NetworkNotFoundError(ref)
        return found[0]

    def _driver(self, network: Network) -> Driver:
        driver = self._drivers.get(network.Driver)
        if driver is None:
            raise HostError(f"network {network.Name}: there is no driver {network.Driver} here")
        return driver

    async def _ready(self, name: str) -> Network:
        """A network that is settled and made."""
        network = self._get(name)
        if network.ConfigOnly or network.Incomplete:
            raise NetworkNotFoundError(name)
        driver = self._driver(network)
        if not network.Settled:
            async with self._lock:
                if not self._table[name].Settled:
                    others = [other for other in self._table.values() if other.Name != name and not other.ConfigOnly]
                    await self._save({**self._table, name: await driver.settle(self._table[name], others)})
            network = self._table[name]
        await driver.create(network)
        return network

    async def _reserve_on(
        self,
        network: Network,
        held: _Held,
        container_id: str,
        settings: EndpointSettings,
        interface: str,
        ports: Sequence[PortRequest],
    ) -> None:
        name = network.Name
        if self._table.get(name) != network:  # removed since it was looked at
            raise NetworkNotFoundError(name)
        # What the cluster gives out is its allocator's: an address is another's once its task has ended, whoever keeps that.
        wanted = sandbox.static_addresses(settings) if self._driver(network).scope == "local" else []
        for address in wanted:
            holder = self.reservations.holder(name, address)
            if holder is not None and holder != container_id:
                raise AddressInUseError(str(address), self._name_of(holder))
        request = EndpointRequest(container_id, settings, interface, ports, self.reservations.of(name))
        held.reserving = name
        try:
            held.endpoints[name] = await self._driver(network).reserve(network, request)
        except UnavailableError as error:
            for address in wanted:
                if (user := self._user_of(name, address)) is not None:
                    raise AddressInUseError(str(address), self._name_of(user)) from error
            raise
        finally:
            held.reserving = ""
        held.wanted[name] = settings

    def _user_of(self, name: str, address: IPAddress) -> str | None:
        """The container that has an address on a network now."""
        for container_id, held in self._held.items():
            endpoint = held.endpoints.get(name)
            if endpoint is not None and any(each.ip == address for each in endpoint.interfaces()):
                return container_id
        return None

    async def _with_way_out(self, wanted: Mapping[str, EndpointSettings]) -> Mapping[str, EndpointSettings]:
        """And the network that leads out for others, when one needs it; an internal one never does."""
        networks = [self._get(name) for name in wanted]
        needed = [each.Driver for each in networks if each.Driver in self._ways_out and not each.Internal]
        if not needed or self._gateways(wanted):
            return wanted
        return {**wanted, await self.make_way_out(needed[0]): EndpointSettings()}

    async def make_way_out(self, driver: str) -> str:
        """Have the network that leads out for those of a driver; returns its name. Raises EngineError."""
        request = self._ways_out[driver]
        if request.Name not in self._table:
            with contextlib.suppress(ConflictError):  # another container came first
                await self.create(request)
        await self._ready(request.Name)
        return request.Name

    def is_way_out(self, name: str) -> bool:
        """Whether containers are put on a network that they did not ask for, as the way out of others."""
        return any(each.Name == name for each in self._ways_out.values())

    def _gateways(self, wanted: Mapping[str, EndpointSettings]) -> tuple[str, ...]:
        last = EndpointSettings(GwPriority=_WAY_OUT_PRIORITY)
        ranked = {name: last if self.is_way_out(name) else settings for name, settings in wanted.items()}
        return sandbox.gateway_networks(ranked, {name: self._families(self._table[name]) for name in wanted})

    def _families(self, network: Network) -> set[int]:
        """The address families in which it leads out."""
        if network.Internal or not self._driver(network).routes:
            return set()
        return {6 if ":" in pool.Subnet else 4 for pool in network.Pools if pool.Gateway}

    async def _move_ports(self, held: _Held, gateways: tuple[str, ...], ports: Sequence[PortRequest]) -> None:
        """To the first of ``gateways``, the same ones on the host; all stays as it was when that cannot be done."""
        new = gateways[0] if gateways else ""
        before = {name: each.Ports for name, each in held.endpoints.items() if each.Ports and name != new}
        if before or new != held.main():
            for name in before:
                await self._have_publish(held, name, ())
            wanted = requests_again(ports, [port for published in before.values() for port in published])
            try:
                if new and wanted:
                    await self._have_publish(held, new, wanted)
            except BaseException:
                for name, published in before.items():
                    await self._have_publish(held, name, requests_of(published))
                raise
        held.gateways = gateways

    async def _have_publish(self, held: _Held, name: str, ports: Sequence[PortRequest]) -> None:
        network = self._table[name]
        held.endpoints[name] = await self._driver(network).publish(network, held.endpoints[name], ports)

    async def _set_routes(self, held: _Held, pid: int) -> None:
        """The default routes in place of those there are; the kernel takes those of a link that goes."""
        changes = tuple(
            AddDefaultRoute(ipaddress.ip_address(gateway), held.endpoints[name].Interface)
            for name in held.gateways
            if name in held.attached
            for gateway in held.endpoints[name].Gateways
        )
        if changes:
            try:
                await self._kernel.apply(Batch(changes, f"/proc/{pid}/ns/net"))
            except OSError as error:
                raise HostError(f"cannot set the default route: {error}") from error

    async def _finish(self, settings: EndpointSettings, endpoint: Endpoint, namespace: str) -> None:
        """What is no driver's of an interface: addresses that are the link's own, and parameters."""
        own = tuple(AddAddress(endpoint.Interface, each) for each in sandbox.link_local_addresses(settings))
        values = sandbox.endpoint_sysctls(settings, endpoint.Interface)
        try:
            if own:
                await self._kernel.apply(Batch(own, namespace))
            if values:
                await self._kernel.set_sysctls(values, namespace)
        except OSError as error:
            raise HostError(f"failed to set up interface {endpoint.Interface}: {error}") from error

    def _publish(self, network: Network, action: str, container_id: str) -> None:
        attributes = {"name": network.Name, "type": network.Driver}
        if container_id:
            attributes["container"] = container_id
        self._events.publish("network", action, network.ID, attributes)

    async def _save(self, table: dict[str, Network]) -> None:
        """Make it the table, under the lock. Raises HostError: the table is as it was."""
        try:
            await asyncio.to_thread(self._records.write, self._file, _encoded(table), durable=True)
        except OSError as error:
            raise HostError(f"cannot save the networks: {error}") from error
        self._table = table


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z")


def read_table(state: Path) -> Sequence[Network]:
    """What a daemon with this state folder kept of its networks, predefined ones among them."""
    path = state / TABLE_FILE
    text = read_text(path)
    if text is not None:
        try:
            return msgspec.json.decode(text, type=_Saved).Networks
        except msgspec.DecodeError as error:  # IDs are made anew, as at the first start
            log.error("networks.unreadable", path=str(path), reason=str(error))
    return ()


def _encoded(table: Mapping[str, Network]) -> bytes:
    return msgspec.json.encode(_Saved([*table.values()]))


def _kept(wanted: Network, saved: Network | None, created: str) -> Network:
    """A predefined network: what the configuration says, with what must not change from one daemon to the next."""
    if saved is None:
        return msgspec.structs.replace(wanted, ID=secrets.token_hex(32), Created=created)
    kept = msgspec.structs.replace(wanted, ID=saved.ID, Created=saved.Created)
    if saved.Settled:
        kept = msgspec.structs.replace(kept, Pools=saved.Pools, Settled=True)
    return kept
