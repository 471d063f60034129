"""Values the orchestrators share: what they decide, and how they look at tasks and nodes.

A decision function takes stored messages and ``now`` and returns an ``Outcome``; it changes nothing. Stored messages
are never changed in place: a changed task is a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from manager import constants
from manager.model import defaults
from manager.model.transitions import TRANSITIONS, Owner
from proto.objects_pb2 import (
    NODE_STATE_DOWN,
    TASK_STATE_ASSIGNED,
    TASK_STATE_COMPLETE,
    TASK_STATE_FAILED,
    TASK_STATE_NEW,
    TASK_STATE_REJECTED,
    TASK_STATE_REMOVE,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    Node,
    Service,
    Task,
    TaskState,
    TaskStatus,
)
from proto.specs_pb2 import NODE_AVAILABILITY_DRAIN, ServiceSpec

NewID = Callable[[], str]

EVICTED_MESSAGE = "task rejected by constraint enforcer"
"""In the status of tasks that ``nodes.enforce`` rejects."""


class InvariantError(Exception):
    """Something that cannot be: a bug, not a state of the cluster."""


class Nodes(Protocol):
    """Nodes by ID: a view's table, or a plain dict."""

    def get(self, node_id: str, /) -> Node | None: ...


class SpecOf(Protocol):
    """The spec a task was made from; None when that version is not kept any more."""

    def __call__(self, task: Task, /) -> ServiceSpec | None: ...


class MissingOf(Protocol):
    """What a spec names and is not there any more ("the secret x"); "" when it is all there."""

    def __call__(self, spec: ServiceSpec, /) -> str: ...


# ---------------------------------------------------------------- decisions


@dataclass(frozen=True, slots=True)
class CreateTask:
    task: Task


@dataclass(frozen=True, slots=True)
class UpdateTask:
    """``task`` is a changed copy of the stored one."""

    task: Task


@dataclass(frozen=True, slots=True)
class RemoveTask:
    task: Task


@dataclass(frozen=True, slots=True)
class UpdateService:
    """``service`` is a changed copy of the stored one."""

    service: Service


@dataclass(frozen=True, slots=True)
class RemoveService:
    service: Service


Action = CreateTask | UpdateTask | RemoveTask | UpdateService | RemoveService


@dataclass
class Outcome:
    """What a look at something decided.

    Attributes:
        groups: actions to commit, in order; those of one group go into one log entry, so that no other manager ever
            sees half of a step. Empty once all is as it should be.
        deadline: seconds since the epoch at which to look again though nothing changes, or None.
        look_at_service: the service as a whole has to be looked at (again): a slot of it is empty, a failure was
            counted, or there is more to do than one pass may.
    """

    groups: list[list[Action]] = field(default_factory=list)
    deadline: float | None = None
    look_at_service: bool = False

    @property
    def actions(self) -> list[Action]:
        return [action for group in self.groups for action in group]

    def add(self, *actions: Action) -> None:
        """Decide on actions that belong together."""
        if actions:
            self.groups.append(list(actions))

    def wait_until(self, deadline: float | None) -> None:
        """Look again then, or earlier."""
        if deadline is not None and (self.deadline is None or deadline < self.deadline):
            self.deadline = deadline


# ---------------------------------------------------------------- time


def to_timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch as a message."""
    whole, nanos = divmod(round(seconds * 1e9), 1_000_000_000)
    return Timestamp(seconds=whole, nanos=nanos)


def from_timestamp(timestamp: Timestamp) -> float:
    """A message as seconds since the epoch."""
    return timestamp.seconds + timestamp.nanos / 1e9


def is_ahead(at: float, now: float) -> bool:
    """Whether ``at``, when something happened, is still to come: the clock that wrote it was set back since.

    What is to happen some time after it would wait for as long as the clock was wrong.
    """
    return at > now + constants.CLOCK_SKEW_S_MAX


# ---------------------------------------------------------------- tasks


def new_task(
    service: Service, *, task_id: str, now: float, slot: int = 0, node_id: str = "", desired: TaskState.ValueType
) -> Task:
    """A task of the service's present spec, in ``slot`` (replicated) or bound to ``node_id`` (global)."""
    return Task(
        id=task_id,
        created_at=to_timestamp(now),
        updated_at=to_timestamp(now),
        service_id=service.id,
        spec_version=service.spec_version,
        slot=slot,
        node_id=node_id,
        status=TaskStatus(state=TASK_STATE_NEW, message="created", timestamp=to_timestamp(now)),
        desired_state=desired,
    )


