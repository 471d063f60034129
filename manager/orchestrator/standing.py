"""Where one slot stands in the rolling update of its service, judged from its tasks alone.

A slot is *stale* while its tasks are of an older spec, *mixed* while old and new are there together, *settled*
otherwise. It is *at work* while its new task is not up yet, or is up (or has failed) for less than the delay; start-first
also for less than it has to stay up before the old one is told to stop. A task that has a deadline to run (A8.14) is
*late* when that is over.
"""

from __future__ import annotations

from collections.abc import Sequence

from manager import constants
from manager.model.modes import mode_of
from manager.model.tasks import age_key, changed_at, has_ended, is_live, newest, running_since
from manager.model.times import from_timestamp, is_ahead
from manager.orchestrator import rollout
from manager.orchestrator.inputs import Judging
from manager.orchestrator.restart import is_finished
from manager.orchestrator.slots import SETTLED, Kind, Standing
from proto.objects_pb2 import TASK_STATE_ASSIGNED, TASK_STATE_RUNNING, Task
from proto.specs_pb2 import UPDATE_ORDER_START_FIRST


def judge(by: Judging, tasks: Sequence[Task], live: Sequence[Task]) -> tuple[Standing, float | None]:
    """Where a slot stands, and when that may be another though nothing changes (seconds since the epoch, or None).

    Args:
        tasks: every task of the slot.
        live: those of them that are.
    """
    kind, until = _kind(by, tasks, live)
    at_work = under_way = False
    settled_at: float | None = None
    late: list[str] = []
    for task in tasks:
        if not rollout.replaces_another(task):
            continue
        belongs, stranded = rollout.belongs(by.service, task), _is_stranded(tasks, task)
        late_at = _late_at(by, tasks, task)
        if late_at is not None and late_at <= by.now:
            late.append(task.id)
        decided_at = _decided_at(by, task, late_at)
        if decided_at is None:
            if is_live(task) and not stranded:
                # Also one that an earlier update made, whose version has the same content: its slot is not up either.
                at_work |= not is_dirty(by, task)
                under_way |= belongs
                until = _earlier(until, late_at)
        elif belongs:
            if is_ahead(decided_at, by.now):
                until = _earlier(until, _no_longer_ahead(decided_at))
            if goes_on(by, decided_at, _wait_s(by)):
                at_work, until = True, _earlier(until, decided_at + _wait_s(by))
            if not stranded and goes_on(by, decided_at, watch_s(by)):
                settled_at = max(decided_at, settled_at or decided_at)
                until = _earlier(until, decided_at + watch_s(by))
    if kind is Kind.SETTLED and not (at_work or under_way or late) and settled_at is None:
        return SETTLED, until
    order = _order(live) if kind is Kind.STALE else 0
    return Standing(kind, order, at_work, under_way, settled_at, tuple(late)), until


def watch_s(by: Judging) -> float:
    """How long the update watches a task whose fate is decided."""
    return by.rules.delay_s + by.rules.monitor_s


def is_dirty(by: Judging, task: Task) -> bool:
    """Whether the task is not what the service asks for."""
    return by.check.is_dirty(task, by.nodes.get(task.node_id) if task.node_id else None)


def is_late(by: Judging, tasks: Sequence[Task], task: Task) -> bool:
    """Whether a task of the rollout did not run in time.

    Args:
        tasks: every task of its slot.
    """
    late_at = _late_at(by, tasks, task)
    return late_at is not None and late_at <= by.now


def goes_on(by: Judging, since: float, wait_s: float) -> bool:
    """Whether a wait that began then is not over."""
    return by.now < since + wait_s and not is_ahead(since, by.now)


def _no_longer_ahead(since: float) -> float:
    """When a clock that was set back comes to where ``goes_on`` waits again."""
    return since - constants.CLOCK_SKEW_S_MAX


def by_version(by: Judging, live: Sequence[Task]) -> bool:
    """Whether the number of the present version has a part in where a slot stands, and not its content alone: whether what
    was tried of it failed for good, or was restarted."""
    return len(live) > 1 or any(is_dirty(by, task) for task in live)


def to_keep(by: Judging, live: Sequence[Task]) -> Task:
    """The task of a slot of old and new ones that is to stay."""
    clean = sorted((task for task in live if not is_dirty(by, task)), key=age_key)
    # Running before merely wanted to run; of equals the oldest, which is the one that was there.
    return max(clean, key=lambda task: (task.status.state == TASK_STATE_RUNNING, task.desired_state))


