"""What is published on every node, as the managers say, told to this node's routing mesh.

On the mesh's network the managers name each node with its address there, each service with the ports it publishes, and the
tasks behind them with the address of their node. What this node alone knows is where its own tasks are: their addresses on the
bridge that leads out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address

import structlog

from proto.dispatcher_pb2 import NetworkPeer, NetworkService
from proto.objects_pb2 import Network as ClusterNetwork
from runtime.errors import EngineError
from worker.network import told
from worker.network.driver import overlay_of
from worker.network.mesh import Mesh
from worker.network.mesh_rules import Key
from worker.network.types import DataPath, IngressBackend, IngressPort, PeerEndpoint

log = structlog.get_logger(__name__)

MakeMesh = Callable[[DataPath], Mesh]
AddressOf = Callable[[str], str]
"""The address of a task's container on the bridge that leads out, "" while there is none."""


class Published:
    """The mesh of this node. It is made once the node knows its data path, and its address on the mesh."""

    def __init__(self, make: MakeMesh, address_of: AddressOf) -> None:
        self._make, self._address_of = make, address_of
        self._mesh: Mesh | None = None
        self._node: DataPath | None = None
        self._node_id = ""
        self._network: ClusterNetwork | None = None
        self._nodes: dict[str, NetworkPeer] = {}
        self._tasks: dict[str, dict[str, NetworkPeer]] = {}
        """By the ID of their service."""
        self._service_of: dict[str, str] = {}
        self._services: dict[str, NetworkService] = {}
        self._ports: dict[str, set[Key]] = {}
        """What the mesh was told of, by the ID of the service."""

    async def close(self) -> None:
        """Look after it no more; devices and rules stay."""
        if self._mesh is not None:
            await self._mesh.close()

    def set_node(self, node: DataPath, node_id: str) -> None:
        """This node: its data path and its ID."""
        if (self._node, self._node_id) == (node, node_id):
            return
        self._node, self._node_id = node, node_id
        if self._mesh is not None:
            self._mesh.set_node(node)
        if self._network is not None:
            self._tell_all()

    def replace(
        self, network: ClusterNetwork | None, peers: Iterable[NetworkPeer], services: Iterable[NetworkService]
    ) -> None:
        """The mesh's network, None when there is none (for this node), and everyone on it."""
        self._network = network
        for known in (self._nodes, self._tasks, self._service_of, self._services):
            known.clear()
        for peer in peers:
            self._put_peer(peer)
        self._services.update({service.service_id: service for service in services})
        self._tell_all()

    def change(self, peers: Mapping[str, NetworkPeer | None], services: Mapping[str, NetworkService | None]) -> None:
        """What is new or changed, by the ID of the task, node or service; None: no more."""
        touched: dict[str, None] = {}
        nodes_moved = False
        for object_id, peer in peers.items():
            nodes_moved |= object_id in self._nodes or (peer is not None and not peer.task_id)
            touched.update(dict.fromkeys(filter(None, [self._service_of.get(object_id, "")])))
            self._drop_peer(object_id)
            if peer is not None:
                self._put_peer(peer)
                touched.update(dict.fromkeys(filter(None, [peer.service_id])))
        for service_id, service in services.items():
            touched[service_id] = None
            if service is None:
                self._services.pop(service_id, None)
            else:
                self._services[service_id] = service
        if self._mesh is None or self._node_id in peers:
            self._tell_all()
            return
        if nodes_moved:
            self._mesh.set_nodes(self._others())
        self._tell_services(self._mesh, touched)

    def task_changed(self, task_id: str) -> None:
        """A task of this node began or ended: before the managers say so, other nodes' clients may come to it."""
        service_id = self._service_of.get(task_id)
        if service_id is not None and self._mesh is not None and self._network is not None:
            self._tell_services(self._mesh, [service_id])

    # ---- behind it ---------------------------------------------------------------------------------------------------

    def _put_peer(self, peer: NetworkPeer) -> None:
        if not peer.task_id:
            self._nodes[peer.node_id] = peer
            return
        self._tasks.setdefault(peer.service_id, {})[peer.task_id] = peer
        self._service_of[peer.task_id] = peer.service_id

    def _drop_peer(self, object_id: str) -> None:
        self._nodes.pop(object_id, None)
        service_id = self._service_of.pop(object_id, "")
        tasks = self._tasks.get(service_id)
        if tasks is not None:
            del tasks[object_id]
            if not tasks:
                del self._tasks[service_id]

    def _tell_all(self) -> None:
        own = _address(self._nodes[self._node_id]) if self._node_id in self._nodes else None
        if self._network is None:
            if self._mesh is None:  # what a daemon before this one left goes, too
                self._mesh = self._make(self._node or DataPath(ipaddress.ip_address("127.0.0.1")))
            self._mesh.remove()
            self._ports.clear()
            return
        if self._node is None or own is None:
            return
        if self._mesh is None:
            self._mesh = self._make(self._node)
        try:
            self._mesh.set_network(overlay_of(told.engine_network(self._network)), own)
        except (ValueError, EngineError) as error:
            log.error("mesh.not_possible", reason=str(error))
            return
        self._mesh.set_nodes(self._others())
        ports = {service_id: self._ports_of(service_id) for service_id in self._services}
        self._ports = {service_id: {_key(each) for each in found} for service_id, found in ports.items() if found}
        self._mesh.set_ports([each for found in ports.values() for each in found])

    def _others(self) -> list[PeerEndpoint]:
        found = (told.peer_endpoint(peer) for node_id, peer in self._nodes.items() if node_id != self._node_id)
        return [each for each in found if each is not None and _is_v4(each)]

    def _tell_services(self, mesh: Mesh, service_ids: Iterable[str]) -> None:
        """Together, as one may have got the port that another gave up."""
        changed, before = list[IngressPort](), set[Key]()
        for service_id in service_ids:
            found = self._ports_of(service_id)
            before |= self._ports.pop(service_id, set())
            if found:
                self._ports[service_id] = {_key(each) for each in found}
            changed += found
        gone = {key for key in before if not any(key in keys for keys in self._ports.values())}
        try:
            mesh.change_ports(changed, gone)
        except ValueError:
            self._tell_all()

    def _ports_of(self, service_id: str) -> list[IngressPort]:
        service = self._services.get(service_id)
        if service is None:
            return []
        backends = tuple(self._backends(self._tasks.get(service_id, {}).values()))
        return [
            IngressPort(
                protocol=told.protocol_word(port.protocol),
                published=port.published_port,
                target=port.target_port,
                backends=backends,
            )
            for port in service.ports
            if port.published_port
        ]

    def _backends(self, tasks: Iterable[NetworkPeer]) -> Iterable[IngressBackend]:
        for peer in tasks:
            node = _address(peer)
            if node is None:
                continue
            own, weight = self._address_of(peer.task_id) if peer.node_id == self._node_id else "", int(peer.ready)
            if own:
                yield IngressBackend(node, IPv4Address(own), weight)
            elif peer.node_id != self._node_id:
                yield IngressBackend(node, None, weight)


def _key(port: IngressPort) -> Key:
    return port.protocol, port.published


def _address(peer: NetworkPeer) -> IPv4Address | None:
    try:
        found = told.addresses(peer.addresses)
    except ValueError:
        return None
    return found[0] if found and isinstance(found[0], ipaddress.IPv4Address) else None


def _is_v4(peer: PeerEndpoint) -> bool:
    return isinstance(peer.addresses[0], IPv4Address)
