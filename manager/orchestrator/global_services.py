"""Global services: one task on every node that may run it (A5.12).

The nodes are looked at one by one: whatever happened in between, a node that should run the service gets a task and
one that should not loses it (X27).

Source: swarmkit ``manager/orchestrator/global``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from manager.model.actions import CreateTask, Outcome, RemoveTask, UpdateTask
from manager.model.constraints import ConstraintError, node_matches, parse_cached
from manager.model.modes import GLOBAL
from manager.model.nodes import is_node_lost
from manager.model.tasks import has_ended, is_live, new_task
from manager.model.transitions import with_desired
from manager.orchestrator.inputs import ServiceInputs
from manager.orchestrator.restart import SlotRules, is_finished, reconcile_slot
from manager.orchestrator.update import SlotTasks, UpdateInputs, advance
from proto.objects_pb2 import TASK_STATE_RUNNING, TASK_STATE_SHUTDOWN, Node, Service, Task
from proto.specs_pb2 import NODE_AVAILABILITY_PAUSE


def may_run_on(service: Service, node: Node | None) -> bool:
    """Whether the service belongs on the node: not lost to it, and its constraints hold there."""
    if node is None or is_node_lost(node):
        return False
    try:
        constraints = parse_cached(tuple(service.spec.task_template.placement.constraints))
    except ConstraintError:
        return False
    return node_matches(constraints, node)


def reconcile_node(rules: SlotRules, node_id: str, tasks: Sequence[Task]) -> Outcome:
    """Bring one node to one live task of the service, or to none.

    Args:
        tasks: every task of the service on that node.
    """
    node = rules.nodes.get(node_id)
    outcome = Outcome()
    if node is None:
        # No slot is left that this would be the history of.
        outcome.add(*map(RemoveTask, tasks))
        return outcome
    if not may_run_on(rules.service, node):
        _stop(rules, (task for task in tasks if is_live(task)), outcome)
        return outcome
    if node.spec.availability == NODE_AVAILABILITY_PAUSE:
        # What runs or waits there for its start goes on; what ended is not started again, and nothing is added.
        going_on = [task for task in tasks if not (is_live(task) and has_ended(task))]
        if any(is_live(task) for task in going_on):
            outcome = reconcile_slot(rules, going_on)
        _stop(rules, (task for task in tasks if is_live(task) and has_ended(task)), outcome)
        return outcome
    if any(is_live(task) for task in tasks):
        return reconcile_slot(rules, tasks)
    if is_finished(tasks, rules.spec_of, GLOBAL):
        return outcome
    task = new_task(rules.service, task_id=rules.new_id(), now=rules.now, node_id=node_id, desired=TASK_STATE_RUNNING)
    outcome.add(CreateTask(task))
    return outcome


def nodes_to_look_at(inputs: ServiceInputs) -> Iterator[str]:
    """IDs of nodes that want a task and have none, or the other way round: a change of the spec may have made them so.

    The others are looked at when they, or their tasks, change. (Two tasks on a node have the service looked at: to have
    their node looked at for it again would never end.)
    """
    occupied = {task.node_id for task in inputs.tasks if is_live(task)}
    for node in inputs.nodes.values():
        if may_run_on(inputs.service, node) != (node.id in occupied):
            yield node.id
    yield from sorted(node_id for node_id in occupied if inputs.nodes.get(node_id) is None)


def reconcile(inputs: ServiceInputs) -> Outcome:
    """The next step of a global service's update. Which nodes have a task is decided node by node."""
    by_node: dict[str, list[Task]] = {}
    for task in inputs.tasks:
        by_node.setdefault(task.node_id, []).append(task)
    eligible = sorted(
        node.id
        for node in inputs.nodes.values()
        if may_run_on(inputs.service, node) and node.spec.availability != NODE_AVAILABILITY_PAUSE
    )
    return advance(
        UpdateInputs(
            service=inputs.service,
            slots=[SlotTasks(0, node_id, by_node[node_id]) for node_id in eligible if node_id in by_node],
            check=inputs.check,
            nodes=inputs.nodes,
            spec_of=inputs.spec_of,
            missing_of=inputs.missing_of,
            now=inputs.now,
            new_id=inputs.new_id,
            limit=inputs.limit,
        )
    )


def _stop(rules: SlotRules, tasks: Iterable[Task], outcome: Outcome) -> None:
    for task in tasks:
        outcome.add(UpdateTask(with_desired(task, TASK_STATE_SHUTDOWN, rules.now)))
