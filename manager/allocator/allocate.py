"""What a task and a service are given before a node is chosen.

The state PENDING, and the endpoint of a service that publishes ports of its nodes.
"""

from __future__ import annotations

from manager.model.endpoints import endpoint_of
from manager.model.tasks import copy_task
from manager.model.transitions import Owner, set_status
from manager.model.versions import copy_service
from proto.objects_pb2 import TASK_STATE_NEW, TASK_STATE_PENDING, Service, Task

PENDING_MESSAGE = "pending task scheduling"


def allocate_task(task: Task, now: float) -> Task:
    """The task with everything it needs from the cluster, ready to be placed; itself when it has that already."""
    if task.status.state != TASK_STATE_NEW:
        return task
    allocated = copy_task(task)
    set_status(allocated, Owner.ALLOCATOR, TASK_STATE_PENDING, PENDING_MESSAGE, now)
    return allocated


def allocate_service(service: Service) -> Service | None:
    """A copy of the service whose endpoint is as it should be; None when it is already."""
    wanted = endpoint_of(service)
    if service.endpoint == wanted:
        return None
    changed = copy_service(service)
    changed.endpoint.CopyFrom(wanted)
    return changed
