"""Rolling updates and rollbacks: slots whose task is not what the service asks for are replaced, some at a time.

No progress lives outside the store. A slot is *stale* while its tasks are of an older spec, *mixed* while old and new
are there together, *settled* otherwise. The slots at work are those whose new task is not up yet, or is up (or has
failed) for less than the delay; start-first also for less than it has to stay up before the old one is told to stop.
The parallelism says how many there may be. After the last one the update is watched for one monitor window more, and
then complete (A8.04 to A8.12). A new leader that looks at the same tasks comes to the same step.

A service may set its tasks a deadline to run (A8.14): one that is *late* has failed as far as the update is concerned,
which does not wait for it any longer. The task itself goes on, and may yet run.

Source: swarmkit ``manager/orchestrator/update/updater.go``, whose workers and counters these rules replace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manager.model.actions import CreateTask, Outcome, UpdateService, UpdateTask
from manager.model.defaults import UpdateRules, update_rules
from manager.model.dirty import DirtyCheck
from manager.model.inputs import MissingOf, NewID, Nodes, SpecOf
from manager.model.modes import mode_of
from manager.model.tasks import age_key, changed_at, has_ended, is_live, new_task, newest, running_since
from manager.model.times import from_timestamp, is_ahead, to_timestamp
from manager.model.transitions import set_desired, with_desired
from manager.model.versions import copy_service, rolled_back
from manager.orchestrator import rollout
from manager.orchestrator.restart import is_finished, start_time
from proto.objects_pb2 import (
    TASK_STATE_ASSIGNED,
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
    Task,
    UpdateStatus,
)
from proto.specs_pb2 import (
    FAILURE_ACTION_CONTINUE,
    FAILURE_ACTION_ROLLBACK,
    UPDATE_ORDER_START_FIRST,
    UPDATE_ORDER_STOP_FIRST,
)
from proto.task_states import state_name


@dataclass(frozen=True, slots=True)
class SlotTasks:
    """One slot of a replicated service, or one node of a global one, with every task it has had and still keeps."""

    slot: int
    node_id: str
    tasks: Sequence[Task]


@dataclass(frozen=True)
class UpdateInputs:
    """Everything one step of an update goes by.

    Attributes:
        slots: those the service keeps, in the order in which they are to be updated; slots that nothing may touch
            (nodes that are paused) are left out.
        limit: slots to change at most this time.
    """

    service: Service
    slots: Sequence[SlotTasks]
    check: DirtyCheck
    nodes: Nodes
    spec_of: SpecOf
    missing_of: MissingOf
    now: float
    new_id: NewID
    limit: int


def advance(inputs: UpdateInputs) -> Outcome:
    """The next step of the service's update, if one is under way or due."""
    service = inputs.service
    if service.update_status.state in rollout.PAUSED:
        return Outcome()
    rules = update_rules(service.spec, rollback=rollout.is_rollback(service))
    late = _with_late(inputs, rules)
    if late is not None:
        return Outcome([[UpdateService(late)]], look_at_service=True)
    failed = _after_failures(inputs, rules)
    if failed is not None:
        return Outcome([[UpdateService(failed)]])
    kinds = [(slot, _classify(inputs, slot, rules)) for slot in inputs.slots]
    mixed = [slot for slot, kind in kinds if kind == "mixed"]
    stale = [slot for slot, kind in kinds if kind == "stale"]
    if not mixed and not stale:
        return _complete_when_due(inputs, rules) if rollout.is_under_way(service) else Outcome()
    outcome = Outcome()
    begun = _begun(service, len(mixed) + len(stale), inputs.now)
    if begun is not service:
        outcome.add(UpdateService(begun))
    for slot in mixed[: inputs.limit]:
        _finish_mixed(inputs, slot, rules, outcome)
    at_work = [work for slot in inputs.slots if (work := _at_work(inputs, begun, slot, rules)) is not None]
    for work in at_work:
        outcome.wait_until(work.until)
    room = len(stale) if rules.parallelism == 0 else max(rules.parallelism - len(at_work), 0)
    if room:
        stale.sort(key=_update_order)
    for slot in stale[: min(room, inputs.limit)]:
        _replace(inputs, slot, rules, outcome)
    outcome.look_at_service = min(room, len(stale)) > inputs.limit or len(mixed) > inputs.limit
    return outcome


# ---------------------------------------------------------------- looking at slots


def _live(slot: SlotTasks) -> list[Task]:
    return sorted((task for task in slot.tasks if is_live(task)), key=age_key)


def _update_order(slot: SlotTasks) -> int:
    """Slots that do not run first: to replace them takes nothing down. Those that find no node last: they may never."""
    states = [task.status.state for task in slot.tasks if is_live(task)]
    if TASK_STATE_RUNNING in states:
        return 1
    return 2 if states and max(states) < TASK_STATE_ASSIGNED else 0


def _is_dirty(inputs: UpdateInputs, task: Task) -> bool:
    return inputs.check.is_dirty(task, inputs.nodes.get(task.node_id) if task.node_id else None)


