"""The networks of a host: which there are, which driver makes them, and which containers are on them.

The engine speaks to this alone. A container may be on many networks at once: their endpoints are reserved and released
together, and one of them gets the default route and the published ports (``sandbox``). What is kept of a network is in
networks.json; what is kept of an endpoint in its container's record, and comes back by ``adopt`` after a restart.
"""

from __future__ import annotations

import asyncio
import builtins
import datetime as dt
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from base.files import read_text
from base.records import Records
from runtime.errors import EngineError, HostError, InvalidParameterError, NetworkNotFoundError
from runtime.events import EventBus
from runtime.networks import sandbox, views
from runtime.networks.driver import Driver, Endpoint, EndpointRequest, Network, Sandbox
from runtime.networks.ports import PortRequest
from runtime.networks.types import NetworkResource
from runtime.types import EndpointSettings

log = structlog.get_logger(__name__)


class _Saved(msgspec.Struct):
    """networks.json."""

    Networks: list[Network]


class _Held:
    """What one container has: endpoints in memory, and the names of the networks it is attached to."""

    def __init__(self, gateway: str = "", endpoints: Mapping[str, Endpoint] | None = None) -> None:
        self.gateway = gateway
        self.endpoints = dict(endpoints or {})
        self.attached = {name for name, endpoint in self.endpoints.items() if endpoint.ID}


