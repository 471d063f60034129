"""Who may move the observed state of a task, from where and to where; and who wants it in which state.

Below ASSIGNED a task is the managers' own. From ASSIGNED on its state is its agent's to report, by way of the
dispatcher, with two exceptions: a task that its node may not bear any more is rejected, and a task whose node will
never report again is given up. A state never falls (features A6.01), neither the observed nor the desired one.

Both states of a task are written here and nowhere else in the managers (``tests/unit/model/test_transitions.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeAlias

from manager.model.tasks import copy_task
from manager.model.times import to_timestamp
from proto.objects_pb2 import (
    TASK_STATE_ACCEPTED,
    TASK_STATE_ASSIGNED,
    TASK_STATE_COMPLETE,
    TASK_STATE_FAILED,
    TASK_STATE_NEW,
    TASK_STATE_ORPHANED,
    TASK_STATE_PENDING,
    TASK_STATE_PREPARING,
    TASK_STATE_READY,
    TASK_STATE_REJECTED,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    TASK_STATE_STARTING,
    Task,
    TaskState,
    TaskStatus,
)
from proto.task_states import state_name

State: TypeAlias = TaskState.ValueType


class InvariantError(Exception):
    """Something that cannot be: a bug, not a state of the cluster."""


class Owner(Enum):
    """Who makes a transition."""

    ALLOCATOR = "allocator"
    SCHEDULER = "scheduler"
    ORCHESTRATOR = "orchestrator"
    CONSTRAINT_ENFORCER = "constraint enforcer"
    ORPHANER = "orphaner"
    AGENT = "agent"
    CONTROL = "control API"

    __hash__ = object.__hash__  # each is there once; Enum's own is a call in Python, of which each status makes two


UNASSIGNED: tuple[State, ...] = (TASK_STATE_NEW, TASK_STATE_PENDING)

ON_NODE: tuple[State, ...] = (
    TASK_STATE_ASSIGNED,
    TASK_STATE_ACCEPTED,
    TASK_STATE_PREPARING,
    TASK_STATE_READY,
    TASK_STATE_STARTING,
    TASK_STATE_RUNNING,
)

REPORTABLE: tuple[State, ...] = (
    *(state for state in ON_NODE if state != TASK_STATE_ASSIGNED),
    TASK_STATE_COMPLETE,
    TASK_STATE_SHUTDOWN,
    TASK_STATE_FAILED,
    TASK_STATE_REJECTED,
)
"""The states that are an agent's to report."""

TRANSITIONS: Mapping[Owner, frozenset[tuple[State, State]]] = {
    Owner.ALLOCATOR: frozenset({(TASK_STATE_NEW, TASK_STATE_PENDING)}),
    Owner.SCHEDULER: frozenset({(TASK_STATE_PENDING, TASK_STATE_ASSIGNED)}),
    # Told to stop before any agent had it: it has stopped.
    Owner.ORCHESTRATOR: frozenset((before, TASK_STATE_SHUTDOWN) for before in UNASSIGNED),
    Owner.CONSTRAINT_ENFORCER: frozenset((before, TASK_STATE_REJECTED) for before in ON_NODE),
    Owner.ORPHANER: frozenset((before, TASK_STATE_ORPHANED) for before in ON_NODE),
    # Reports may be late and few: any later state may be the next that is heard of. What has ended stays so.
    Owner.AGENT: frozenset((before, after) for before in ON_NODE for after in REPORTABLE if after > before),
    # With the node that is removed; also what is bound to it and was not given to it yet.
    Owner.CONTROL: frozenset((before, TASK_STATE_ORPHANED) for before in (*UNASSIGNED, *ON_NODE)),
}


def set_status(task: Task, owner: Owner, state: State, message: str, now: float, *, err: str = "") -> None:
    """Move the observed state of a copy; what else its agent reported stays.

    Raises:
        InvariantError: ``owner`` may not do that (``TRANSITIONS``).
    """
    _check(task, owner, state)
    at, status = to_timestamp(now), task.status
    status.state, status.message, status.err = state, message, err
    status.timestamp.CopyFrom(at)
    task.updated_at.CopyFrom(at)  # the store's to write; the rest of this pass goes by it


def replace_status(task: Task, owner: Owner, status: TaskStatus) -> None:
    """Give a copy another status as a whole. An agent may say more of a state that it reported before.

    Raises:
        InvariantError: ``owner`` may not do that (``TRANSITIONS``).
    """
    if not (owner is Owner.AGENT and status.state == task.status.state):
        _check(task, owner, status.state)
    task.status.CopyFrom(status)


def set_desired(task: Task, desired: State, now: float) -> None:
    """Want a copy in another state.

    A task that no agent has been given is the managers' own: told to stop, it has stopped.

    Raises:
        InvariantError: desired states only rise.
    """
    if desired < task.desired_state:
        raise InvariantError(f"{_story(task)}: its desired state cannot fall to {state_name(desired)}")
    task.desired_state = desired
    if desired > TASK_STATE_RUNNING and task.status.state in UNASSIGNED:
        set_status(task, Owner.ORCHESTRATOR, TASK_STATE_SHUTDOWN, "shutdown before it was assigned to a node", now)


def with_desired(task: Task, desired: State, now: float) -> Task:
    """A copy of a stored task that is wanted in another state (``set_desired``)."""
    copy = copy_task(task)
    set_desired(copy, desired, now)
    return copy


def _check(task: Task, owner: Owner, state: State) -> None:
    if (task.status.state, state) not in TRANSITIONS[owner]:
        raise InvariantError(f"{_story(task)}: the {owner.value} may not move it to {state_name(state)}")


def _story(task: Task) -> str:
    """What a broken invariant has to tell of the task."""
    status = task.status
    return (
        f"task {task.id} (slot {task.slot} of service {task.service_id}, spec version {task.spec_version}, "
        f"node {task.node_id or 'none'}) is {state_name(status.state)} ({status.err or status.message!r}) "
        f"since {status.timestamp.seconds}, wanted {state_name(task.desired_state)}"
    )