def _classify(inputs: UpdateInputs, slot: SlotTasks, rules: UpdateRules) -> str:
    if len(slot.tasks) == 1 and slot.tasks[0].spec_version == inputs.service.spec_version:
        return "settled"  # nearly every slot, nearly always
    live = _live(slot)
    if not live:
        # A slot that has finished is brought up to date as well; one that is simply empty is filled elsewhere.
        last = newest(slot.tasks)
        if last is None or not _is_dirty(inputs, last):
            return "settled"
        finished = is_finished(slot.tasks, inputs.spec_of, mode_of(inputs.service.spec))
        return "stale" if finished else "settled"
    clean = [task for task in live if not _is_dirty(inputs, task)]
    if clean:
        start_first = rules.order == UPDATE_ORDER_START_FIRST
        if len(live) == 1 or (start_first and all(_is_given_up(inputs, slot, task, rules) for task in clean)):
            return "settled"  # nothing is left to do for the slot unless the new one runs after all
        return "mixed"
    current = [task for task in slot.tasks if task.spec_version == inputs.service.spec_version]
    if current and is_finished(current, inputs.spec_of, mode_of(inputs.service.spec)):
        # Start-first, and the new task failed for good: the old one goes on; trying again would never end.
        return "settled"
    return "stale"


def _finish_mixed(inputs: UpdateInputs, slot: SlotTasks, rules: UpdateRules, outcome: Outcome) -> None:
    """Keep the task that is as it should be; the others go as soon as the order of the update lets them."""
    live = _live(slot)
    clean = [task for task in live if not _is_dirty(inputs, task)]
    # Running before merely wanted to run; of equals the oldest, which is the one that was there.
    keep = max(clean, key=lambda task: (task.status.state == TASK_STATE_RUNNING, task.desired_state))
    if rules.order == UPDATE_ORDER_START_FIRST:
        since = running_since(keep)
        if keep.status.state != TASK_STATE_RUNNING or since is None:
            return
        if _goes_on(since, rules.stay_up_s, inputs.now):
            outcome.wait_until(since + rules.stay_up_s)
            return
    surplus = [task for task in live if task.id != keep.id]
    outcome.add(*(UpdateTask(with_desired(task, TASK_STATE_SHUTDOWN, inputs.now)) for task in surplus))


@dataclass(frozen=True, slots=True)
class _Work:
    """A worker, in swarmkit's terms, is at a slot. ``until``: when it leaves it though nothing changes; None: never."""

    until: float | None


def _at_work(inputs: UpdateInputs, service: Service, slot: SlotTasks, rules: UpdateRules) -> _Work | None:
    """The work that is still done on this slot, or None."""
    # Start-first, until the old task may be told to stop: else there were more of both than the parallelism says.
    wait_s = max(rules.delay_s, rules.stay_up_s) if rules.order == UPDATE_ORDER_START_FIRST else rules.delay_s
    for task in slot.tasks:
        settled_at = _settled_at(inputs, slot, task, rules)
        if settled_at is None:
            # Also one that an earlier update made, whose version has the same content: its slot is not up either.
            if (
                is_live(task)
                and rollout.replaces_another(task)
                and not _is_dirty(inputs, task)
                and not _is_stranded(slot, task)
            ):
                return _Work(_late_at(inputs, slot, task, rules))
        elif rollout.belongs(service, task) and _goes_on(settled_at, wait_s, inputs.now):
            return _Work(settled_at + wait_s)
    return None


def _is_stranded(slot: SlotTasks, task: Task) -> bool:
    """Whether it takes the place of one of its own version, which lost its node, and finds no other: not the update's
    doing, nor does it wait for it."""
    if task.status.state >= TASK_STATE_ASSIGNED:
        return False
    return any(old.id == task.replaces_task_id and old.spec_version == task.spec_version for old in slot.tasks)


def _goes_on(since: float, wait_s: float, now: float) -> bool:
    return now < since + wait_s and not is_ahead(since, now)


def _settled_at(inputs: UpdateInputs, slot: SlotTasks, task: Task, rules: UpdateRules) -> float | None:
    """When it was decided how a task of the rollout fares: it ran, it ended, or it was late. None while it is under way."""
    started_at = running_since(task)
    if started_at is not None:
        return started_at
    if has_ended(task):
        return changed_at(task)
    late_at = _late_at(inputs, slot, task, rules)
    return late_at if late_at is not None and late_at <= inputs.now else None


def _late_at(inputs: UpdateInputs, slot: SlotTasks, task: Task, rules: UpdateRules) -> float | None:
    """When a task of the rollout that does not run is late; None: never, or it is not to run yet.

    The time counts from its creation, or from the end of the task before it where it had to wait for that.
    """
    if rules.progress_deadline_s is None or not rollout.belongs(inputs.service, task):
        return None
    done = has_ended(task) or running_since(task) is not None
    if done or task.desired_state != TASK_STATE_RUNNING or _is_stranded(slot, task):
        return None
    ends = [changed_at(old) for old in slot.tasks if old.id == task.replaces_task_id and has_ended(old)]
    return max([from_timestamp(task.created_at), *ends]) + rules.progress_deadline_s


