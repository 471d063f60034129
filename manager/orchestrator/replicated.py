"""Replicated services: so many slots, each with one live task; which are added and which go (A5.11, A6.04, A7.14).

Source: swarmkit ``manager/orchestrator/replicated``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count, islice

from manager.model.actions import CreateTask, Outcome, UpdateTask
from manager.model.defaults import replicas
from manager.model.inputs import SpecOf
from manager.model.modes import REPLICATED
from manager.model.tasks import is_live, new_task
from manager.model.transitions import InvariantError, with_desired
from manager.orchestrator.inputs import ServiceInputs
from manager.orchestrator.restart import SlotRules, is_finished, reconcile_slot
from manager.orchestrator.update import SlotTasks, UpdateInputs, advance
from proto.objects_pb2 import TASK_STATE_REMOVE, TASK_STATE_RUNNING, Service, Task


def reconcile(inputs: ServiceInputs) -> Outcome:
    """Bring the slots of a replicated service to its replica count, and its update a step further.

    Raises:
        InvariantError: a task belongs to another service.
    """
    service = inputs.service
    slots = _by_slot(service, inputs.tasks)
    occupied = {slot: tasks for slot, tasks in slots.items() if _is_occupied(tasks, inputs.spec_of)}
    wanted = replicas(service.spec)
    outcome = Outcome()
    kept = sorted(occupied)
    if len(occupied) > wanted:
        order = removal_order(occupied)
        surplus = set(order[: len(occupied) - wanted])
        kept = [slot for slot in kept if slot not in surplus]
        given_up = sorted(surplus)[: inputs.limit]
        outcome.look_at_service = len(given_up) < len(surplus)
        for slot in given_up:
            _remove(slots[slot], inputs.now, outcome)
    filled = _fill(inputs, occupied, wanted - len(occupied), outcome)
    for slot in sorted(slots.keys() - occupied.keys() - filled)[: inputs.limit]:
        _remove(slots[slot], inputs.now, outcome)
    update = advance(
        UpdateInputs(
            service=service,
            slots=[SlotTasks(slot, "", occupied[slot]) for slot in kept],
            check=inputs.check,
            nodes=inputs.nodes,
            spec_of=inputs.spec_of,
            missing_of=inputs.missing_of,
            now=inputs.now,
            new_id=inputs.new_id,
            limit=inputs.limit,
        )
    )
    outcome.groups.extend(update.groups)
    outcome.wait_until(update.deadline)
    outcome.look_at_service |= update.look_at_service or len(filled) < wanted - len(occupied)
    return outcome


def reconcile_numbered(rules: SlotRules, tasks: Sequence[Task]) -> Outcome:
    """Bring one slot to one live task; whether an empty one is filled is decided for the whole service.

    Args:
        tasks: every task of the slot.
    """
    return reconcile_slot(rules, tasks) if tasks else Outcome(look_at_service=True)


def removal_order(occupied: dict[int, list[Task]]) -> list[int]:
    """Slots in the order in which they are given up.

    First those that have no single node (doubly occupied, or not placed yet), then from the nodes that bear most of
    the service, what does not run before what does, high slot numbers before low ones.
    """
    copies: dict[str, int] = {}
    ranks: dict[int, int] = {}
    for slot in sorted(occupied, key=lambda slot: (not _runs(occupied[slot]), slot)):
        tasks = _relevant(occupied[slot])
        if len(tasks) == 1 and tasks[0].node_id:
            node_id = tasks[0].node_id
            copies[node_id] = copies.get(node_id, 0) + 1
            ranks[slot] = copies[node_id]
        else:
            ranks[slot] = len(occupied) + 1
    return sorted(occupied, key=lambda slot: (-ranks[slot], _runs(occupied[slot]), -slot))


def _by_slot(service: Service, tasks: Iterable[Task]) -> dict[int, list[Task]]:
    slots: dict[int, list[Task]] = {}
    for task in tasks:
        if task.service_id != service.id:
            raise InvariantError(f"task {task.id} belongs to {task.service_id}, not {service.id}")
        slots.setdefault(task.slot, []).append(task)
    return slots


def _is_occupied(tasks: Sequence[Task], spec_of: SpecOf) -> bool:
    return any(is_live(task) for task in tasks) or is_finished(tasks, spec_of, REPLICATED)


def _relevant(tasks: Sequence[Task]) -> list[Task]:
    """The live tasks of a slot; of a finished one, all."""
    return [task for task in tasks if is_live(task)] or list(tasks)


def _runs(tasks: Sequence[Task]) -> bool:
    return any(is_live(task) and task.status.state == TASK_STATE_RUNNING for task in tasks)


def _fill(inputs: ServiceInputs, occupied: dict[int, list[Task]], missing: int, outcome: Outcome) -> set[int]:
    """Create tasks in the lowest free slots; returns these slots."""
    free = (slot for slot in count(1) if slot not in occupied)
    filled = set(islice(free, max(min(missing, inputs.limit), 0)))
    for slot in sorted(filled):
        task_id = inputs.new_id()
        task = new_task(inputs.service, task_id=task_id, now=inputs.now, slot=slot, desired=TASK_STATE_RUNNING)
        outcome.add(CreateTask(task))
    return filled


def _remove(tasks: Sequence[Task], now: float, outcome: Outcome) -> None:
    """Give a slot up, its history included; the reaper deletes what has stopped."""
    for task in tasks:
        if task.desired_state < TASK_STATE_REMOVE:
            outcome.add(UpdateTask(with_desired(task, TASK_STATE_REMOVE, now)))
