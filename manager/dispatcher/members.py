"""Who is on which network, as the nodes there are told (features A11.12, C17). Derived from the store, and kept by change.

Of each network: its services, with their virtual IPs, and its tasks, with their addresses and their nodes', from when a node
has the task until it was seen to have ended. Entries are kept encoded: what changes is encoded once, and sent to the nodes on
that network alone. The routing mesh's network has every node with an address there, the services that publish ports and their tasks, with the
addresses of their nodes; every such node is told of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manager.model.networks import cluster_networks, is_mesh, is_of_the_node
from manager.model.tasks import is_live, is_on_node
from manager.store import NETWORKS, Change, Kind, View
from proto.dispatcher_pb2 import AssignmentChange, AssignmentKind, NetworkPeer, NetworkService
from proto.objects_pb2 import TASK_STATE_RUNNING, Network, Node, Service, Task

Entry = tuple[str, str, int]
"""(ID of a network, ID of one of its entries, the entry's kind)."""

_PEER = AssignmentKind.ASSIGNMENT_KIND_NETWORK_PEER
_SERVICE = AssignmentKind.ASSIGNMENT_KIND_NETWORK_SERVICE


class Members:
    """The entries of all networks. ``begin``, then ``follow`` every change of the store."""

    def __init__(self, view: View) -> None:
        """
        Args:
            view: the store's.
        """
        self._view = view
        self._networks: dict[str, dict[Entry, bytes]] = {}
        self._entries_of: dict[str, tuple[Entry, ...]] = {}
        """By the ID of the task or service they tell of."""
        self._publishing: set[str] = set()
        """IDs of the services that publish ports on every node."""

    def begin(self) -> None:
        """Derive everything from what is stored."""
        self._networks.clear()
        self._entries_of.clear()
        self._publishing.clear()
        for service in self._view.services:
            self._derive_service(service.id)
        for task in self._view.tasks:
            self._derive_task(task.id)
        for node in self._view.nodes:
            self._derive_node(node.id)

    def of(self, network_id: str) -> Iterable[bytes]:
        """What is told of a network: each an ``AssignmentChange``."""
        return self._networks.get(network_id, {}).values()

    def removals(self, network_id: str) -> Iterator[bytes]:
        """What takes all of it back."""
        return (_removal(entry) for entry in self._networks.get(network_id, {}))

    def encoded(self, entry: Entry) -> bytes:
        """What is told of one entry as it is now, that it is gone included."""
        return self._networks.get(entry[0], {}).get(entry) or _removal(entry)

    def follow(self, change: Change) -> list[Entry]:
        """Take note of a change of the store. Returns the entries that are not as before."""
        old, new = change.old, change.new
        about = new if new is not None else old
        if isinstance(about, Task):
            concerned = (
                about.id in self._entries_of
                or about.service_id in self._publishing
                or any(not is_of_the_node(each.network_id) for each in about.networks_attachments)
            )
            return self._derive_task(about.id) if concerned else []
        if isinstance(about, Service):
            return self._follow_service(old if isinstance(old, Service) else None, about)
        if isinstance(about, Node):
            return self._follow_node(old if isinstance(old, Node) else None, about)
        if isinstance(about, Network) and about.spec.ingress:
            return self._follow_mesh()
        return []

    def _follow_service(self, old: Service | None, service: Service) -> list[Entry]:
        changed = self._derive_service(service.id)
        if old is None or _publishes(old) != _publishes(service):
            for task in self._view.tasks.by_service(service.id):
                changed += self._derive_task(task.id)
        return changed

    def _follow_node(self, old: Node | None, node: Node) -> list[Entry]:
        changed = self._derive_node(node.id)
        if old is None or _place(old) != _place(node):
            for task in self._view.tasks.by_node(node.id):
                changed += self._derive_task(task.id)
        return changed

    def _follow_mesh(self) -> list[Entry]:
        changed: list[Entry] = []
        for service in self._view.services:
            if _publishes(service):
                changed += self._derive_service(service.id)
                for task in self._view.tasks.by_service(service.id):
                    changed += self._derive_task(task.id)
        return changed

    # ------------------------------------------------------------------ deriving

    def _derive_service(self, service_id: str) -> list[Entry]:
        service = self._view.services.get(service_id)
        if service is not None and _publishes(service):
            self._publishing.add(service_id)
        else:
            self._publishing.discard(service_id)
        found = {}
        for told in self._services(service) if service is not None else ():
            change = AssignmentChange(kind=_SERVICE, id=told.id, network_service=told)
            found[told.network_id, told.id, int(_SERVICE)] = change.SerializeToString()
        return self._put(service_id, found)

    def _derive_task(self, task_id: str) -> list[Entry]:
        task = self._view.tasks.get(task_id)
        found = {}
        for told in self._peers(task) if task is not None and is_on_node(task) else ():
            change = AssignmentChange(kind=_PEER, id=told.id, network_peer=told)
            found[told.network_id, told.id, int(_PEER)] = change.SerializeToString()
        return self._put(task_id, found)

    def _derive_node(self, node_id: str) -> list[Entry]:
        node = self._view.nodes.get(node_id)
        found = {}
        if node is not None and node.HasField("ingress"):
            mesh, (node_addr, addresses) = node.ingress.network_id, _place(node)
            told = NetworkPeer(
                id=f"{mesh}.{node_id}", network_id=mesh, node_id=node_id, node_addr=node_addr, addresses=addresses
            )
            change = AssignmentChange(kind=_PEER, id=told.id, network_peer=told)
            found[mesh, told.id, int(_PEER)] = change.SerializeToString()
        return self._put(node_id, found)

    def _put(self, object_id: str, found: dict[Entry, bytes]) -> list[Entry]:
        changed = []
        for entry in self._entries_of.get(object_id, ()):
            if entry not in found:
                entries = self._networks[entry[0]]
                del entries[entry]
                if not entries:
                    del self._networks[entry[0]]
                changed.append(entry)
        for entry, encoded in found.items():
            entries = self._networks.setdefault(entry[0], {})
            if entries.get(entry) != encoded:
                entries[entry] = encoded
                changed.append(entry)
        if found:
            self._entries_of[object_id] = tuple(found)
        else:
            self._entries_of.pop(object_id, None)
        return changed

    def _services(self, service: Service) -> Iterator[NetworkService]:
        for network in cluster_networks(service.spec):
            yield NetworkService(
                id=f"{network.target}.{service.id}",
                network_id=network.target,
                service_id=service.id,
                name=service.spec.name,
                aliases=network.aliases,
                virtual_ips=[each.addr for each in service.endpoint.virtual_ips if each.network_id == network.target],
                ports=service.endpoint.ports,
            )
        mesh = self._mesh_of(service)
        if mesh:
            yield NetworkService(
                id=f"{mesh}.{service.id}",
                network_id=mesh,
                service_id=service.id,
                name=service.spec.name,
                ports=[port for port in service.endpoint.ports if is_mesh(port)],
            )

    def _peers(self, task: Task) -> Iterator[NetworkPeer]:
        service = self._view.services.get(task.service_id)
        node = self._view.nodes.get(task.node_id)
        if node is None:
            return
        told = NetworkPeer(
            task_id=task.id,
            service_id=task.service_id,
            name=f"{service.spec.name if service is not None else task.service_id}.{task.slot or task.node_id}.{task.id}",
            node_id=task.node_id,
            node_addr=_place(node)[0],
            ready=task.status.state == TASK_STATE_RUNNING and is_live(task),
        )
        for attachment in task.networks_attachments:
            if not is_of_the_node(attachment.network_id):
                yield _on(told, attachment.network_id, attachment.addresses)
        version = self._view.spec_versions.of(task.service_id, task.spec_version)
        # Of an update that publishes, the tasks before it are not to be reached.
        is_published = version is not None and any(map(is_mesh, version.spec.endpoint_spec.ports))
        mesh = self._mesh_of(service) if service is not None and is_published else ""
        if mesh and node.ingress.network_id == mesh:
            yield _on(told, mesh, node.ingress.addresses)

    def _mesh_of(self, service: Service) -> str:
        if not _publishes(service):
            return ""
        return next((network.id for network in self._view.networks if network.spec.ingress), "")


def key_of(entry: Entry) -> tuple[Kind[Network], str]:
    """What a node needs that is told of the entry."""
    return NETWORKS, entry[0]


def _on(told: NetworkPeer, network_id: str, addresses: Iterable[str]) -> NetworkPeer:
    peer = NetworkPeer()
    peer.CopyFrom(told)
    peer.id, peer.network_id = f"{network_id}.{told.task_id}", network_id
    peer.addresses.extend(addresses)
    return peer


def _publishes(service: Service) -> bool:
    return not service.pending_delete and any(map(is_mesh, service.endpoint.ports))


def _place(node: Node) -> tuple[str, list[str]]:
    """Where its tasks are found by others."""
    return node.data_path_addr or node.status.addr, list(node.ingress.addresses)


def _removal(entry: Entry) -> bytes:
    _, entry_id, kind = entry
    return AssignmentChange(kind=AssignmentKind.ValueType(kind), id=entry_id).SerializeToString()