def _is_late(inputs: UpdateInputs, slot: SlotTasks, task: Task, rules: UpdateRules) -> bool:
    late_at = _late_at(inputs, slot, task, rules)
    return late_at is not None and late_at <= inputs.now


def _is_given_up(inputs: UpdateInputs, slot: SlotTasks, task: Task, rules: UpdateRules) -> bool:
    """Start-first: whether the update goes on without the new task of a slot, whose old one stays until it runs.

    It is late; or the one that the update made has failed, which was counted, and this one is its restart.
    """
    restarted = task.restart_history.attempts > 0 and task.spec_version == inputs.service.spec_version
    return task.status.state != TASK_STATE_RUNNING and (restarted or _is_late(inputs, slot, task, rules))


def _with_late(inputs: UpdateInputs, rules: UpdateRules) -> Service | None:
    """The service with tasks that are late counted as failures of the update; None when there are none to count."""
    service = inputs.service
    counts = rules.progress_deadline_s is not None and rules.failure_action != FAILURE_ACTION_CONTINUE
    if not counts or not rollout.is_under_way(service):
        return None
    for slot in inputs.slots:
        for task in slot.tasks:
            if _is_late(inputs, slot, task, rules) and task.id not in service.rollout.failed_task_ids:
                service = rollout.with_failure(service, task)
    return None if service is inputs.service else service


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


def _replace(inputs: UpdateInputs, slot: SlotTasks, rules: UpdateRules, outcome: Outcome) -> None:
    live = _live(slot)
    replaced = live[-1] if live else newest(slot.tasks)
    assert replaced is not None
    task = new_task(
        inputs.service,
        task_id=inputs.new_id(),
        now=inputs.now,
        slot=slot.slot,
        node_id=slot.node_id,
        desired=TASK_STATE_READY,
    )
    task.replaces_task_id = replaced.id
    start_at = None
    if rules.order == UPDATE_ORDER_STOP_FIRST:
        stopped = [with_desired(old, TASK_STATE_SHUTDOWN, inputs.now) for old in live]
        start_at = start_time(task, slot.tasks, inputs.nodes, inputs.now, stopped=stopped)
    else:
        # One goes on until the new one runs, the best there is; an update that was interrupted may have left more.
        serving = max(live, key=lambda old: old.status.state == TASK_STATE_RUNNING, default=None)
        stopped = [with_desired(old, TASK_STATE_SHUTDOWN, inputs.now) for old in live if old is not serving]
    if start_at is None or start_at <= inputs.now:
        set_desired(task, TASK_STATE_RUNNING, inputs.now)
    outcome.add(*map(UpdateTask, stopped), CreateTask(task))


def _complete_when_due(inputs: UpdateInputs, rules: UpdateRules) -> Outcome:
    """Every slot is as it should be: watch the new tasks for a while longer, then the update is complete."""
    service, outcome = inputs.service, Outcome()
    own = [
        (slot, task)
        for slot in inputs.slots
        for task in slot.tasks
        if rollout.belongs(service, task) and not _is_stranded(slot, task)
    ]
    settled: list[float] = []
    under_way = False
    for slot, task in own:
        settled_at = _settled_at(inputs, slot, task, rules)
        if settled_at is not None:
            settled.append(settled_at)
        elif is_live(task):
            under_way = True
            outcome.wait_until(_late_at(inputs, slot, task, rules))
    if under_way:
        return outcome
    if settled:
        watch_s = rules.delay_s + rules.monitor_s
        if _goes_on(max(settled), watch_s, inputs.now):
            outcome.wait_until(max(settled) + watch_s)
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


def _after_failures(inputs: UpdateInputs, rules: UpdateRules) -> Service | None:
    """What failed tasks make of the service: paused or rolled back; None when they are not too many."""
    service, record = inputs.service, inputs.service.rollout
    if not rollout.is_under_way(service) or record.spec_version != service.spec_version or not record.failed_task_ids:
        return None
    ratio = len(record.failed_task_ids) / max(record.slots_total, 1)
    if ratio <= rules.max_failure_ratio or rules.failure_action == FAILURE_ACTION_CONTINUE:
        return None
    reason = _reason(inputs, record.failed_task_ids[-1], rules)
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


def _reason(inputs: UpdateInputs, task_id: str, rules: UpdateRules) -> str:
    """What a task did to the update, in SwarmKit's words where it knows them."""
    for slot in inputs.slots:
        for task in slot.tasks:
            if task.id == task_id and _is_late(inputs, slot, task, rules):
                state = state_name(task.status.state).lower()
                return f"task {task_id}, which did not run within {rules.progress_deadline_s:g} s (it is {state})"
    return f"failure or early termination of task {task_id}"


def _obstacle(service: Service, missing_of: MissingOf) -> str:
    """Why the service cannot be rolled back, to go on with in a message; "" when it can."""
    if not service.HasField("previous_spec"):
        return "; there is no previous spec to roll back to"
    missing = missing_of(service.previous_spec)
    return f"; the previous spec wants {missing}, which is gone" if missing else ""
