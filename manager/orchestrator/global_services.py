"""Global services: one task on every node that may run it (A5.12).

The nodes are looked at one by one: whatever happened in between, a node that should run the service gets a task and
one that should not loses it (X27).

Source: swarmkit ``manager/orchestrator/global``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from manager.model.actions import CreateTask, Outcome, RemoveTask, UpdateTask
from manager.model.constraints import ConstraintError, node_matches, parse_cached
from manager.model.modes import GLOBAL
from manager.model.nodes import is_node_lost
from manager.model.tasks import has_ended, is_live, new_task
from manager.model.transitions import with_desired
from manager.orchestrator.inputs import Judging, ServiceInputs
from manager.orchestrator.restart import SlotRules, is_finished, reconcile_slot
from manager.orchestrator.slots import SETTLED, Slot, SlotFacts
from manager.orchestrator.standing import by_version, judge
from manager.orchestrator.update import advance
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


def facts_of(by: Judging, node_id: Slot, tasks: Sequence[Task]) -> SlotFacts | None:
    """What is known of a node with these tasks of the service; None when there is nothing to know."""
    node = by.nodes.get(str(node_id))
    live = [task for task in tasks if is_live(task)]
    wanted = may_run_on(by.service, node)
    if not tasks and not wanted:
        return None
    takes_tasks = wanted and node is not None and node.spec.availability != NODE_AVAILABILITY_PAUSE
    if live:
        misplaced = not wanted
    else:
        misplaced = takes_tasks and not is_finished(tasks, by.spec_of, GLOBAL)
    # Nothing is updated on a node that is paused, or that the service is to leave.
    standing, until = judge(by, tasks, live) if takes_tasks and tasks else (SETTLED, None)
    return SlotFacts(
        occupied=bool(live), misplaced=misplaced, standing=standing, by_version=by_version(by, live), until=until
    )


def reconcile(inputs: ServiceInputs) -> Outcome:
    """The next step of a global service's update. Which nodes have a task is decided node by node."""
    return advance(inputs)


def _stop(rules: SlotRules, tasks: Iterable[Task], outcome: Outcome) -> None:
    for task in tasks:
        outcome.add(UpdateTask(with_desired(task, TASK_STATE_SHUTDOWN, rules.now)))