def _kind(by: Judging, tasks: Sequence[Task], live: Sequence[Task]) -> tuple[Kind, float | None]:
    """What is to be done with the slot, and when that may be another."""
    if not live:
        # A slot that has finished is brought up to date as well; one that is simply empty is filled elsewhere.
        last = newest(tasks)
        stale = last is not None and is_dirty(by, last) and is_finished(tasks, by.spec_of, mode_of(by.service.spec))
        return (Kind.STALE if stale else Kind.SETTLED), None
    clean = [task for task in live if not is_dirty(by, task)]
    if not clean:
        current = [task for task in tasks if task.spec_version == by.service.spec_version]
        # Start-first, and the new task failed for good: the old one goes on; trying again would never end.
        stale = not current or not is_finished(current, by.spec_of, mode_of(by.service.spec))
        return (Kind.STALE if stale else Kind.SETTLED), None
    if len(live) == 1:
        return Kind.SETTLED, None
    if by.rules.order != UPDATE_ORDER_START_FIRST:
        return Kind.DOUBLED, None
    if all(_is_given_up(by, tasks, task) for task in clean):
        return Kind.SETTLED, None  # nothing is left to do for the slot unless the new one runs after all
    keep = to_keep(by, live)
    since = running_since(keep)
    if keep.status.state != TASK_STATE_RUNNING or since is None:
        return Kind.MIXED, None
    if goes_on(by, since, by.rules.stay_up_s):
        return Kind.MIXED, since + by.rules.stay_up_s
    return Kind.DOUBLED, _no_longer_ahead(since) if is_ahead(since, by.now) else None


def _order(live: Sequence[Task]) -> int:
    """Slots that do not run first: to replace them takes nothing down. Those that find no node last: they may never."""
    states = [task.status.state for task in live]
    if TASK_STATE_RUNNING in states:
        return 1
    return 2 if states and max(states) < TASK_STATE_ASSIGNED else 0


def _wait_s(by: Judging) -> float:
    """How long a slot whose new task's fate is decided counts as being worked on.

    Start-first, until the old task may be told to stop: else there were more of both than the parallelism says.
    """
    if by.rules.order == UPDATE_ORDER_START_FIRST:
        return max(by.rules.delay_s, by.rules.stay_up_s)
    return by.rules.delay_s


def _is_stranded(tasks: Sequence[Task], task: Task) -> bool:
    """Whether it takes the place of one of its own version, which lost its node, and finds no other: not the update's
    doing, nor does it wait for it."""
    if task.status.state >= TASK_STATE_ASSIGNED:
        return False
    return any(old.id == task.replaces_task_id and old.spec_version == task.spec_version for old in tasks)


def _decided_at(by: Judging, task: Task, late_at: float | None) -> float | None:
    """When it was decided how a task of the rollout fares: it ran, it ended, or it was late. None while it is under way."""
    started_at = running_since(task)
    if started_at is not None:
        return started_at
    if has_ended(task):
        return changed_at(task)
    return late_at if late_at is not None and late_at <= by.now else None


def _late_at(by: Judging, tasks: Sequence[Task], task: Task) -> float | None:
    """When a task of the rollout that does not run is late; None: never, or it is not to run yet.

    The time counts from its creation, or from the end of the task before it where it had to wait for that.
    """
    if by.rules.progress_deadline_s is None or not rollout.belongs(by.service, task):
        return None
    done = has_ended(task) or running_since(task) is not None
    if done or task.desired_state != TASK_STATE_RUNNING or _is_stranded(tasks, task):
        return None
    ends = [changed_at(old) for old in tasks if old.id == task.replaces_task_id and has_ended(old)]
    return max([from_timestamp(task.created_at), *ends]) + by.rules.progress_deadline_s


def _is_given_up(by: Judging, tasks: Sequence[Task], task: Task) -> bool:
    """Start-first: whether the update goes on without the new task of a slot, whose old one stays until it runs.

    It is late; or the one that the update made has failed, which was counted, and this one is its restart.
    """
    restarted = task.restart_history.attempts > 0 and task.spec_version == by.service.spec_version
    return task.status.state != TASK_STATE_RUNNING and (restarted or is_late(by, tasks, task))


def _earlier(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)
