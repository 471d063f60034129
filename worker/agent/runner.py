"""The loop around one task's machine: asks it what to do, has the executor do it, hands statuses on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from base.backoff import Backoff
from base.tasks import unless
from proto.dispatcher_pb2 import TaskStatusUpdate
from proto.objects_pb2 import Task
from proto.task_states import state_name
from worker.agent.executor import Assignment, Executor, ExecutorError
from worker.agent.task_machine import Operation, TaskMachine

log = structlog.get_logger(__name__)

RETRY_S_FIRST = 0.5
RETRY_S_MAX = 30.0


class RunnerOwner(Protocol):
    """What a runner needs of the agent."""

    def assignment(self, task_id: str) -> Assignment | None:
        """The task with what it needs, as far as it is known."""

    async def assignment_settled(self) -> None:
        """Return when the managers have said everything once: what is missing then does not exist."""

    def on_status(self, update: TaskStatusUpdate) -> None:
        """Keep it, and tell the managers."""


def now_timestamp() -> Timestamp:
    """The wall clock of this node."""
    now = Timestamp()
    now.FromNanoseconds(time.time_ns())
    return now


class TaskRunner:
    """Owns a machine; ``run`` returns when nothing is left of the task."""

    def __init__(
        self,
        machine: TaskMachine,
        executor: Executor,
        owner: RunnerOwner,
        *,
        grace_s: float | None = None,
        now: Callable[[], Timestamp] = now_timestamp,
    ) -> None:
        """
        Args:
            grace_s: between stop signal and SIGKILL; None is the container's own.
        """
        self.machine = machine
        self.grace_s = grace_s
        self._executor, self._owner, self._now = executor, owner, now
        self._wake = asyncio.Event()
        self._stop_wanted = asyncio.Event()
        self._log = log.bind(task_id=machine.task_id)

    def assign(self, task: Task) -> None:
        """What the managers want and know, new or again."""
        self.machine.assign(task.desired_state)
        self.machine.overrule(task.status)
        self.poke()

    def unassign(self) -> None:
        """The task object is gone."""
        self.machine.unassign()
        self.poke()

    def poke(self) -> None:
        """Something about the task or its container may have changed."""
        self._wake.set()
        if self.machine.stop_wanted:
            self._stop_wanted.set()

    async def run(self) -> None:
        """Until nothing is left of the task, or cancelled."""
        try:
            while not self.machine.finished:
                self._wake.clear()
                self.machine.observe(self._executor.observe(self.machine.task_id))
                operation = self.machine.next(self._now())
                self._hand_on()
                if operation is not None:
                    await self._perform(operation)
                elif not self.machine.finished:
                    await self._wake.wait()
        except Exception as error:
            # A broken invariant ends this task, not the node with all its others; it shows in the task's status.
            self._log.exception("task.broke")
            self.machine.give_up(f"agent: internal error: {type(error).__name__}: {error}", self._now())
            self._hand_on()
            await self._clear_up()

    async def _clear_up(self) -> None:
        """What is left to do for a task that broke, without asking its machine."""
        await self._insist(Operation.STOP, self._stop, Exception)
        while not self.machine.unassigned:
            self._wake.clear()
            await self._wake.wait()
        await self._insist(Operation.REMOVE, self._remove, Exception)

    def _hand_on(self) -> None:
        container = self._executor.observe(self.machine.task_id)
        for status in self.machine.take_reports():
            self._log.info(
                "task.moved", state=state_name(status.state), **({"reason": status.err} if status.err else {})
            )
            if self.machine.unassigned:
                continue
            attachments = container.attachments if container is not None else ()
            update = TaskStatusUpdate(task_id=self.machine.task_id, status=status, networks_attachments=attachments)
            self._owner.on_status(update)

    async def _perform(self, operation: Operation) -> None:
        match operation:
            case Operation.PREPARE:
                await self._prepare()
            case Operation.START:
                await self._start()
            case Operation.STOP:
                await self._insist(operation, self._stop)
            case Operation.REMOVE:
                await self._insist(operation, self._remove)

    async def _prepare(self) -> None:
        """Have it prepared, unless the managers change their mind meanwhile: a pull may take long."""
        try:
            prepared = await unless(self._stop_wanted, self._prepare_now())
        except ExecutorError as error:
            self.machine.failed(Operation.PREPARE, str(error), self._now())
            return
        self._observe()
        if prepared:
            self.machine.done(Operation.PREPARE, self._now())

    async def _prepare_now(self) -> bool:
        known = self._owner.assignment(self.machine.task_id)
        if known is None or not known.is_whole:
            await self._owner.assignment_settled()
        assignment = self._owner.assignment(self.machine.task_id)
        if assignment is None:
            raise ExecutorError("the managers did not send the task's service spec")
        await self._executor.prepare(assignment)
        return True

    async def _start(self) -> None:
        assignment = self._owner.assignment(self.machine.task_id)
        try:
            if assignment is None:
                raise ExecutorError("the managers did not send the task's service spec")
            await self._executor.start(assignment)
        except ExecutorError as error:
            self._observe()
            self.machine.failed(Operation.START, str(error), self._now())
        else:
            self._observe()
            self.machine.done(Operation.START, self._now())

    async def _stop(self) -> None:
        await self._executor.stop(self.machine.task_id, self.grace_s)

    async def _remove(self) -> None:
        await self._executor.remove(self.machine.task_id)

    async def _insist(
        self,
        operation: Operation,
        work: Callable[[], Awaitable[None]],
        survived: type[Exception] = ExecutorError,
    ) -> None:
        """Stop and remove cannot be given up: try again until they work, whatever ``survived`` they raise."""
        backoff = Backoff(RETRY_S_FIRST, RETRY_S_MAX)
        while True:
            try:
                await work()
                break
            except survived as error:
                retry_s = backoff.next_s()
                self._log.warning("operation.failed", operation=operation.value, reason=str(error), retry_s=retry_s)
            await asyncio.sleep(retry_s)
        self._observe()
        self.machine.done(operation, self._now())

    def _observe(self) -> None:
        self.machine.observe(self._executor.observe(self.machine.task_id))
