"""Rolling updates and rollbacks: slots whose task is not what the service asks for are replaced, some at a time.

No progress lives outside the store. Each slot is judged from its tasks (``standing``); the parallelism says how many may
be at work. After the last one the update is watched for one monitor window more, and then complete (A8.04 to A8.12). A
new leader that looks at the same tasks comes to the same step.

A service may set its tasks a deadline to run (A8.14): one that is *late* has failed as far as the update is concerned,
which does not wait for it any longer. The task itself goes on, and may yet run.

Source: swarmkit ``manager/orchestrator/update/updater.go``, whose workers and counters these rules replace.
"""

from __future__ import annotations

from itertools import islice

from manager.model.actions import CreateTask, Outcome, UpdateService, UpdateTask
from manager.model.inputs import MissingOf
from manager.model.modes import mode_of
from manager.model.tasks import age_key, is_live, new_task, newest
from manager.model.times import to_timestamp
from manager.model.transitions import set_desired, with_desired
from manager.model.versions import copy_service, rolled_back
from manager.orchestrator import rollout
from manager.orchestrator.inputs import ServiceInputs
from manager.orchestrator.restart import start_time
from manager.orchestrator.slots import Slot
from manager.orchestrator.standing import goes_on, is_late, to_keep, watch_s
from proto.objects_pb2 import (
    TASK_STATE_READY,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    UPDATE_STATE_COMPLETED,
    UPDATE_STATE_PAUSED,
    UPDATE_STATE_ROLLBACK_COMPLETED,
    UPDATE_STATE_ROLLBACK_PAUSED,
    UPDATE_STATE_ROLLBACK_STARTED,
    UPDATE_STATE_UNSPECIFIED,
    UPDATE_STATE_UPDATING,
    Rollout,
    Service,
    UpdateStatus,
)
from proto.specs_pb2 import FAILURE_ACTION_CONTINUE, FAILURE_ACTION_ROLLBACK, UPDATE_ORDER_STOP_FIRST
from proto.task_states import state_name


def advance(inputs: ServiceInputs) -> Outcome:
    """The next step of the service's update, if one is under way or due."""
    service, slots = inputs.service, inputs.slots
    if service.update_status.state in rollout.PAUSED:
        return Outcome()
    late = _with_late(inputs)
    if late is not None:
        return Outcome([[UpdateService(late)]], look_at_service=True)
    failed = _after_failures(inputs)
    if failed is not None:
        return Outcome([[UpdateService(failed)]])
    if not slots.mixed and not slots.stale:
        return _complete_when_due(inputs) if rollout.is_under_way(service) else Outcome()
    begun = _begun(service, slots.mixed + len(slots.stale), inputs.now)
    if begun is not service:
        # The slots are judged by what the service records; the next look goes on.
        return Outcome([[UpdateService(begun)]], look_at_service=True)
    outcome = Outcome(deadline=slots.next_change())
    for slot in islice(slots.doubled, inputs.limit):
        _end_doubled(inputs, slot, outcome)
    parallelism = inputs.by.rules.parallelism
    room = len(slots.stale) if parallelism == 0 else max(parallelism - slots.at_work, 0)
    for slot in slots.stale.firsts(min(room, inputs.limit)):
        _replace(inputs, slot, outcome)
    outcome.look_at_service = min(room, len(slots.stale)) > inputs.limit or len(slots.doubled) > inputs.limit
    return outcome


def _with_late(inputs: ServiceInputs) -> Service | None:
    """The service with tasks that are late counted as failures of the update; None when there are none to count."""
    service, rules = inputs.service, inputs.by.rules
    counts = rules.progress_deadline_s is not None and rules.failure_action != FAILURE_ACTION_CONTINUE
    if not counts or not rollout.is_under_way(service) or not inputs.slots.late:
        return None
    counted = set(service.rollout.failed_task_ids)
    found = (facts.standing.late for slot in inputs.slots.late if (facts := inputs.slots.facts(slot)) is not None)
    late = [task_id for task_ids in found for task_id in task_ids if task_id not in counted]
    return rollout.with_failures(service, late) if late else None


# ---------------------------------------------------------------- steps


def _begun(service: Service, slots_total: int, now: float) -> Service:
    """The service with a rollout of its present version recorded; itself when there is one already."""
    state = service.update_status.state
    known = service.HasField("rollout") and service.rollout.spec_version == service.spec_version
    if known and state != UPDATE_STATE_UNSPECIFIED:
        return service
    begun = copy_service(service)
    begun.rollout.CopyFrom(
        Rollout(
            spec_version=service.spec_version,
            slots_total=slots_total,
            rollback=state == UPDATE_STATE_ROLLBACK_STARTED,
        )
    )
    if state not in rollout.ACTIVE:
        begun.update_status.CopyFrom(
            UpdateStatus(state=UPDATE_STATE_UPDATING, message="update in progress", started_at=to_timestamp(now))
        )
    return begun


