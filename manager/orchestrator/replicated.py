"""Replicated services: so many slots, each with one live task; which are added and which go (A5.11, A6.04, A7.14).

Source: swarmkit ``manager/orchestrator/replicated``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from manager.model.actions import CreateTask, Outcome, UpdateTask
from manager.model.defaults import replicas
from manager.model.inputs import SpecOf
from manager.model.modes import REPLICATED
from manager.model.tasks import is_live, new_task
from manager.model.transitions import InvariantError, with_desired
from manager.orchestrator.inputs import Judging, ServiceInputs
from manager.orchestrator.restart import SlotRules, is_finished, reconcile_slot
from manager.orchestrator.slots import Slot, SlotFacts
from manager.orchestrator.standing import by_version, judge
from manager.orchestrator.update import advance
from proto.objects_pb2 import TASK_STATE_REMOVE, TASK_STATE_RUNNING, Task


def reconcile(inputs: ServiceInputs) -> Outcome:
    """Bring the slots of a replicated service to its replica count, and its update a step further."""
    slots, outcome = inputs.slots, Outcome()
    wanted = replicas(inputs.service.spec)
    surplus = slots.occupied - wanted
    filled = set(slots.free(min(max(-surplus, 0), inputs.limit)))
    # One that is filled keeps its history.
    for slot in islice((slot for slot in slots.to_clear if slot not in filled), inputs.limit):
        _remove(inputs, slot, outcome)
    if surplus > 0:
        for slot in slots.leaving(min(surplus, inputs.limit)):
            _remove(inputs, slot, outcome)
        # The update is not to touch slots that go; the next look does not see them any more.
        outcome.look_at_service = True
        return outcome
    _fill(inputs, sorted(filled), outcome)
    update = advance(inputs)
    outcome.groups.extend(update.groups)
    outcome.wait_until(update.deadline)
    outcome.look_at_service = update.look_at_service or len(filled) < -surplus or len(slots.to_clear) > inputs.limit
    return outcome


def reconcile_numbered(rules: SlotRules, tasks: Sequence[Task]) -> Outcome:
    """Bring one slot to one live task; whether an empty one is filled is decided for the whole service.

    Args:
        tasks: every task of the slot.
    """
    return reconcile_slot(rules, tasks) if tasks else Outcome(look_at_service=True)


def facts_of(by: Judging, slot: Slot, tasks: Sequence[Task]) -> SlotFacts | None:
    """What is known of a slot of these tasks; None without any.

    Raises:
        InvariantError: a task belongs to another service.
    """
    if not tasks:
        return None
    for task in tasks:
        if task.service_id != by.service.id:
            raise InvariantError(f"task {task.id} belongs to {task.service_id}, not {by.service.id}")
    live = [task for task in tasks if is_live(task)]
    if not live and not _has_finished(tasks, by.spec_of):
        return SlotFacts(occupied=False, to_clear=any(task.desired_state < TASK_STATE_REMOVE for task in tasks))
    standing, until = judge(by, tasks, live)
    relevant = live or tasks
    return SlotFacts(
        occupied=True,
        runs=any(task.status.state == TASK_STATE_RUNNING for task in live),
        node_id=relevant[0].node_id if len(relevant) == 1 else "",
        standing=standing,
        by_version=by_version(by, live),
        until=until,
    )


def _has_finished(tasks: Sequence[Task], spec_of: SpecOf) -> bool:
    return is_finished(tasks, spec_of, REPLICATED)


def _fill(inputs: ServiceInputs, free: Iterable[int], outcome: Outcome) -> None:
    for slot in free:
        task_id = inputs.new_id()
        task = new_task(inputs.service, task_id=task_id, now=inputs.now, slot=slot, desired=TASK_STATE_RUNNING)
        outcome.add(CreateTask(task))


def _remove(inputs: ServiceInputs, slot: Slot, outcome: Outcome) -> None:
    """Give a slot up, its history included; the reaper deletes what has stopped."""
    for task in inputs.tasks_of(slot):
        if task.desired_state < TASK_STATE_REMOVE:
            outcome.add(UpdateTask(with_desired(task, TASK_STATE_REMOVE, inputs.now)))
