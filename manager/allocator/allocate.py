"""What a task and a service are given before a node is chosen: addresses, ports, the state PENDING.

Where something is not to be had, a task stays NEW and says why, and is tried again when something was given back.
"""

from __future__ import annotations

from collections.abc import Callable

from manager.allocator.addresses import Addresses
from manager.allocator.networks import NoRoomError
from manager.model.endpoints import endpoint_of, lacks
from manager.model.networks import cluster_networks, is_mesh, is_of_the_node, wants_virtual_ips
from manager.model.nodes import copy_node
from manager.model.tasks import copy_task, has_ended
from manager.model.times import to_timestamp
from manager.model.transitions import Owner, set_status
from manager.model.versions import copy_service
from proto.objects_pb2 import (
    TASK_STATE_NEW,
    TASK_STATE_PENDING,
    Endpoint,
    NetworkAttachment,
    Node,
    Service,
    Task,
    VirtualIP,
)
from proto.specs_pb2 import PortConfig, PortProtocol, ServiceSpec

PENDING_MESSAGE = "pending task scheduling"

DYNAMIC_PORT_MIN, DYNAMIC_PORT_MAX = 30000, 32767
"""What is given to ports of the routing mesh whose number was left open (features A3.17)."""

IsTaken = Callable[[PortProtocol.ValueType, int], bool]
"""Whether a service publishes a port of that number on every node, or on its own."""


def attachments_of(task: Task) -> list[NetworkAttachment]:
    """The addresses that a task has of the cluster: until it was seen to have ended."""
    if not task.networks_attachments or has_ended(task):
        return []
    return [each for each in task.networks_attachments if not is_of_the_node(each.network_id)]


def virtual_ips_of(endpoint: Endpoint) -> list[NetworkAttachment]:
    """The addresses that a service has itself, by network."""
    found: dict[str, NetworkAttachment] = {}
    for each in endpoint.virtual_ips:
        found.setdefault(each.network_id, NetworkAttachment(network_id=each.network_id)).addresses.append(each.addr)
    return list(found.values())


def allocate_task(
    task: Task, service: Service | None, spec: ServiceSpec | None, addresses: Addresses, now: float
) -> Task:
    """The task with everything it needs from the cluster, ready to be placed; itself when it has that already.

    Args:
        service: as it is now.
        spec: the task's own.
        addresses: is told of what the task is given.
    """
    if task.status.state != TASK_STATE_NEW:
        return task
    allocated = copy_task(task)
    try:
        for network in cluster_networks(spec) if spec is not None else ():
            allocated.networks_attachments.append(addresses.allocate(("task", task.id), network.target))
        if service is not None and (lacking := lacks(service)):
            raise NoRoomError(f"service {service.spec.name} has not got {lacking}")
    except NoRoomError as error:
        addresses.settle(("task", task.id), ())
        if task.status.err == str(error):
            return task
        waiting = copy_task(task)
        waiting.status.err = str(error)
        waiting.status.timestamp.CopyFrom(to_timestamp(now))
        return waiting
    set_status(allocated, Owner.ALLOCATOR, TASK_STATE_PENDING, PENDING_MESSAGE, now)
    return allocated


def allocate_service(service: Service, addresses: Addresses, is_taken: IsTaken) -> Service | None:
    """A copy of the service whose endpoint is as it should be, as far as there is room; None when it is already.

    Args:
        addresses: is told of what the service is given and gives back.
    """
    wanted = endpoint_of(service)
    for port in wanted.ports:
        if is_mesh(port) and not port.published_port:
            port.published_port = _free_port(port, [each.published_port for each in wanted.ports], is_taken)
    if len(wanted.virtual_ips) != len(service.endpoint.virtual_ips):
        addresses.settle(("service", service.id), virtual_ips_of(wanted))
    has = {each.network_id for each in wanted.virtual_ips}
    for network in cluster_networks(service.spec) if wants_virtual_ips(service.spec) else ():
        if network.target in has:
            continue
        try:
            attachment = addresses.allocate(("service", service.id), network.target)
        except NoRoomError:
            continue  # its tasks say so
        wanted.virtual_ips.extend(
            VirtualIP(network_id=network.target, addr=address) for address in attachment.addresses
        )
    if service.endpoint == wanted:
        return None
    changed = copy_service(service)
    changed.endpoint.CopyFrom(wanted)
    return changed


def allocate_node(node: Node, mesh_network_id: str, addresses: Addresses) -> Node | None:
    """A copy of the node with an address on the routing mesh's network; None when it has one, or there is none to be had.

    Args:
        mesh_network_id: "" while nothing is published there.
    """
    if not mesh_network_id or node.ingress.network_id == mesh_network_id:
        return None
    addresses.settle(("node", node.id), ())
    try:
        attachment = addresses.allocate(("node", node.id), mesh_network_id)
    except NoRoomError:
        return None
    changed = copy_node(node)
    changed.ingress.CopyFrom(attachment)
    return changed


def _free_port(port: PortConfig, own: list[int], is_taken: IsTaken) -> int:
    """0 when there is none."""
    numbers = range(DYNAMIC_PORT_MIN, DYNAMIC_PORT_MAX + 1)
    return next((each for each in numbers if each not in own and not is_taken(port.protocol, each)), 0)
