"""One slot of a service: tasks that ended or lost their node are replaced, replacements started when it is time.

Everything this goes by is in the store, so a new leader goes on where the old one stopped:

- a replacement is held at desired READY (its image is pulled meanwhile) until ``not_before``, which is the restart
  delay (A8.02), and until every task of the slot that was told to stop has stopped, or had one minute to (A3.12);
- how often the slot was restarted travels from task to replacement in ``restart_history`` (A8.03); a new version of
  the spec starts from nothing.

A task that is lost with its node (down, drained, removed) is replaced at once: the delay is there to slow down a task
that fails, and this one did not. For the same reason it does not count as an attempt. Only condition ``none`` keeps
such a task from being replaced: it promises that nothing runs twice.

Source: swarmkit ``manager/orchestrator/restart/restart.go``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from manager import constants
from manager.model.actions import CreateTask, Outcome, UpdateService, UpdateTask
from manager.model.defaults import RestartRules, restart_rules
from manager.model.inputs import NewID, Nodes, SpecOf
from manager.model.modes import Mode, mode_of
from manager.model.nodes import is_node_lost, is_node_unreachable
from manager.model.tasks import (
    age_key,
    changed_at,
    ended_by_itself,
    has_ended,
    is_live,
    is_on_node,
    new_task,
    newest,
    was_evicted,
)
from manager.model.times import from_timestamp, is_ahead, to_timestamp
from manager.model.transitions import set_desired, with_desired
from manager.orchestrator import rollout
from proto.objects_pb2 import (
    TASK_STATE_COMPLETE,
    TASK_STATE_READY,
    TASK_STATE_REMOVE,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    RestartHistory,
    Service,
    Task,
)
from proto.specs_pb2 import RESTART_CONDITION_NONE, RESTART_CONDITION_ON_FAILURE


def may_restart(task: Task, rules: RestartRules) -> bool:
    """Whether the policy allows a replacement of a task that ended (A8.01, A8.03)."""
    if rules.condition == RESTART_CONDITION_NONE:
        return False
    if rules.condition == RESTART_CONDITION_ON_FAILURE and task.status.state == TASK_STATE_COMPLETE:
        return False
    if rules.max_attempts == 0:
        return True
    history = task.restart_history
    if rules.window_s == 0:
        return history.attempts < rules.max_attempts
    ended_at = changed_at(task)
    recent = [at for at in map(from_timestamp, history.restarted_at) if ended_at - rules.window_s < at < ended_at]
    return len(recent) < rules.max_attempts


def is_finished(slot_tasks: Sequence[Task], spec_of: SpecOf, mode: Mode) -> bool:
    """Whether a slot without a live task is to stay so: its last task ended and the policy says that is that.

    Args:
        slot_tasks: every task of the slot, in any order.
        mode: the service's.
    """
    last = newest(slot_tasks)
    if last is None or is_live(last) or last.desired_state == TASK_STATE_REMOVE:
        return False
    spec = spec_of(last)
    if spec is None:
        return False
    rules = restart_rules(spec.task_template)
    if ended_by_itself(last):
        return not may_restart(last, rules)
    # It was stopped from here. Only `none` keeps a replicated slot empty then; a node that came back gets its task.
    return rules.condition == RESTART_CONDITION_NONE and not mode.per_node


@dataclass(frozen=True)
class SlotRules:
    """What holds for every slot of one service at one moment."""

    service: Service
    nodes: Nodes
    spec_of: SpecOf
    now: float
    new_id: NewID


def reconcile_slot(rules: SlotRules, slot_tasks: Sequence[Task]) -> Outcome:
    """Replace what ended or lost its node, start what waited long enough.

    Args:
        slot_tasks: every task of one slot (replicated), or of the service on one node that may run it (global).

    Returns:
        Tasks to create and change, the service when a failure counts against its update, and when to look again.
    """
    outcome = Outcome()
    live = sorted((task for task in slot_tasks if is_live(task)), key=age_key)
    service = rules.service
    for position, task in enumerate(live):
        lost = bool(task.node_id) and is_node_lost(rules.nodes.get(task.node_id))
        if not has_ended(task) and not lost:
            _start_when_due(rules, task, slot_tasks, outcome)
            continue
        if _is_held(task, rules.now) and not lost:
            # Failed before it was even to run: the delay it waited for is waited out, to not loop tightly (A8.02).
            outcome.wait_until(from_timestamp(task.not_before))
            continue
        if has_ended(task) and rollout.counts_as_failure(service, task):
            service = rollout.with_failures(service, [task.id])
        if position < len(live) - 1 or not _is_replaced(rules, task, lost=lost):
            outcome.add(UpdateTask(with_desired(task, TASK_STATE_SHUTDOWN, rules.now)))
        else:
            _replace(rules, task, slot_tasks, lost=lost, outcome=outcome)
    if service is not rules.service:
        outcome.add(UpdateService(service))
    # Of two, one goes: at once, or when the other runs, which may be after the update is over.
    outcome.look_at_service = service is not rules.service or len(live) != 1
    return outcome


def _is_held(task: Task, now: float) -> bool:
    return task.desired_state == TASK_STATE_READY and _held_until(task, now) is not None


def _held_until(task: Task, now: float) -> float | None:
    """When its restart delay is over; None: it is, or there was none."""
    if not task.HasField("not_before"):
        return None
    not_before = from_timestamp(task.not_before)
    return None if not_before <= now or is_ahead(from_timestamp(task.created_at), now) else not_before


def _start_when_due(rules: SlotRules, task: Task, slot_tasks: Sequence[Task], outcome: Outcome) -> None:
    if task.desired_state != TASK_STATE_READY:
        return
    start_at = start_time(task, slot_tasks, rules.nodes, rules.now)
    if start_at is not None and rules.now < start_at:
        outcome.wait_until(start_at)
        return
    outcome.add(UpdateTask(with_desired(task, TASK_STATE_RUNNING, rules.now)))


def start_time(
    task: Task, slot_tasks: Iterable[Task], nodes: Nodes, now: float, *, stopped: Collection[Task] = ()
) -> float | None:
    """When a task held at READY may start at the latest, seconds since the epoch; None: at once.

    It may start earlier once every task of its slot that was told to stop has stopped: also one that a task before
    this one was waiting for, and that this one does not replace itself.

    Args:
        slot_tasks: every task of its slot.
        stopped: of these, changed copies of those that are told to stop as ``task`` is made.
    """
    start_at, created_at = _held_until(task, now), from_timestamp(task.created_at)
    told = {other.id: created_at for other in stopped if _must_be_awaited(other, nodes)}
    just_told = {other.id for other in stopped}
    for other in slot_tasks:
        awaited = other.id == task.replaces_task_id or not is_live(other)
        if awaited and other.id not in just_told and _must_be_awaited(other, nodes):
            told[other.id] = created_at if is_live(other) else min(created_at, changed_at(other))
    if told and not is_ahead(created_at, now):
        timeout_at = max(told.values()) + constants.OLD_TASK_STOP_TIMEOUT_S
        start_at = timeout_at if start_at is None else max(start_at, timeout_at)
    return start_at


def _must_be_awaited(stopping: Task, nodes: Nodes) -> bool:
    return is_on_node(stopping) and not is_node_unreachable(nodes.get(stopping.node_id))


def _replace(rules: SlotRules, task: Task, slot_tasks: Sequence[Task], *, lost: bool, outcome: Outcome) -> None:
    """Tell a task to stop, and create the one that takes its place."""
    stopped = with_desired(task, TASK_STATE_SHUTDOWN, rules.now)
    service = rules.service
    replacement = new_task(
        service,
        task_id=rules.new_id(),
        now=rules.now,
        slot=task.slot,
        node_id=task.node_id if mode_of(service.spec).per_node else "",
        desired=TASK_STATE_READY,
    )
    replacement.replaces_task_id = task.id
    new_rules = restart_rules(service.spec.task_template)
    if lost:
        # Not a failure: no delay, no attempt; but a delay it was itself waiting for goes on.
        if _is_held(task, rules.now):
            replacement.not_before.CopyFrom(task.not_before)
    elif new_rules.delay_s > 0:
        replacement.not_before.CopyFrom(to_timestamp(rules.now + new_rules.delay_s))
    if task.spec_version == service.spec_version:
        no_attempt = lost or was_evicted(task)
        history = task.restart_history if no_attempt else _history_after(task, new_rules, rules.now)
        replacement.restart_history.CopyFrom(history)
    start_at = start_time(replacement, slot_tasks, rules.nodes, rules.now, stopped=[stopped])
    if start_at is None or start_at <= rules.now:
        set_desired(replacement, TASK_STATE_RUNNING, rules.now)
    else:
        outcome.wait_until(start_at)
    outcome.add(UpdateTask(stopped), CreateTask(replacement))


def _is_replaced(rules: SlotRules, task: Task, *, lost: bool) -> bool:
    spec = rules.spec_of(task) or rules.service.spec
    policy = restart_rules(spec.task_template)
    if was_evicted(task):
        return policy.condition != RESTART_CONDITION_NONE
    if lost and not ended_by_itself(task):
        if mode_of(rules.service.spec).per_node:
            return False
        return policy.condition != RESTART_CONDITION_NONE
    return may_restart(task, policy)


def _history_after(task: Task, rules: RestartRules, now: float) -> RestartHistory:
    """The history the replacement carries: one restart more, those outside the window forgotten."""
    history = RestartHistory(attempts=task.restart_history.attempts + 1)
    if rules.window_s and rules.max_attempts:
        kept = [at for at in map(from_timestamp, task.restart_history.restarted_at) if at > now - rules.window_s]
        kept.append(now)
        history.restarted_at.extend(to_timestamp(at) for at in kept[-rules.max_attempts :])
    return history