def copy_task(task: Task) -> Task:
    copy = Task()
    copy.CopyFrom(task)
    return copy


def copy_service(service: Service) -> Service:
    copy = Service()
    copy.CopyFrom(service)
    return copy


def is_live(task: Task) -> bool:
    """Whether the task is meant to run (or to be ready for it)."""
    return task.desired_state <= TASK_STATE_RUNNING


def has_ended(task: Task) -> bool:
    """Whether it was seen to have ended, in whatever way."""
    return task.status.state > TASK_STATE_RUNNING


def was_evicted(task: Task) -> bool:
    """Whether its node may not, or cannot, bear it any more (``nodes.enforce``): it did not fail."""
    return task.status.state == TASK_STATE_REJECTED and task.status.message == EVICTED_MESSAGE


def ended_by_itself(task: Task) -> bool:
    """Whether it ended on its own account, not because it was told to, was evicted or its node was lost."""
    return not was_evicted(task) and (
        task.status.state == TASK_STATE_COMPLETE or TASK_STATE_FAILED <= task.status.state < TASK_STATE_REMOVE
    )


def changed_at(task: Task) -> float:
    """When a manager last wrote the task; of one that has ended, when that was written.

    ``status.timestamp`` is the agent's, whose clock may be off (features D18); this is the leader's.
    """
    return from_timestamp(task.updated_at)


def running_since(task: Task) -> float | None:
    """When it reached RUNNING, or None when it never did as far as is known."""
    if task.status.HasField("running_since"):
        return from_timestamp(task.status.running_since)
    return changed_at(task) if task.status.state == TASK_STATE_RUNNING else None


def age_key(task: Task) -> tuple[int, int, int, str]:
    """Sorts tasks of one slot, oldest first; a later version of the spec is younger."""
    return (task.spec_version, task.created_at.seconds, task.created_at.nanos, task.id)


def newest(tasks: Iterable[Task]) -> Task | None:
    return max(tasks, key=age_key, default=None)


def with_desired(task: Task, desired: TaskState.ValueType, now: float) -> Task:
    """A copy that is wanted in another state.

    A task that no agent has been given is the managers' own: told to stop, it has stopped. Desired states only rise.
    """
    if desired < task.desired_state:
        raise InvariantError(f"task {task.id}: desired state {task.desired_state} cannot fall to {desired}")
    copy = copy_task(task)
    copy.desired_state = desired
    if desired > TASK_STATE_RUNNING and task.status.state < TASK_STATE_ASSIGNED:
        set_status(copy, Owner.ORCHESTRATOR, TASK_STATE_SHUTDOWN, "shutdown before it was assigned to a node", now)
    return copy


def set_status(
    task: Task, owner: Owner, state: TaskState.ValueType, message: str, now: float, *, err: str = ""
) -> None:
    """Move the observed state of a copy.

    Raises:
        InvariantError: ``owner`` may not do that (``transitions.TRANSITIONS``).
    """
    if (task.status.state, state) not in TRANSITIONS[owner]:
        raise InvariantError(
            f"task {task.id} (slot {task.slot} of {task.service_id}, node {task.node_id or 'none'}, desired "
            f"{TaskState.Name(task.desired_state)}, {task.status.message!r}): the {owner.value} may not move it from "
            f"{TaskState.Name(task.status.state)} to {TaskState.Name(state)}"
        )
    task.status.state = state
    task.status.message = message
    task.status.err = err
    task.status.timestamp.CopyFrom(to_timestamp(now))
    task.updated_at.CopyFrom(to_timestamp(now))


# ---------------------------------------------------------------- nodes and services


def is_node_lost(node: Node | None) -> bool:
    """Whether tasks cannot stay on the node: it is gone, down or drained."""
    return is_node_unreachable(node) or (node is not None and node.spec.availability == NODE_AVAILABILITY_DRAIN)


def is_node_unreachable(node: Node | None) -> bool:
    """Whether nothing on the node will be told to stop: it is gone or down."""
    return node is None or node.status.state == NODE_STATE_DOWN


def is_global(service: Service) -> bool:
    return service.spec.mode.HasField("global")


def is_job(service: Service) -> bool:
    return service.spec.mode.HasField("replicated_job") or service.spec.mode.HasField("global_job")


def wanted_slots(service: Service) -> int:
    return defaults.replicas(service.spec)


def others(tasks: Sequence[Task], but: Task) -> list[Task]:
    return [task for task in tasks if task.id != but.id]
