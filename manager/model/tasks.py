"""Tasks: how one is made, and what one can be asked."""

from __future__ import annotations

from collections.abc import Iterable

from manager.model.times import from_timestamp, to_timestamp
from proto.objects_pb2 import (
    TASK_STATE_ASSIGNED,
    TASK_STATE_COMPLETE,
    TASK_STATE_FAILED,
    TASK_STATE_NEW,
    TASK_STATE_REJECTED,
    TASK_STATE_REMOVE,
    TASK_STATE_RUNNING,
    Service,
    Task,
    TaskState,
    TaskStatus,
)

EVICTED_MESSAGE = "task rejected by constraint enforcer"
"""In the status of tasks that ``orchestrator.nodes.enforce`` rejects."""


def new_task(
    service: Service, *, task_id: str, now: float, slot: int = 0, node_id: str = "", desired: TaskState.ValueType
) -> Task:
    """A task of the service's present spec, in ``slot`` (replicated) or bound to ``node_id`` (global)."""
    at = to_timestamp(now)  # each field copies it
    return Task(
        id=task_id,
        created_at=at,
        updated_at=at,
        service_id=service.id,
        spec_version=service.spec_version,
        slot=slot,
        node_id=node_id,
        status=TaskStatus(state=TASK_STATE_NEW, message="created", timestamp=at),
        desired_state=desired,
    )


def copy_task(task: Task) -> Task:
    copy = Task()
    copy.CopyFrom(task)
    return copy


def is_live(task: Task) -> bool:
    """Whether the task is meant to run (or to be ready for it)."""
    return task.desired_state <= TASK_STATE_RUNNING


def is_on_node(task: Task) -> bool:
    """Whether an agent has it, or is to get it, and it was not seen to have ended."""
    return TASK_STATE_ASSIGNED <= task.status.state <= TASK_STATE_RUNNING


def has_ended(task: Task) -> bool:
    """Whether it was seen to have ended, in whatever way."""
    return task.status.state > TASK_STATE_RUNNING


def was_evicted(task: Task) -> bool:
    """Whether its node may not, or cannot, bear it any more (``nodes.enforce``): it did not fail."""
    return task.status.state == TASK_STATE_REJECTED and task.status.message == EVICTED_MESSAGE


def ended_by_itself(task: Task) -> bool:
    """Whether it ended on its own account, not because it was told to, was evicted or its node was lost."""
    return not was_evicted(task) and (
        task.status.state == TASK_STATE_COMPLETE or TASK_STATE_FAILED <= task.status.state < TASK_STATE_REMOVE
    )


def changed_at(task: Task) -> float:
    """When a manager last wrote the task; of one that has ended, when that was written.

    ``status.timestamp`` is the agent's, whose clock may be off (features D18); this is the leader's.
    """
    return from_timestamp(task.updated_at)


def running_since(task: Task) -> float | None:
    """When it reached RUNNING, or None when it never did as far as is known."""
    if task.status.HasField("running_since"):
        return from_timestamp(task.status.running_since)
    return changed_at(task) if task.status.state == TASK_STATE_RUNNING else None


def age_key(task: Task) -> tuple[int, int, int, str]:
    """Sorts tasks of one slot, oldest first; a later version of the spec is younger."""
    return (task.spec_version, task.created_at.seconds, task.created_at.nanos, task.id)


def newest(tasks: Iterable[Task]) -> Task | None:
    return max(tasks, key=age_key, default=None)
