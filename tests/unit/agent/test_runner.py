"""The loop around a task: cancelled pulls, stubborn containers, broken invariants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from proto.dispatcher_pb2 import TaskStatusUpdate
from proto.objects_pb2 import Task, TaskState, TaskStatus
from tests.unit.agent.fakes import FakeExecutor
from tests.unit.dispatcher.support import make_spec_version, make_task
from tests.waiting import until
from worker.agent import runner as runner_module
from worker.agent.executor import Assignment
from worker.agent.runner import TaskRunner
from worker.agent.task_machine import TaskMachine

RUNNING, SHUTDOWN = TaskState.TASK_STATE_RUNNING, TaskState.TASK_STATE_SHUTDOWN


class Owner:
    """An agent with one task."""

    def __init__(self) -> None:
        self.version = make_spec_version("web")
        self.settled = asyncio.Event()
        self.settled.set()
        self.begin = asyncio.Event()
        self.known: Assignment | None = Assignment(make_task("t1", "n1"), self.version)
        self.updates: list[TaskStatusUpdate] = []

    def assignment(self, task_id: str) -> Assignment | None:
        return self.known

    async def assignment_settled(self) -> None:
        await self.settled.wait()

    def on_status(self, update: TaskStatusUpdate) -> None:
        self.updates.append(update)

    @property
    def state(self) -> int:
        return self.updates[-1].status.state if self.updates else 0


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor()


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
async def runner(executor: FakeExecutor, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TaskRunner]:
    monkeypatch.setattr(runner_module, "RETRY_S_FIRST", 0.01)
    machine = TaskMachine("t1", TaskStatus(), RUNNING)
    runner = TaskRunner(machine, executor, owner)
    executor.on_change(lambda task_id: runner.poke())

    async def run() -> None:
        await owner.begin.wait()
        await runner.run()

    async with asyncio.TaskGroup() as group:
        running = group.create_task(run())
        yield runner
        running.cancel()


def wish(state: TaskState.ValueType) -> Task:
    return make_task("t1", "n1", desired_state=state)


async def test_a_pull_is_given_up_when_the_task_is_to_stop(
    runner: TaskRunner, executor: FakeExecutor, owner: Owner
) -> None:
    executor.hold_prepare = asyncio.Event()
    owner.begin.set()
    await until(lambda: executor.called("t1") == ["prepare"])
    runner.assign(wish(SHUTDOWN))
    await until(lambda: owner.state == SHUTDOWN)
    assert executor.containers == {}


async def test_stop_and_remove_are_tried_until_they_work(
    runner: TaskRunner, executor: FakeExecutor, owner: Owner
) -> None:
    owner.begin.set()
    await until(lambda: owner.state == RUNNING)
    executor.fail_stop, executor.fail_remove = 2, 2
    runner.assign(wish(SHUTDOWN))
    await until(lambda: owner.state == SHUTDOWN)
    runner.unassign()
    await until(lambda: runner.machine.finished)
    assert executor.called("t1") == ["prepare", "start", *["stop"] * 3, *["remove"] * 3]


async def test_what_the_managers_have_not_sent_is_waited_for_then_missed(
    runner: TaskRunner, executor: FakeExecutor, owner: Owner
) -> None:
    owner.known = None
    owner.settled.clear()
    owner.begin.set()
    await until(lambda: owner.state == TaskState.TASK_STATE_PREPARING)
    owner.settled.set()
    await until(lambda: owner.state == TaskState.TASK_STATE_REJECTED)
    assert "did not send" in owner.updates[-1].status.err


async def test_a_broken_invariant_ends_one_task_and_is_cleared_away(
    runner: TaskRunner, executor: FakeExecutor, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.begin.set()
    await until(lambda: owner.state == RUNNING)
    monkeypatch.setattr(runner.machine, "next", lambda now: 1 / 0)
    runner.poke()
    await until(lambda: owner.state == TaskState.TASK_STATE_FAILED)
    assert owner.updates[-1].status.err.startswith("agent: internal error: ZeroDivisionError")
    await until(lambda: "stop" in executor.called("t1"))
    runner.unassign()
    await until(lambda: executor.containers == {})