def _end_doubled(inputs: ServiceInputs, slot: Slot, outcome: Outcome) -> None:
    """Keep the task that is as it should be, tell the others to stop."""
    live = sorted((task for task in inputs.tasks_of(slot) if is_live(task)), key=age_key)
    keep = to_keep(inputs.by, live)
    surplus = [task for task in live if task.id != keep.id]
    outcome.add(*(UpdateTask(with_desired(task, TASK_STATE_SHUTDOWN, inputs.now)) for task in surplus))


def _replace(inputs: ServiceInputs, slot: Slot, outcome: Outcome) -> None:
    tasks = inputs.tasks_of(slot)
    live = sorted((task for task in tasks if is_live(task)), key=age_key)
    replaced = live[-1] if live else newest(tasks)
    assert replaced is not None, "a slot without tasks is not stale"
    per_node = mode_of(inputs.service.spec).per_node
    task = new_task(
        inputs.service,
        task_id=inputs.new_id(),
        now=inputs.now,
        slot=replaced.slot,
        node_id=replaced.node_id if per_node else "",
        desired=TASK_STATE_READY,
    )
    task.replaces_task_id = replaced.id
    start_at = None
    if inputs.by.rules.order == UPDATE_ORDER_STOP_FIRST:
        stopped = [with_desired(old, TASK_STATE_SHUTDOWN, inputs.now) for old in live]
        start_at = start_time(task, tasks, inputs.by.nodes, inputs.now, stopped=stopped)
    else:
        # One goes on until the new one runs, the best there is; an update that was interrupted may have left more.
        serving = max(live, key=lambda old: old.status.state == TASK_STATE_RUNNING, default=None)
        stopped = [with_desired(old, TASK_STATE_SHUTDOWN, inputs.now) for old in live if old is not serving]
    if start_at is None or start_at <= inputs.now:
        set_desired(task, TASK_STATE_RUNNING, inputs.now)
    outcome.add(*map(UpdateTask, stopped), CreateTask(task))


def _complete_when_due(inputs: ServiceInputs) -> Outcome:
    """Every slot is as it should be: watch the new tasks for a while longer, then the update is complete."""
    service, slots, outcome = inputs.service, inputs.slots, Outcome()
    settled_at = slots.last_settled_at()
    if slots.under_way or (settled_at is not None and goes_on(inputs.by, settled_at, watch_s(inputs.by))):
        outcome.wait_until(slots.next_change())
        return outcome
    done = copy_service(service)
    if rollout.is_rollback(service):
        done.update_status.state = UPDATE_STATE_ROLLBACK_COMPLETED
        done.update_status.message = "rollback completed"
    else:
        done.update_status.state = UPDATE_STATE_COMPLETED
        done.update_status.message = "update completed"
    done.update_status.completed_at.CopyFrom(to_timestamp(inputs.now))
    outcome.add(UpdateService(done))
    return outcome


def _after_failures(inputs: ServiceInputs) -> Service | None:
    """What failed tasks make of the service: paused or rolled back; None when they are not too many."""
    service, rules, record = inputs.service, inputs.by.rules, inputs.service.rollout
    if not rollout.is_under_way(service) or record.spec_version != service.spec_version or not record.failed_task_ids:
        return None
    ratio = len(record.failed_task_ids) / max(record.slots_total, 1)
    if ratio <= rules.max_failure_ratio or rules.failure_action == FAILURE_ACTION_CONTINUE:
        return None
    reason = _reason(inputs, record.failed_task_ids[-1])
    obstacle = ""
    if rules.failure_action == FAILURE_ACTION_ROLLBACK and not rollout.is_rollback(service):
        obstacle = _obstacle(service, inputs.missing_of)
        if not obstacle:
            started_at = service.update_status.started_at
            return rolled_back(
                service,
                f"update rolled back due to {reason}",
                started_at=started_at if service.update_status.HasField("started_at") else to_timestamp(inputs.now),
                returns=False,
            )
    changed = copy_service(service)
    if rollout.is_rollback(service):
        # A rollback is never rolled back.
        changed.update_status.state = UPDATE_STATE_ROLLBACK_PAUSED
        changed.update_status.message = f"rollback paused due to {reason}"
    else:
        changed.update_status.state = UPDATE_STATE_PAUSED
        changed.update_status.message = f"update paused due to {reason}{obstacle}"
    return changed


def _reason(inputs: ServiceInputs, task_id: str) -> str:
    """What a task did to the update, in SwarmKit's words where it knows them."""
    task = inputs.task_of(task_id)
    if task is not None and is_late(inputs.by, inputs.tasks_of(mode_of(inputs.service.spec).slot_of(task)), task):
        state, deadline_s = state_name(task.status.state).lower(), inputs.by.rules.progress_deadline_s
        return f"task {task_id}, which did not run within {deadline_s:g} s (it is {state})"
    return f"failure or early termination of task {task_id}"


def _obstacle(service: Service, missing_of: MissingOf) -> str:
    """Why the service cannot be rolled back, to go on with in a message; "" when it can."""
    if not service.HasField("previous_spec"):
        return "; there is no previous spec to roll back to"
    missing = missing_of(service.previous_spec)
    return f"; the previous spec wants {missing}" if missing else ""
