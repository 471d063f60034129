"""Networks that reach over all nodes. Their nodes hear of them while a task there is on them."""

from __future__ import annotations

from collections.abc import Iterable

from manager.model.networks import is_of_the_node
from manager.store.kinds.kind import Assigned, Kind
from proto.dispatcher_pb2 import AssignmentKind
from proto.objects_pb2 import Network, Task
from proto.specs_pb2 import ServiceSpec


def _needed_by(task: Task, _: ServiceSpec | None) -> Iterable[str]:
    if not task.networks_attachments:
        return ()
    return [each.network_id for each in task.networks_attachments if not is_of_the_node(each.network_id)]


NETWORKS = Kind(
    name="network",
    plural="networks",
    message=Network,
    names=lambda network: (network.spec.name,),
    unique_names=True,
    labels=lambda network: network.spec.labels,
    assigned=Assigned(AssignmentKind.ASSIGNMENT_KIND_NETWORK, _needed_by, has_members=True),
)
