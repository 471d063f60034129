"""The dispatcher's part of a task's story in the log: what its node was sent, what it said. One line a task, at debug.

And that it was removed with its node's report of its end, which is the reconcile loop's line where that removes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import structlog

from proto.dispatcher_pb2 import AssignmentKind, AssignmentsMessage, TaskStatusUpdate
from proto.objects_pb2 import Task
from proto.task_states import state_name

TASKS_LOGGED_PER_ENTRY = 50

log = structlog.get_logger(__name__)


def tell_sent(node_id: str, message: bytes) -> None:
    """A message with tasks, an ``AssignmentsMessage``, has gone out to their node."""
    if not log.is_enabled_for(logging.DEBUG):
        return
    for change in AssignmentsMessage.FromString(message).changes:
        if change.kind != AssignmentKind.ASSIGNMENT_KIND_TASK:
            continue
        if change.HasField("task"):
            log.debug(
                "task.sent",
                task_id=change.id,
                service_id=change.task.service_id,
                node_id=node_id,
                state=state_name(change.task.status.state),
                desired_state=state_name(change.task.desired_state),
            )
        else:
            log.debug("task.withdrawn", task_id=change.id, node_id=node_id)


def tell_reported(node_id: str, updates: Iterable[TaskStatusUpdate], find_task: Callable[[str], Task | None]) -> None:
    """What a node said of its tasks is committed, or was known before."""
    if not log.is_enabled_for(logging.DEBUG):
        return
    for update in updates:
        task = find_task(update.task_id)
        if task is not None and task.node_id == node_id:
            log.debug(
                "task.reported",
                task_id=task.id,
                service_id=task.service_id,
                node_id=node_id,
                state=state_name(update.status.state),
                err=update.status.err[:256],
            )


def tell_removed(tasks: Sequence[Task]) -> None:
    """They are gone, with what their nodes said last; of many the number."""
    tell = log.info
    if len(tasks) > TASKS_LOGGED_PER_ENTRY:
        log.info("tasks.changed", tasks=0, removed=len(tasks))
        tell = log.debug
        if not log.is_enabled_for(logging.DEBUG):
            return
    for task in tasks:
        tell(
            "task.removed",
            task_id=task.id,
            service_id=task.service_id,
            slot=task.slot,
            node_id=task.node_id,
            state=state_name(task.status.state),
            desired_state=state_name(task.desired_state),
        )
