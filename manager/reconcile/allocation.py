"""Who has which addresses, kept up with the store, and who waits for some.

As the kept slots do, the addresses (``allocator.addresses``) follow the store's changes, and what a pass writes before it is
committed. What waits is tried again when something was given back, and not before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import chain

from manager.allocator.addresses import Addresses
from manager.allocator.allocate import attachments_of, virtual_ips_of
from manager.model.endpoints import lacks
from manager.model.networks import is_mesh
from manager.reconcile.agenda import Agenda, NodeKey, ServiceKey
from manager.store import View
from proto.objects_pb2 import TASK_STATE_NEW, Network, NetworkAttachment, Node, Service, Task

Holder = Task | Service | Node
"""What has addresses."""


class Allocation:
    """
    Attributes:
        addresses: of all networks.
    """

    def __init__(self, view: View, agenda: Agenda) -> None:
        """
        Args:
            view: the store's.
            agenda: is told what is to be looked at again.
        """
        self._view, self._agenda = view, agenda
        self.addresses = Addresses()
        self._waiting_tasks: dict[str, None] = {}
        self._waiting_services: dict[str, None] = {}
        self._next: OrderedDict[str, None] = OrderedDict()
        self._again = False
        self._publishing: set[str] = set()

    def begin(self) -> None:
        """Take in the networks, before anything that has addresses on them."""
        for network in self._view.networks:
            self.addresses.put_network(network)

    def has_work(self) -> bool:
        """Whether a task that waits is to be tried again."""
        return bool(self._next) or (self._again and bool(self._waiting_tasks or self._waiting_services))

    def mesh_network_id(self) -> str:
        """The routing mesh's network, on which each node is to have an address; "" while no service publishes there."""
        if not self._publishing:
            return ""
        return next((network.id for network in self._view.networks if network.spec.ingress), "")

    # ------------------------------------------------------------------ what a pass does

    def put(self, holder: Holder) -> None:
        """It was made or changed."""
        self._settle(holder, _has(holder))

    def drop(self, holder: Holder) -> None:
        """It was removed."""
        self._settle(holder, ())

    def refused(self, written: Iterable[Holder]) -> None:
        """These were written and not committed, or not all of them: they have what the store says."""
        holders = list(written)
        for holder in holders:
            self.drop(holder)
        for holder in holders:
            stored = self._stored(holder)
            if stored is not None:
                self.put(stored)
        self.try_again()

    def next_tasks(self, limit: int) -> list[str]:
        """IDs of the next tasks to be tried again; services that are go to the agenda."""
        if self._again:
            self._again = False
            self._next.update(self._waiting_tasks)
            for service_id in self._waiting_services:
                self._agenda.mark(ServiceKey(service_id))
        return [self._next.popitem(last=False)[0] for _ in range(min(limit, len(self._next)))]

    def try_again(self) -> None:
        """Everything that waits, in the next pass."""
        self._again = True

    # ------------------------------------------------------------------ following the store

    def follow_task(self, task: Task, *, is_there: bool) -> None:
        if is_there and task.status.state == TASK_STATE_NEW:
            self._waiting_tasks[task.id] = None
        else:
            self._waiting_tasks.pop(task.id, None)
        if task.networks_attachments:
            self._settle(task, _has(task) if is_there else ())

    def follow_service(self, service: Service, *, is_there: bool) -> None:
        self._settle(service, _has(service) if is_there else ())
        self._waiting_services.pop(service.id, None)
        if is_there and lacks(service):
            self._waiting_services[service.id] = None
        else:
            self.try_again()  # its tasks may wait for what it was given just now
        had = bool(self._publishing)
        if is_there and not service.pending_delete and any(map(is_mesh, service.endpoint.ports)):
            self._publishing.add(service.id)
        else:
            self._publishing.discard(service.id)
        if self._publishing and not had:
            self._look_at_nodes()

    def follow_node(self, old: Node | None, new: Node | None) -> None:
        about = new if new is not None else old
        assert about is not None
        self._settle(about, _has(about) if new is not None else ())

    def follow_network(self, network: Network, *, is_there: bool) -> None:
        if not is_there:
            self.addresses.drop_network(network.id)
            return
        self.addresses.put_network(network)
        self.try_again()
        if network.spec.ingress and self._publishing:
            self._look_at_nodes()

    def differences(self) -> Iterator[str]:
        """In what the addresses are not as they are when they are derived anew, to be read by people."""
        fresh = Allocation(self._view, Agenda())
        fresh.begin()
        for holder in chain[Holder](self._view.tasks, self._view.services, self._view.nodes):
            fresh.put(holder)
        return self.addresses.differences(fresh.addresses)

    def _settle(self, holder: Holder, has: Iterable[NetworkAttachment]) -> None:
        if self.addresses.settle((_kind(holder), holder.id), has):
            self.try_again()

    def _look_at_nodes(self) -> None:
        for node in self._view.nodes:
            self._agenda.mark(NodeKey(node.id))

    def _stored(self, holder: Holder) -> Holder | None:
        if isinstance(holder, Task):
            return self._view.tasks.get(holder.id)
        return (self._view.services if isinstance(holder, Service) else self._view.nodes).get(holder.id)


def _kind(holder: Holder) -> str:
    return "task" if isinstance(holder, Task) else "service" if isinstance(holder, Service) else "node"


def _has(holder: Holder) -> list[NetworkAttachment]:
    if isinstance(holder, Task):
        return attachments_of(holder)
    if isinstance(holder, Service):
        return virtual_ips_of(holder.endpoint)
    return [holder.ingress] if holder.HasField("ingress") else []
