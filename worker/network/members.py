"""The cluster's networks on this node: what the managers say of them is told to the engine, the data plane and the resolver.

The managers name each network that this node needs and everyone on it (``manager.dispatcher.members``). What is kept here is
by network: peers and services, to be put together. A change costs what changed: one peer is one entry of the data plane, one
holder of names, and the backends of its service. Told again in full (a session began anew), everything is compared by those who
are told.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import TypeVar

import structlog

from base.backoff import Backoff
from base.tasks import OwnedTasks
from proto.dispatcher_pb2 import NetworkPeer, NetworkService
from proto.objects_pb2 import Network as ClusterNetwork
from runtime.errors import EngineError, HostError
from runtime.kernel.network import IPAddress
from runtime.networks import Networks
from runtime.resolver.port import Change, DropHolder, Everything, Holder, NameZone, PutHolder, Resolver, Zone
from worker.network import told
from worker.network.driver import OverlayDriver, overlay_of
from worker.network.overlays import Overlays
from worker.network.published import Published
from worker.network.types import DATA_PATH_PORT, BalancedService, DataPath, NetworkID
from worker.network.underlay import mtu_of

log = structlog.get_logger(__name__)

DROP_RETRY_S, DROP_RETRY_S_MAX = 0.2, 30.0


class _Known:
    """One network and who is on it."""

    def __init__(self) -> None:
        self.network: ClusterNetwork | None = None
        self.peers: dict[str, NetworkPeer] = {}
        self.services: dict[str, NetworkService] = {}
        self.tasks_of: dict[str, dict[str, NetworkPeer]] = {}
        """Peers by the ID of their service."""
        self.endpoints: dict[str, IPAddress] = {}
        """First address of each peer that the data plane was told of, by the peer's ID."""
        self.vips: dict[str, tuple[IPAddress, ...]] = {}
        """Virtual IPs that the data plane was told of, by the service's ID."""
        self.holders: set[str] = set()
        """IDs of those whose names the resolver was told of."""


