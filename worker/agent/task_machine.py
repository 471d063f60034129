"""A task's life on its node, as a state machine without I/O (features A6.01 to A6.03, A6.07).

Observed states rise by ``TRANSITIONS`` and never fall; only the agent moves them, only managers move the desired state.
The machine is told what is (``assign``, ``observe``) and what became of an operation (``done``, ``failed``), and says
what is to be done next (``next``): at most one operation at a time. It is level-triggered: after a restart the same
questions get the same answers, from the stored status and the container as it is.

Source: swarmkit ``agent/exec/controller.go`` (``Do``), ``design/task_model.md``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import Enum

from google.protobuf.timestamp_pb2 import Timestamp

from base.printable import one_line
from proto.objects_pb2 import PortStatus, TaskState, TaskStatus
from proto.task_states import state_name
from worker.agent.executor import ContainerPhase, Health, Observation

ASSIGNED = TaskState.TASK_STATE_ASSIGNED
ACCEPTED = TaskState.TASK_STATE_ACCEPTED
PREPARING = TaskState.TASK_STATE_PREPARING
READY = TaskState.TASK_STATE_READY
STARTING = TaskState.TASK_STATE_STARTING
RUNNING = TaskState.TASK_STATE_RUNNING
COMPLETE = TaskState.TASK_STATE_COMPLETE
SHUTDOWN = TaskState.TASK_STATE_SHUTDOWN
FAILED = TaskState.TASK_STATE_FAILED
REJECTED = TaskState.TASK_STATE_REJECTED
REMOVE = TaskState.TASK_STATE_REMOVE
ORPHANED = TaskState.TASK_STATE_ORPHANED

TRANSITIONS: Mapping[TaskState.ValueType, frozenset[TaskState.ValueType]] = {
    ASSIGNED: frozenset({ACCEPTED, SHUTDOWN, REJECTED}),
    ACCEPTED: frozenset({PREPARING, SHUTDOWN, REJECTED}),
    PREPARING: frozenset({READY, SHUTDOWN, REJECTED}),
    READY: frozenset({STARTING, SHUTDOWN, FAILED}),
    STARTING: frozenset({RUNNING, COMPLETE, SHUTDOWN, FAILED}),
    RUNNING: frozenset({COMPLETE, SHUTDOWN, FAILED}),
    COMPLETE: frozenset(),
    SHUTDOWN: frozenset(),
    FAILED: frozenset(),
    REJECTED: frozenset(),
    ORPHANED: frozenset(),  # set by a manager while the node was away
}
"""From each state to those that may follow. Before STARTING what goes wrong is REJECTED, from READY on FAILED."""

MESSAGES: Mapping[TaskState.ValueType, str] = {
    ACCEPTED: "accepted",
    PREPARING: "preparing",
    READY: "prepared",
    STARTING: "starting",
    RUNNING: "started",
    COMPLETE: "finished",
    SHUTDOWN: "shutdown",
}
"""``Status.Message``; a failed task keeps the last one, which says how far it came."""

UNHEALTHY = "dockerexec: unhealthy container"
CONTAINER_GONE = "the task's container is gone"
NEVER_STARTED = "the task's container was started and does not run"

_HISTORY_LENGTH = 16


class Operation(Enum):
    """What the executor is to do for the task."""

    PREPARE = "prepare"
    START = "start"
    STOP = "stop"
    REMOVE = "remove"


class IllegalTransitionError(Exception):
    """A broken invariant: the table does not know this step. The message has the task's recent history."""

    def __init__(self, task_id: str, old: TaskState.ValueType, new: TaskState.ValueType, history: list[str]) -> None:
        super().__init__(
            f"task {task_id}: {state_name(old)} -> {state_name(new)} is no legal step; "
            f"history: {', '.join(history) or 'none'}"
        )
        self.task_id, self.old, self.new = task_id, old, new


def exit_error(exit_code: int, error: str = "") -> str:
    """``Status.Err`` of a task whose process failed."""
    return f"task: non-zero exit ({exit_code})" + (f": {error}" if error else "")


