"""Which part of the managers may move the observed state of a task, from where and to where.

Below ASSIGNED a task is the managers' own. From ASSIGNED on its state is its agent's to report (through the
dispatcher, which has rules of its own), with two exceptions: a task that its node may not bear any more is rejected,
and a task whose node will never report again is given up. A state never falls (features A6.01).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeAlias

from proto.objects_pb2 import (
    TASK_STATE_ACCEPTED,
    TASK_STATE_ALLOCATED,
    TASK_STATE_ASSIGNED,
    TASK_STATE_NEW,
    TASK_STATE_ORPHANED,
    TASK_STATE_PENDING,
    TASK_STATE_PREPARING,
    TASK_STATE_READY,
    TASK_STATE_REJECTED,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    TASK_STATE_STARTING,
    TaskState,
)

State: TypeAlias = TaskState.ValueType


class Owner(Enum):
    """Who makes a transition."""

    ALLOCATOR = "allocator"
    SCHEDULER = "scheduler"
    ORCHESTRATOR = "orchestrator"
    CONSTRAINT_ENFORCER = "constraint enforcer"
    ORPHANER = "orphaner"


UNASSIGNED: tuple[State, ...] = (TASK_STATE_NEW, TASK_STATE_ALLOCATED, TASK_STATE_PENDING)

ON_NODE: tuple[State, ...] = (
    TASK_STATE_ASSIGNED,
    TASK_STATE_ACCEPTED,
    TASK_STATE_PREPARING,
    TASK_STATE_READY,
    TASK_STATE_STARTING,
    TASK_STATE_RUNNING,
)

TRANSITIONS: Mapping[Owner, frozenset[tuple[State, State]]] = {
    Owner.ALLOCATOR: frozenset({(TASK_STATE_NEW, TASK_STATE_PENDING)}),
    Owner.SCHEDULER: frozenset({(TASK_STATE_PENDING, TASK_STATE_ASSIGNED)}),
    # Told to stop before any agent had it: it has stopped.
    Owner.ORCHESTRATOR: frozenset((state, TASK_STATE_SHUTDOWN) for state in UNASSIGNED),
    Owner.CONSTRAINT_ENFORCER: frozenset((state, TASK_STATE_REJECTED) for state in ON_NODE),
    Owner.ORPHANER: frozenset((state, TASK_STATE_ORPHANED) for state in ON_NODE),
}