class ClusterNetworks:
    """See the module."""

    def __init__(self, networks: Networks, overlays: Overlays, resolver: Resolver, published: Published) -> None:
        self._networks, self._overlays, self._resolver, self._published = networks, overlays, resolver, published
        self._mesh: ClusterNetwork | None = None
        self._port = DATA_PATH_PORT
        self._known: dict[str, _Known] = {}
        self._names: list[Change | Everything] = []
        self._tasks = OwnedTasks()
        self._telling: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Tell nothing more; what was told stays."""
        await self._tasks.close()
        await self._published.close()

    # ---- what the managers say ---------------------------------------------------------------------------------------

    def replace(
        self,
        networks: Mapping[str, ClusterNetwork],
        peers: Iterable[NetworkPeer],
        services: Iterable[NetworkService],
    ) -> None:
        """These and no others."""
        before, peers, services = self._known, list(peers), list(services)
        self._mesh = next((network for network in networks.values() if network.spec.ingress), None)
        self._published.replace(
            self._mesh,
            [peer for peer in peers if peer.network_id == self._mesh_id],
            [service for service in services if service.network_id == self._mesh_id],
        )
        networks = {network_id: network for network_id, network in networks.items() if not network.spec.ingress}
        self._known = {network_id: _Known() for network_id in networks}
        for network_id, known in self._known.items():
            known.network = networks[network_id]
        for service in services:
            if service.network_id in self._known:
                self._known[service.network_id].services[service.service_id] = service
        for peer in peers:
            if peer.network_id in self._known:
                _put_peer(self._known[peer.network_id], peer)
        # Beside those of this daemon those of the one before.
        made = [network.Id for network in self._networks.list({"driver": [OverlayDriver.name]})]
        for network_id in dict.fromkeys([*before, *made]):
            if network_id not in self._known:
                self._forget(network_id)
        for network_id, known in self._known.items():
            self._tell_data_plane(NetworkID(network_id), known)
        zones = tuple(_zone(network_id, known) for network_id, known in self._known.items())
        self._say(Everything(zones, sources=(told.SERVICES,)))

    def change(
        self,
        networks: Mapping[str, ClusterNetwork | None],
        peers: Mapping[str, NetworkPeer | None],
        services: Mapping[str, NetworkService | None],
    ) -> None:
        """What is new or changed, by ID, and what is no more (None); the others stay."""
        self._change_published(networks, peers, services)
        for network_id, network in networks.items():
            if network is not None and not network.spec.ingress:
                self._known.setdefault(network_id, _Known()).network = network
                self._tell_data_plane(NetworkID(network_id), self._known[network_id])
                self._say(NameZone(network_id, network.spec.name))
        touched: dict[tuple[str, str], None] = {}
        moved: dict[str, dict[str, NetworkPeer | None]] = {}
        for service_key, service in services.items():
            network_id, service_id = _split(service_key)
            known = self._known.get(network_id)
            if known is None:
                continue
            if service is None:
                known.services.pop(service_id, None)
            else:
                known.services[service_id] = service
            touched[network_id, service_id] = None
            moved.setdefault(network_id, {}).update(known.tasks_of.get(service_id, {}))
        for peer_key, peer in peers.items():
            network_id, task_id = _split(peer_key)
            known = self._known.get(network_id)
            if known is None:
                continue
            before = known.peers.get(task_id)
            if peer is None:
                _drop_peer(known, task_id)
            else:
                _put_peer(known, peer)
            for each in (before, peer):
                if each is not None:
                    touched[network_id, each.service_id] = None
            moved.setdefault(network_id, {})[task_id] = peer
        for network_id, tasks in moved.items():
            self._tell_peers(NetworkID(network_id), self._known[network_id], tasks)
        for network_id, services_touched in _by_network(touched).items():
            self._tell_services(NetworkID(network_id), self._known[network_id], services_touched)
        for network_id, network in networks.items():
            if network is None and (known := self._known.pop(network_id, None)) is not None:
                self._say(*(DropHolder(network_id, each) for each in known.holders))
                self._forget(network_id)

    def _change_published(
        self,
        networks: Mapping[str, ClusterNetwork | None],
        peers: Mapping[str, NetworkPeer | None],
        services: Mapping[str, NetworkService | None],
    ) -> None:
        for network_id, network in networks.items():
            if network is not None and network.spec.ingress and network_id != self._mesh_id:
                self._mesh = network
                self._published.replace(network, (), ())
        of_mesh = _of(self._mesh_id, peers), _of(self._mesh_id, services)
        if any(of_mesh):
            self._published.change(*of_mesh)
        if self._mesh_id in networks and networks[self._mesh_id] is None:
            self._mesh = None
            self._published.replace(None, (), ())

    @property
    def _mesh_id(self) -> str:
        return self._mesh.id if self._mesh is not None else ""

    def set_node(self, node_id: str, address: str) -> None:
        """This node, and where it takes packets of networks, as far as it is known."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return
        for network in (self._mesh, *(known.network for known in self._known.values())):
            if network is not None and network.data_path_port:
                self._port = network.data_path_port  # the cluster's, the same in all
                break
        node = DataPath(ip, self._port, mtu_of(address))
        self._overlays.set_node(node)
        self._published.set_node(node, node_id)

    # ---- what the executor asks --------------------------------------------------------------------------------------

    async def ready(self, network: ClusterNetwork) -> str:
        """Have the engine know a network; returns its name. Raises EngineError."""
        await self._networks.put(told.engine_network(network))
        return network.spec.name

    async def make_way_out(self) -> None:
        """Have the engine make the bridge by which the mesh reaches tasks. Raises EngineError."""
        await self._networks.make_way_out(OverlayDriver.name)

    def task_changed(self, task_id: str) -> None:
        """A container of a task began or ended on this node."""
        self._published.task_changed(task_id)

    # ---- telling -----------------------------------------------------------------------------------------------------

    def _tell_data_plane(self, network_id: NetworkID, known: _Known) -> None:
        assert known.network is not None
        try:
            self._overlays.set_network(overlay_of(told.engine_network(known.network)))
        except EngineError as error:
            log.error("network.not_possible", network_id=network_id, reason=str(error))
            return
        endpoints = {task_id: told.peer_endpoint(peer) for task_id, peer in known.peers.items()}
        known.endpoints = {task_id: each.addresses[0] for task_id, each in endpoints.items() if each is not None}
        self._overlays.set_peers(network_id, [each for each in endpoints.values() if each is not None])
        balanced = {
            service_id: tuple(told.balanced(service, known.tasks_of.get(service_id, {}).values()))
            for service_id, service in known.services.items()
        }
        known.vips = {service_id: tuple(each.vip for each in found) for service_id, found in balanced.items() if found}
        self._overlays.set_services(network_id, [each for found in balanced.values() for each in found])

    def _tell_peers(self, network_id: NetworkID, known: _Known, tasks: Mapping[str, NetworkPeer | None]) -> None:
        changed, gone = [], []
        for task_id, peer in tasks.items():
            endpoint = told.peer_endpoint(peer) if peer is not None else None
            before = known.endpoints.pop(task_id, None)
            if endpoint is not None:
                known.endpoints[task_id] = endpoint.addresses[0]
                changed.append(endpoint)
            if before is not None and (endpoint is None or before != endpoint.addresses[0]):
                gone.append(before)
        self._overlays.change_peers(network_id, changed, gone)
        self._tell_names(network_id, known, tasks)

    def _tell_services(self, network_id: NetworkID, known: _Known, service_ids: Iterable[str]) -> None:
        """Together, as one may have got the virtual IP that another gave back."""
        service_ids, changed, before = list(service_ids), list[BalancedService](), set[IPAddress]()
        for service_id in service_ids:
            service = known.services.get(service_id)
            peers = known.tasks_of.get(service_id, {}).values()
            found = tuple(told.balanced(service, peers)) if service is not None else ()
            before.update(known.vips.pop(service_id, ()))
            if found:
                known.vips[service_id] = tuple(each.vip for each in found)
            changed += found
        gone = {vip for vip in before if not any(vip in vips for vips in known.vips.values())}
        if changed or gone:
            self._overlays.change_services(network_id, changed, gone)
        self._tell_names(network_id, known, service_ids)

    def _tell_names(self, network_id: str, known: _Known, ids: Iterable[str]) -> None:
        changes: list[Change] = []
        for each in ids:
            holder = _holder(known, each)
            if holder is not None:
                known.holders.add(each)
                changes.append(PutHolder(network_id, holder))
            elif each in known.holders:
                known.holders.discard(each)
                changes.append(DropHolder(network_id, each))
        self._say(*changes)

    def _forget(self, network_id: str) -> None:
        """No task here is on it any more, nor is told of it."""
        self._overlays.forget_network(NetworkID(network_id))
        self._tasks.spawn(self._drop(network_id), name=f"forget network {network_id}")

    async def _drop(self, network_id: str) -> None:
        """Unless it is told of again; a container that stops may be on it for a while."""
        backoff = Backoff(DROP_RETRY_S, DROP_RETRY_S_MAX)
        while network_id not in self._known:
            try:
                await self._networks.drop(network_id, unless=lambda: network_id in self._known)
            except EngineError as error:
                log.debug("network.not_forgotten", network_id=network_id, reason=str(error))
                await asyncio.sleep(backoff.next_s())
            else:
                return

    def _say(self, *said: Change | Everything) -> None:
        """To the resolver, in order; what it cannot be told now it is told with everything, which its manager sees to."""
        self._names.extend(said)
        if self._telling is None or self._telling.done():
            self._telling = self._tasks.spawn(self._tell_resolver(), name="names of the cluster")

    async def _tell_resolver(self) -> None:
        while self._names:
            said, self._names = self._names, []
            for is_everything, some in groupby(said, key=lambda each: isinstance(each, Everything)):
                try:
                    if is_everything:
                        for each in some:
                            assert isinstance(each, Everything)
                            await self._resolver.replace(each)
                    else:
                        await self._resolver.tell(*(each for each in some if not isinstance(each, Everything)))
                except HostError as error:
                    log.warning("names.not_told", reason=str(error))


