"""What is deleted: tasks beyond the history limit, removed tasks that have stopped, removed services.

Source: swarmkit ``manager/orchestrator/taskreaper``; features A1.08, A5.09, A6.08.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from manager import constants
from manager.model.actions import Action, RemoveTask, UpdateTask
from manager.model.defaults import restart_rules
from manager.model.inputs import Nodes
from manager.model.tasks import age_key, has_ended, is_live, newest
from manager.model.transitions import with_desired
from proto.objects_pb2 import (
    TASK_STATE_ASSIGNED,
    TASK_STATE_COMPLETE,
    TASK_STATE_REMOVE,
    Service,
    SpecVersion,
    Task,
)


def history_limit(service: Service, retention_limit: int) -> int | None:
    """Tasks to keep per slot; None keeps all.

    A limit of restarts keeps as many as it takes to see them all, whatever the cluster's limit says.
    """
    max_attempts = restart_rules(service.spec.task_template).max_attempts
    if max_attempts > 0:
        return min(max_attempts, constants.RESTARTS_KEPT_MAX) + 1
    return retention_limit if retention_limit >= 0 else None


def reap_slot(slot_tasks: Sequence[Task], limit: int | None, nodes: Nodes) -> list[Action]:
    """Tasks of one slot to delete.

    Args:
        slot_tasks: every task of the slot (or of the service on a node).
        limit: as ``history_limit`` says. What runs, or may still run, is never deleted; nor is the last task of a
            slot that has none live, which says whether the slot has finished.
    """
    removed = [task for task in slot_tasks if is_removable(task, nodes)]
    if limit is None or len(slot_tasks) - len(removed) <= limit:
        return [RemoveTask(task) for task in removed]
    left = [task for task in slot_tasks if task.desired_state != TASK_STATE_REMOVE]
    last = newest(left)
    dead = sorted((task for task in left if not is_live(task) and has_ended(task) and task is not last), key=age_key)
    surplus = len(slot_tasks) - len(removed) - limit
    return [RemoveTask(task) for task in [*removed, *dead[:surplus]]]


def is_removable(task: Task, nodes: Nodes) -> bool:
    """Whether a task that is to be removed can be: no agent runs it (any more)."""
    if task.desired_state != TASK_STATE_REMOVE:
        return False
    state = task.status.state
    return state < TASK_STATE_ASSIGNED or state >= TASK_STATE_COMPLETE or nodes.get(task.node_id) is None


def reap_removed(tasks: Iterable[Task], nodes: Nodes, now: float, limit: int) -> list[Action]:
    """What becomes of tasks of a service that its user has removed: they are told to stop, and go when they have.

    Args:
        limit: tasks to change at most this time.
    """
    actions: list[Action] = []
    for task in tasks:
        if len(actions) >= limit:
            return actions
        if is_removable(task, nodes) or (task.status.state < TASK_STATE_ASSIGNED and not _is_being_removed(task)):
            actions.append(RemoveTask(task))
        elif not _is_being_removed(task):
            changed = with_desired(task, TASK_STATE_REMOVE, now)
            actions.append(RemoveTask(task) if is_removable(changed, nodes) else UpdateTask(changed))
    return actions


def unneeded_versions(
    service: Service | None, versions: Iterable[SpecVersion], in_use: Collection[int]
) -> list[SpecVersion]:
    """Versions of a service's spec that neither it nor a task of it needs.

    Args:
        service: None when it is gone.
        in_use: versions that tasks are made from.
    """
    needed = {*in_use}
    if service is not None:
        needed |= {service.spec_version, service.previous_spec_version}
    return [version for version in versions if version.spec_version not in needed]


def _is_being_removed(task: Task) -> bool:
    return task.desired_state == TASK_STATE_REMOVE
