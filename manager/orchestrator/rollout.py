"""The record of a rolling update that a service carries: which tasks are of it, which of them failed.

``Service.rollout`` names the version of the spec it brings, how many slots were to change when it began (what the
failure ratio is taken of) and the tasks that failed; ``Service.update_status`` is what users see.
"""

from __future__ import annotations

from collections.abc import Iterable

from manager.model.defaults import update_rules
from manager.model.tasks import changed_at, running_since, was_evicted
from manager.model.versions import copy_service
from proto.objects_pb2 import (
    TASK_STATE_ORPHANED,
    UPDATE_STATE_PAUSED,
    UPDATE_STATE_ROLLBACK_PAUSED,
    UPDATE_STATE_ROLLBACK_STARTED,
    UPDATE_STATE_UPDATING,
    Service,
    Task,
)
from proto.specs_pb2 import FAILURE_ACTION_CONTINUE

ACTIVE = (UPDATE_STATE_UPDATING, UPDATE_STATE_ROLLBACK_STARTED)
PAUSED = (UPDATE_STATE_PAUSED, UPDATE_STATE_ROLLBACK_PAUSED)


def is_under_way(service: Service) -> bool:
    """Whether an update or rollback of the service is under way."""
    return service.update_status.state in ACTIVE


def is_unfinished(service: Service) -> bool:
    """Whether tasks may be of an older spec because the update has not come to them: it is under way, or paused."""
    return is_under_way(service) or service.update_status.state in PAUSED


def is_rollback(service: Service) -> bool:
    return service.update_status.state == UPDATE_STATE_ROLLBACK_STARTED


def belongs(service: Service, task: Task) -> bool:
    """Whether the rollout itself made this task (and not a restart in it, nor a change of scale)."""
    return task.spec_version == service.spec_version == service.rollout.spec_version and replaces_another(task)


def replaces_another(task: Task) -> bool:
    """Whether the task took another's place and was not made by a restart."""
    return bool(task.replaces_task_id) and task.restart_history.attempts == 0


def counts_as_failure(service: Service, task: Task) -> bool:
    """Whether a live task that was seen to have ended counts against the rollout.

    It does when it ended before it ran, or within the monitor window after (A8.07), whenever that is looked at; each
    task once. One that was given up with its node, or evicted, says nothing about the new spec; nobody counts where
    failures change nothing.
    """
    if not is_under_way(service) or not belongs(service, task) or task.id in service.rollout.failed_task_ids:
        return False
    rules = update_rules(service.spec, rollback=is_rollback(service))
    given_up = task.status.state == TASK_STATE_ORPHANED or was_evicted(task)
    if given_up or rules.failure_action == FAILURE_ACTION_CONTINUE:
        return False
    started_at = running_since(task)
    return started_at is None or changed_at(task) - started_at <= rules.monitor_s


def with_failures(service: Service, task_ids: Iterable[str]) -> Service:
    """A copy of the service in which the failures of these tasks are counted."""
    copy = copy_service(service)
    copy.rollout.failed_task_ids.extend(task_ids)
    return copy