def _holder(known: _Known, object_id: str) -> Holder | None:
    """Who answers to the names of a service or a task."""
    if object_id in known.services:
        return told.service_holder(known.services[object_id])
    peer = known.peers.get(object_id)
    return told.task_holder(peer, known.services.get(peer.service_id)) if peer is not None else None


def _zone(network_id: str, known: _Known) -> Zone:
    """A network with all that has names on it; what the resolver is told of is noted."""
    assert known.network is not None
    found = {each: _holder(known, each) for each in (*known.services, *known.peers)}
    holders = {object_id: holder for object_id, holder in found.items() if holder is not None}
    known.holders = set(holders)
    return Zone(network_id=network_id, name=known.network.spec.name, holders=tuple(holders.values()))


def _put_peer(known: _Known, peer: NetworkPeer) -> None:
    _drop_peer(known, peer.task_id)
    known.peers[peer.task_id] = peer
    known.tasks_of.setdefault(peer.service_id, {})[peer.task_id] = peer


def _drop_peer(known: _Known, task_id: str) -> None:
    before = known.peers.pop(task_id, None)
    if before is not None:
        tasks = known.tasks_of[before.service_id]
        del tasks[task_id]
        if not tasks:
            del known.tasks_of[before.service_id]


T = TypeVar("T")


def _of(network_id: str, members: Mapping[str, T]) -> dict[str, T]:
    """Those of one network, by the ID of the task, node or service."""
    split = ((*_split(key), member) for key, member in members.items())
    return {object_id: member for of, object_id, member in split if of == network_id}


def _by_network(touched: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """IDs of services by that of their network."""
    found: dict[str, list[str]] = {}
    for network_id, service_id in touched:
        found.setdefault(network_id, []).append(service_id)
    return found


def _split(key: str) -> tuple[str, str]:
    """Network and task or service of a member's ID."""
    network_id, _, object_id = key.partition(".")
    return network_id, object_id