class TaskMachine:
    """One task. ``next`` until it returns None; then again whenever something was told."""

    def __init__(self, task_id: str, status: TaskStatus, desired_state: TaskState.ValueType) -> None:
        """
        Args:
            status: the furthest that the node or the managers know of; copied.
            desired_state: as the managers want it.
        """
        self.task_id = task_id
        self.desired_state: TaskState.ValueType = desired_state
        self.unassigned = False
        self._status = TaskStatus()
        self._status.CopyFrom(status)
        if self._status.state < ASSIGNED or self._status.state == REMOVE:
            self._status.state = ASSIGNED
        self._container: Observation | None = None
        self._failure = ""
        self._start_done = False
        self._removed = False
        self._reports: list[TaskStatus] = []
        self._history: deque[str] = deque(maxlen=_HISTORY_LENGTH)

    @property
    def state(self) -> TaskState.ValueType:
        """The observed state."""
        return self._status.state

    @property
    def status(self) -> TaskStatus:
        """A copy of the status."""
        copy = TaskStatus()
        copy.CopyFrom(self._status)
        return copy

    @property
    def finished(self) -> bool:
        """No manager knows the task any more and nothing of it is left here."""
        return self.unassigned and self._removed and self._container is None

    @property
    def stop_wanted(self) -> bool:
        """Whether an operation that leads to running had better be given up."""
        return self.unassigned or self.desired_state >= SHUTDOWN

    def assign(self, desired_state: TaskState.ValueType) -> None:
        """The managers' wish; an older one that comes late changes nothing."""
        self.desired_state = max(self.desired_state, desired_state)

    def overrule(self, status: TaskStatus) -> None:
        """The managers hold the task for ended (given up while the node was away): so it is, and is not reported back."""
        if status.state > RUNNING >= self.state:
            self._status.CopyFrom(status)
            self._history.append(f"{state_name(status.state)} by the managers")

    def unassign(self) -> None:
        """The task object is gone: stop, and leave nothing behind."""
        self.unassigned = True

    def observe(self, container: Observation | None) -> None:
        """The container as it is now."""
        self._container = container
        if container is not None:
            self._removed = False

    def done(self, operation: Operation, now: Timestamp) -> None:
        """The operation went well. ``observe`` what it led to before the next ``next``."""
        match operation:
            case Operation.PREPARE if self.state == PREPARING:
                self._enter(READY, now)
            case Operation.START:
                self._start_done = True
            case Operation.REMOVE:
                self._removed = True
            case _:
                pass

    def failed(self, operation: Operation, error: str, now: Timestamp) -> None:
        """PREPARE or START failed, for good."""
        if self.state > RUNNING:
            return
        if operation is Operation.PREPARE:
            self._enter(REJECTED, now, err=error)
        else:
            self._enter(FAILED, now, err=error)

    def give_up(self, error: str, now: Timestamp) -> None:
        """Something broke that has no name; the task ends where it is."""
        if self.state <= RUNNING:
            self._enter(REJECTED if self.state < READY else FAILED, now, err=error)

    def take_reports(self) -> list[TaskStatus]:
        """Statuses since the last call, oldest first."""
        reports, self._reports = self._reports, []
        return reports

    def next(self, now: Timestamp) -> Operation | None:
        """Advance as far as what is known leads, and say what has to be done to get on.

        Raises:
            IllegalTransitionError: see there.
        """
        if self.unassigned:
            return self._clear_away()
        if self.state > RUNNING:
            return self._after_end()
        if self.desired_state >= SHUTDOWN or self._failure:
            return self._wind_down(now)
        return self._wind_up(now)

    # ------------------------------------------------------------ decisions

    def _wind_up(self, now: Timestamp) -> Operation | None:
        if self.state == ASSIGNED:
            self._enter(ACCEPTED, now)
        if self.state == ACCEPTED:
            self._enter(PREPARING, now)
        if self.state == PREPARING:
            return Operation.PREPARE
        if self.state == READY:
            if self.desired_state < RUNNING:
                return None
            self._enter(STARTING, now)
        if self.state == STARTING:
            return self._starting(now)
        return self._running(now)

    def _starting(self, now: Timestamp) -> Operation | None:
        container = self._container
        if container is None:
            self._enter(FAILED, now, err=CONTAINER_GONE)
            return None
        if container.phase is ContainerPhase.CREATED and not self._start_done:
            return Operation.START
        if container.health is Health.NONE and (self._start_done or container.phase is ContainerPhase.RUNNING):
            self._enter(RUNNING, now)
            return self._running(now)
        if container.health is Health.HEALTHY:
            self._enter(RUNNING, now)
        return self._running(now)

    def _running(self, now: Timestamp) -> Operation | None:
        """Watch the container of a task that is STARTING or RUNNING."""
        container = self._container
        if container is None:
            self._enter(FAILED, now, err=CONTAINER_GONE)
            return None
        if container.phase is ContainerPhase.CREATED:
            self._enter(FAILED, now, err=NEVER_STARTED)
            return None
        if container.phase is ContainerPhase.EXITED:
            if container.exit_code == 0 and not container.error:
                self._enter(COMPLETE, now)
            else:
                self._enter(FAILED, now, err=exit_error(container.exit_code, container.error))
            return None
        if container.health is Health.UNHEALTHY:
            self._failure = UNHEALTHY
            return Operation.STOP
        return None

    def _wind_down(self, now: Timestamp) -> Operation | None:
        """The final state is told when the container has stopped, so that no replacement starts beside it unawares."""
        if self._is_running():
            return Operation.STOP
        if self._failure:
            self._enter(FAILED, now, err=self._failure)
        else:
            self._enter(SHUTDOWN, now)
        return self._after_end()

    def _after_end(self) -> Operation | None:
        """The container is kept for logs and inspection until the task's object goes (A6.09)."""
        if self._is_running():
            return Operation.STOP  # a task that was given up while the node was away (D08)
        if self.desired_state >= REMOVE and self._container is not None and not self._removed:
            return Operation.REMOVE
        return None

    def _clear_away(self) -> Operation | None:
        if self._is_running():
            return Operation.STOP
        return None if self._removed and self._container is None else Operation.REMOVE

    def _is_running(self) -> bool:
        return self._container is not None and self._container.phase is ContainerPhase.RUNNING

    # ------------------------------------------------------------ status

    def _enter(self, state: TaskState.ValueType, now: Timestamp, *, err: str = "") -> None:
        old = self.state
        if state not in TRANSITIONS[old]:
            raise IllegalTransitionError(self.task_id, old, state, list(self._history))
        self._history.append(f"{state_name(state)} at {now.ToJsonString()}")
        status = self._status
        status.state = state
        status.timestamp.CopyFrom(now)
        status.message = MESSAGES.get(state, status.message)
        status.err = one_line(err)  # words of runc, of a registry, of an image's files
        if state == RUNNING:
            status.running_since.CopyFrom(now)
        self._fill_in_container()
        self._reports.append(self.status)

    def _fill_in_container(self) -> None:
        container = self._container
        if container is None:
            return
        status = self._status.container_status
        status.container_id = container.container_id
        status.pid = container.pid or status.pid
        status.exit_code = container.exit_code
        self._status.ClearField("port_status")
        if container.ports and container.phase is ContainerPhase.RUNNING:
            self._status.port_status.CopyFrom(PortStatus(ports=container.ports))
