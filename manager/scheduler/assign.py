"""The scheduler's part of a pass: finds nodes for the tasks that have none, and says why where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from manager.model.needs import Needs
from manager.model.tasks import copy_task, is_live
from manager.model.times import to_timestamp
from manager.model.transitions import Owner, set_status
from manager.scheduler.nodes import Round
from manager.scheduler.schedule import Decision, Placed, Unplaced, schedule_bound, schedule_group
from proto.objects_pb2 import TASK_STATE_ASSIGNED, TASK_STATE_PENDING, Task

ASSIGNED_MESSAGE = "scheduler assigned task to node"
CONFIRMED_MESSAGE = "scheduler confirmed task can run on preassigned node"


def is_unassigned(task: Task) -> bool:
    """Whether the scheduler has to find a node for it, or to confirm the one it is bound to."""
    return task.status.state == TASK_STATE_PENDING and is_live(task)


def assign(
    tasks: Iterable[Task], needs_of: Callable[[Task], Needs], nodes: Round, *, room: int, free: Callable[[Task], bool]
) -> tuple[list[Task], bool]:
    """Place tasks.

    Args:
        tasks: all unassigned (``is_unassigned``).
        nodes: the round to account them in.
        room: tasks to change at most, those that cost nothing left out.
        free: whether changing a task costs nothing (it is written in this transaction anyway).

    Returns:
        Changed copies of tasks (placed, or with a new explanation), and whether some are left for another time.
    """
    bound, groups = _grouped(tasks)
    written = _Written(nodes.now, room, free)
    # Tasks of global services first: they have nowhere else to go.
    for task in bound:
        decision = schedule_bound(task, needs_of(task), nodes)
        if decision is not None:
            written.add(decision)
    for group in groups:
        costing = [task for task in group if not free(task)]
        first = [task for task in group if free(task)] + costing[: max(written.room, 0)]
        rest = costing[max(written.room, 0) :]
        decisions = schedule_group(first, needs_of(group[0]), nodes) if first else []
        if decisions and isinstance(decisions[-1], Unplaced):
            decisions.extend(Unplaced(task, decisions[-1].err) for task in rest)
        elif rest:
            written.left = True
        for decision in decisions:
            written.add(decision)
    return written.tasks, written.left


@dataclass
class _Written:
    """What one call of ``assign`` changes, as far as there is room."""

    now: float
    room: int
    free: Callable[[Task], bool]
    tasks: list[Task] = field(default_factory=list)
    left: bool = False

    def add(self, decision: Decision) -> None:
        task = decided(decision, self.now)
        if task is None:
            return
        if not self.free(task):
            if self.room <= 0:
                self.left = True
                return
            self.room -= 1
        self.tasks.append(task)


def _grouped(tasks: Iterable[Task]) -> tuple[list[Task], list[Sequence[Task]]]:
    bound: list[Task] = []
    groups: dict[tuple[str, int], list[Task]] = {}
    for task in tasks:
        if task.node_id:
            bound.append(task)
        else:
            groups.setdefault((task.service_id, task.spec_version), []).append(task)
    return bound, list(groups.values())


def decided(decision: Decision, now: float) -> Task | None:
    """The task as the decision leaves it; None when that is as it was."""
    task = decision.task
    if isinstance(decision, Placed):
        message = CONFIRMED_MESSAGE if task.node_id else ASSIGNED_MESSAGE
        placed = copy_task(task)
        placed.node_id = decision.node_id
        del placed.assigned_generic_resources[:]
        placed.assigned_generic_resources.extend(decision.generic_resources)
        set_status(placed, Owner.SCHEDULER, TASK_STATE_ASSIGNED, message, now)
        return placed
    if task.status.err == decision.err:
        return None
    explained = copy_task(task)
    explained.status.err = decision.err
    explained.status.timestamp.CopyFrom(to_timestamp(now))
    return explained
