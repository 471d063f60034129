"""A task's life (features A6.01 to A6.03, A6.07, A6.09, D08)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from proto.objects_pb2 import TaskState, TaskStatus
from worker.agent.executor import ContainerPhase, Health, Observation
from worker.agent.task_machine import (
    ASSIGNED,
    COMPLETE,
    FAILED,
    ORPHANED,
    PREPARING,
    READY,
    REJECTED,
    REMOVE,
    RUNNING,
    SHUTDOWN,
    STARTING,
    TRANSITIONS,
    UNHEALTHY,
    IllegalTransitionError,
    Operation,
    TaskMachine,
)

NOW = Timestamp(seconds=1_800_000_000)


@dataclass
class World:
    """The simplest host: does what the machine asks for."""

    machine: TaskMachine
    container: Observation | None = None
    healthcheck: bool = False
    operations: list[Operation] = field(default_factory=list)
    states: list[int] = field(default_factory=list)

    def run(self) -> World:
        """Until the machine waits."""
        for _ in range(20):
            self.machine.observe(self.container)
            operation = self.machine.next(NOW)
            self.states += [status.state for status in self.machine.take_reports()]
            if operation is None:
                return self
            self.operations.append(operation)
            self._perform(operation)
            self.machine.observe(self.container)
            self.machine.done(operation, NOW)
        raise AssertionError(f"no rest after {self.operations}")

    def _perform(self, operation: Operation) -> None:
        match operation:
            case Operation.PREPARE:
                self.container = self.container or Observation("t1", "c1", ContainerPhase.CREATED)
            case Operation.START:
                health = Health.STARTING if self.healthcheck else Health.NONE
                self.container = Observation("t1", "c1", ContainerPhase.RUNNING, pid=42, health=health)
            case Operation.STOP:
                self.exit(143)
            case Operation.REMOVE:
                self.container = None

    def exit(self, code: int) -> None:
        self.container = Observation("t1", "c1", ContainerPhase.EXITED, exit_code=code)

    def health(self, health: Health) -> None:
        self.container = Observation("t1", "c1", ContainerPhase.RUNNING, pid=42, health=health)


def make_world(
    desired: TaskState.ValueType = RUNNING, state: TaskState.ValueType = ASSIGNED, *, healthcheck: bool = False
) -> World:
    return World(TaskMachine("t1", TaskStatus(state=state), desired), healthcheck=healthcheck)


def test_a_task_runs_and_stops() -> None:
    world = make_world().run()
    assert world.states == [256, 320, 384, 448, 512]
    assert world.machine.status.container_status.pid == 42
    assert world.machine.status.running_since == NOW
    world.machine.assign(SHUTDOWN)
    world.run()
    assert world.states[-1] == SHUTDOWN
    assert world.machine.status.err == ""
    assert world.operations == [Operation.PREPARE, Operation.START, Operation.STOP]
    world.machine.unassign()
    world.run()
    assert world.machine.finished
    assert world.operations[-1] is Operation.REMOVE


def test_desired_ready_holds_at_ready() -> None:
    world = make_world(READY).run()
    assert world.machine.state == READY
    assert world.operations == [Operation.PREPARE]
    world.machine.assign(RUNNING)
    assert world.run().machine.state == RUNNING


@pytest.mark.parametrize(("code", "state", "err"), [(0, COMPLETE, ""), (3, FAILED, "task: non-zero exit (3)")])
def test_the_exit_code_decides(code: int, state: int, err: str) -> None:
    world = make_world().run()
    world.exit(code)
    world.run()
    assert (world.machine.state, world.machine.status.err) == (state, err)
    assert world.machine.status.container_status.exit_code == code
    assert world.container is not None  # kept (A6.09)


def test_before_the_start_it_is_rejected_after_it_failed() -> None:
    world = make_world()
    assert world.machine.next(NOW) is Operation.PREPARE
    world.machine.failed(Operation.PREPARE, "No such image: x", NOW)
    assert (world.machine.state, world.machine.status.err) == (REJECTED, "No such image: x")
    assert world.machine.status.message == "preparing"
    world = make_world(READY).run()
    world.machine.assign(RUNNING)
    assert world.machine.next(NOW) is Operation.START
    world.machine.failed(Operation.START, "starting container failed: x", NOW)
    assert world.machine.state == FAILED


def test_a_health_check_holds_a_task_at_starting() -> None:
    world = make_world(healthcheck=True).run()
    assert world.machine.state == STARTING
    world.health(Health.HEALTHY)
    assert world.run().machine.state == RUNNING
    world.health(Health.UNHEALTHY)
    world.run()
    assert (world.machine.state, world.machine.status.err) == (FAILED, UNHEALTHY)
    assert world.operations[-1] is Operation.STOP
    assert world.container is not None
    assert world.container.phase is ContainerPhase.EXITED


def test_a_stop_before_anything_was_made_needs_nothing() -> None:
    world = make_world(SHUTDOWN).run()
    assert world.machine.state == SHUTDOWN
    assert world.operations == []


def test_remove_takes_the_container_away() -> None:
    world = make_world().run()
    world.machine.assign(REMOVE)
    world.run()
    assert world.machine.state == SHUTDOWN
    assert world.container is None
    assert not world.machine.finished  # the object is still there


def test_an_older_wish_that_comes_late_changes_nothing() -> None:
    world = make_world(SHUTDOWN).run()
    world.machine.assign(RUNNING)
    assert world.run().machine.state == SHUTDOWN


@pytest.mark.parametrize("state", [PREPARING, READY, STARTING, RUNNING])
def test_a_running_container_is_taken_up_after_a_restart(state: TaskState.ValueType) -> None:
    world = make_world(state=state)
    world.container = Observation("t1", "c1", ContainerPhase.RUNNING, pid=42)
    world.run()
    assert world.machine.state == RUNNING
    assert world.container.pid == 42
    assert Operation.STOP not in world.operations


def test_a_container_that_vanished_is_a_failure() -> None:
    world = make_world().run()
    world.container = None
    world.run()
    assert world.machine.state == FAILED
    assert "gone" in world.machine.status.err


def test_a_task_given_up_by_the_managers_is_stopped_and_not_reported() -> None:
    world = make_world().run()
    world.machine.overrule(TaskStatus(state=ORPHANED))
    reported = len(world.states)
    world.run()
    assert world.operations[-1] is Operation.STOP
    assert len(world.states) == reported


def test_an_illegal_step_tells_the_history() -> None:
    world = make_world().run()
    with pytest.raises(IllegalTransitionError, match=r"RUNNING -> READY.*STARTING at"):
        world.machine._enter(READY, NOW)


def test_the_table_only_rises() -> None:
    assert all(new > old for old, news in TRANSITIONS.items() for new in news)


OBSERVATIONS = st.none() | st.builds(
    Observation,
    st.just("t1"),
    st.just("c1"),
    st.sampled_from(list(ContainerPhase)),
    exit_code=st.sampled_from([0, 1]),
    health=st.sampled_from(list(Health)),
)
DESIRED = st.sampled_from([READY, RUNNING, COMPLETE, SHUTDOWN, REMOVE])


@given(
    state=st.sampled_from(sorted(TRANSITIONS)),
    desired=DESIRED,
    steps=st.lists(
        st.tuples(st.sampled_from(["observe", "done", "failed", "assign", "unassign"]), OBSERVATIONS, DESIRED),
        max_size=25,
    ),
)
def test_whatever_happens_states_rise_by_the_table(
    state: TaskState.ValueType, desired: TaskState.ValueType, steps: list[tuple[str, Observation | None, int]]
) -> None:
    """Safety: any host, however odd. Progress: once it behaves and the task goes, nothing is left."""
    machine = TaskMachine("t1", TaskStatus(state=state), desired)
    states: list[TaskState.ValueType] = [machine.state]
    operation: Operation | None = None
    for what, observation, wish in steps:
        match what:
            case "done" if operation is not None:
                machine.observe(observation)
                machine.done(operation, NOW)
            case "failed" if operation in (Operation.PREPARE, Operation.START):
                machine.failed(operation, "no", NOW)
            case "assign":
                machine.assign(wish)  # type: ignore[arg-type]  # hypothesis gives plain numbers
            case "unassign":
                machine.unassign()
            case _:
                machine.observe(observation)
        operation = machine.next(NOW)
        states += [status.state for status in machine.take_reports()]
    assert all(new in TRANSITIONS[old] for old, new in itertools.pairwise(states))
    world = World(machine)
    machine.unassign()
    world.run()
    assert machine.finished