class Networks:
    """The networks below one state folder.

    Args:
        state: where networks.json is.
        drivers: one of each kind that ``predefined`` or the file needs.
        predefined: networks there always are; ID, time and a settled subnet come from the file once it has them.
        events: is told who connects and disconnects.
        name_of: a container's name by ID, for inspect.
    """

    def __init__(
        self,
        state: Path,
        *,
        drivers: Sequence[Driver],
        predefined: Sequence[Network],
        events: EventBus,
        name_of: Callable[[str], str],
    ) -> None:
        self._file, self._records = state / "networks.json", Records()
        self._drivers = {driver.name: driver for driver in drivers}
        self._predefined = {network.Name: network for network in predefined}
        self._events, self._name_of = events, name_of
        self._table: dict[str, Network] = {}
        self._held: dict[str, _Held] = {}
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Read the table, or make it. Touches no device."""
        saved = {network.Name: network for network in self._read()}
        created = dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z")
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

    def driver_names(self) -> builtins.list[str]:
        """Of all that networks here can be made by."""
        return [*self._drivers]

    # ---- lookup ----------------------------------------------------------------------------------------------------

    def resolve(self, ref: str) -> str:
        """Name of a network by name, ID or unique ID prefix. Raises NetworkNotFoundError."""
        return self._get(ref).Name

    def id_of(self, ref: str) -> str:
        """ID of a network by name. Raises NetworkNotFoundError."""
        return self._get(ref).ID

    def list(self, filters: Mapping[str, Sequence[str]] | None = None) -> list[NetworkResource]:
        """All networks. Filters: driver, id, name, scope, type, dangling, label. Raises InvalidParameterError."""
        filters = filters or {}
        if unknown := set(filters) - views.KNOWN_FILTERS:
            raise InvalidParameterError(f"invalid filter '{min(unknown)}'")
        found = [(name in self._predefined, self.inspect(name)) for name in self._table]
        return [network for builtin, network in found if views.matches(network, filters, builtin=builtin)]

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
            HostError: a network could not be made.
        """
        await self.release(container_id)  # what the end of its last run could not
        routing = {name: each for name, each in wanted.items() if self._driver(self._get(name)).routes}
        held = self._held[container_id] = _Held(sandbox.gateway_network(routing))
        try:
            for (name, settings), interface in zip(wanted.items(), sandbox.interface_names(), strict=False):
                network = await self._ready(name)
                published = ports if name == held.gateway else ()
                request = EndpointRequest(container_id, settings, interface, published)
                held.endpoints[name] = await self._driver(network).reserve(network, request)
        except BaseException:
            await self.release(container_id)
            raise
        return Sandbox(dict(held.endpoints), held.gateway)

    async def attach(self, container_id: str, pid: int) -> None:
        """Give the network namespace of a process its interfaces. Raises HostError; ``release`` then."""
        held = self._held[container_id]
        for name, endpoint in held.endpoints.items():
            if endpoint.ID:
                network = self._table[name]
                await self._driver(network).attach(
                    network, endpoint, f"/proc/{pid}/ns/net", default_route=name == held.gateway
                )
                held.attached.add(name)
                self._publish(network, "connect", container_id)

    async def release(self, container_id: str, *, namespace_stays: bool = False) -> None:
        """Give back what ``reserve`` took. Idempotent; what fails is raised once the rest is done, and may be tried again.

        ``namespace_stays`` takes the interfaces away too, when another container has joined the namespace; else the
        kernel does so when it ends.
        """
        held = self._held.get(container_id)
        if held is None:
            return
        failed: list[EngineError] = []
        for name, endpoint in tuple(held.endpoints.items()):
            network = self._table[name]
            driver = self._driver(network)
            try:
                if namespace_stays and name in held.attached:
                    await driver.detach(network, endpoint)
                await driver.release(network, endpoint)  # not before: its address would be given out while it is in use
            except EngineError as error:
                failed.append(error)
                continue
            del held.endpoints[name]
            if name in held.attached:
                self._publish(network, "disconnect", container_id)
        if failed:
            raise failed[0]
        del self._held[container_id]

    def adopt(self, container_id: str, endpoints: Mapping[str, Endpoint]) -> None:
        """Take back what a container that ran on while the daemon was away still has."""
        known = {name: endpoint for name, endpoint in endpoints.items() if name in self._table}
        if lost := sorted(set(endpoints) - set(known)):
            log.error("endpoints.without_network", container_id=container_id, networks=lost)
        self._held[container_id] = _Held(endpoints=known)
        for name, endpoint in known.items():
            network = self._table[name]
            self._driver(network).adopt(network, endpoint)

    async def reconcile(self) -> None:
        """After a restart, with every container adopted: the kernel's side of what is in use as it should be."""
        for network in self._table.values():
            if network.Settled:
                users = [held.endpoints[network.Name] for held in self._held.values() if network.Name in held.endpoints]
                await self._driver(network).reconcile(network, users)

    # ---- behind the methods ----------------------------------------------------------------------------------------

    def _get(self, ref: str) -> Network:
        if ref in self._table:
            return self._table[ref]
        found = [network for network in self._table.values() if ref and network.ID.startswith(ref)]
        if len(found) != 1:
            raise NetworkNotFoundError(ref)
        return found[0]

    def _driver(self, network: Network) -> Driver:
        driver = self._drivers.get(network.Driver)
        if driver is None:
            raise HostError(f"network {network.Name}: there is no driver {network.Driver} here")
        return driver

    async def _ready(self, name: str) -> Network:
        """A network that is settled and made."""
        driver = self._driver(self._table[name])
        async with self._lock:
            if not self._table[name].Settled:
                await self._save({**self._table, name: await driver.settle(self._table[name])})
        network = self._table[name]
        await driver.create(network)
        return network

    def _publish(self, network: Network, action: str, container_id: str) -> None:
        attributes = {"container": container_id, "name": network.Name, "type": network.Driver}
        self._events.publish("network", action, network.ID, attributes)

    def _read(self) -> Sequence[Network]:
        text = read_text(self._file)
        if text is not None:
            try:
                return msgspec.json.decode(text, type=_Saved).Networks
            except msgspec.DecodeError as error:  # IDs are made anew, as at the first start
                log.error("networks.unreadable", path=str(self._file), reason=str(error))
        return ()

    async def _save(self, table: dict[str, Network]) -> None:
        """Make it the table, under the lock. Raises HostError: the table is as it was."""
        try:
            await asyncio.to_thread(self._records.write, self._file, _encoded(table), durable=True)
        except OSError as error:
            raise HostError(f"cannot save the networks: {error}") from error
        self._table = table


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
