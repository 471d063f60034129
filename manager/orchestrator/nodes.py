"""What a change of a node means for the tasks on it, beyond their being replaced (which ``restart`` decides).

Source: swarmkit ``manager/orchestrator/constraintenforcer``, ``manager/dispatcher`` (ORPHANED); features A3.03, A7.05.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from manager import constants
from manager.model.actions import Outcome, UpdateTask
from manager.model.constraints import node_matches
from manager.model.needs import Needs
from manager.model.resources import GenericPool
from manager.model.tasks import EVICTED_MESSAGE, age_key, copy_task, is_live, is_on_node
from manager.model.times import from_timestamp
from manager.model.transitions import Owner, set_status
from proto.objects_pb2 import (
    NODE_STATE_DOWN,
    TASK_STATE_ORPHANED,
    TASK_STATE_REJECTED,
    Node,
    Task,
)
from proto.specs_pb2 import NODE_AVAILABILITY_DRAIN, NODE_AVAILABILITY_PAUSE

REJECTED_ERR = "assigned node no longer meets constraints"


def orphan(node: Node | None, tasks: Iterable[Task], now: float) -> Outcome:
    """Give up tasks whose node is gone, or has been down for a day: nobody will ever tell how they ended.

    Args:
        node: None when it was removed.
        tasks: every task on it.
    """
    outcome = Outcome()
    held = [task for task in tasks if is_on_node(task)]
    if not held:
        return outcome
    if node is not None:
        if node.status.state != NODE_STATE_DOWN:
            return outcome
        due_at = from_timestamp(node.status_since) + constants.NODE_DOWN_ORPHAN_DELAY_S
        if now < due_at:
            outcome.wait_until(due_at)
            return outcome
    for task in sorted(held, key=age_key):
        changed = copy_task(task)
        set_status(changed, Owner.ORPHANER, TASK_STATE_ORPHANED, "the node of the task is gone", now)
        outcome.add(UpdateTask(changed))
    return outcome


def enforce(
    node: Node,
    tasks: Iterable[Task],
    needs_of: Callable[[Task], Needs],
    placements_of: Callable[[Task], Sequence[Needs]],
    now: float,
) -> Outcome:
    """Reject tasks that the node may not or cannot bear any more (A7.05).

    Their observed state is set, so that they are restarted elsewhere by the same rules as any that failed. A node that
    is paused is left alone, and a drained one is emptied anyway.

    Args:
        tasks: every task on the node; when resources do not suffice the younger ones go.
        needs_of: what a task reserved when it was placed.
        placements_of: what its service asks for now, whose constraints may be newer than the task; and while an update
            brings these, what the task was made for. The constraints of one of them have to hold.
    """
    outcome = Outcome()
    if node.spec.availability in (NODE_AVAILABILITY_PAUSE, NODE_AVAILABILITY_DRAIN):
        return outcome
    bearing = _Bearing(node)
    for task in _placed(tasks):
        allowed = any(_holds(placement, node) for placement in placements_of(task))
        if allowed and bearing.take(task, needs_of(task)):
            continue
        changed = copy_task(task)
        set_status(changed, Owner.CONSTRAINT_ENFORCER, TASK_STATE_REJECTED, EVICTED_MESSAGE, now, err=REJECTED_ERR)
        outcome.add(UpdateTask(changed))
    return outcome


def _holds(placement: Needs, node: Node) -> bool:
    return placement.constraints is not None and node_matches(placement.constraints, node)


class _Bearing:
    """What is left of a node while its tasks are put on it one by one."""

    def __init__(self, node: Node) -> None:
        resources = node.description.resources
        self._nano_cpus = resources.nano_cpus
        self._memory_bytes = resources.memory_bytes
        self._generic = GenericPool.of(resources.generic_resources)

    def take(self, task: Task, needs: Needs) -> bool:
        if needs.nano_cpus > self._nano_cpus or needs.memory_bytes > self._memory_bytes:
            return False
        if not all(self._generic.holds(assigned) for assigned in task.assigned_generic_resources):
            return False
        self._nano_cpus -= needs.nano_cpus
        self._memory_bytes -= needs.memory_bytes
        self._generic.consume(task.assigned_generic_resources)
        return True


def _placed(tasks: Iterable[Task]) -> Sequence[Task]:
    return sorted(
        (task for task in tasks if is_live(task) and is_on_node(task)),
        key=age_key,
    )
