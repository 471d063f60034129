"""The agents of many nodes in one process: the far end of ``scripts/bench scale``.

A node joins with the token (a key and a certificate of its own), then keeps a session as ``worker.agent`` does: session,
reporter, assignments and choice of managers are the real ones. What runs the containers is not there: a task is
PREPARING at once, STARTING and RUNNING some milliseconds later, SHUTDOWN some milliseconds after it is told to.

Commands come as lines of JSON on stdin, answers go to stdout (``tests.bench.scale.driver``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import grpc.aio
import structlog

from base.tasks import OwnedTasks
from pki.errors import JoinUnreachableError
from pki.grpc_credentials import channel_credentials, channel_options
from pki.identifiers import new_id
from pki.join_client import join_cluster
from pki.node_certificate import NodeCredentials
from proto.dispatcher_pb2 import AssignmentsMessage, SessionMessage, SessionRequest, TaskStatusUpdate
from proto.objects_pb2 import (
    TASK_STATE_ASSIGNED,
    TASK_STATE_PREPARING,
    TASK_STATE_READY,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    TASK_STATE_STARTING,
    Machine,
    NetworkAttachment,
    NodeDescription,
    Task,
    TaskState,
    TaskStatus,
)
from proto.task_states import state_name
from worker.agent.assignments import ReceivedAssignments
from worker.agent.managers import ManagerChoice
from worker.agent.reporter import StatusReporter
from worker.agent.session import Session, SessionError
from worker.agent.task_machine import MESSAGES

JOINS_AT_ONCE = 16
JOINS_A_SECOND = 60
"""A manager takes 128 connections of strangers a second, one a join."""

LAG_PERIOD_S = 0.02


class Measured(StatusReporter):
    """The agent's reporter, with a clock: how long a report is under way, and what the managers know since."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self._agent = agent
        self._batch: list[TaskStatusUpdate] = []
        self._began_s = 0.0

    def take(self) -> list[TaskStatusUpdate]:
        batch = super().take()
        if batch:  # else one is under way
            self._batch, self._began_s = batch, time.monotonic()
        return batch

    def acknowledge(self) -> None:
        super().acknowledge()
        self._agent.acknowledged(self._batch, time.monotonic() - self._began_s)


class SimulatedTask:
    """One task here: where it is, where the managers know it to be, where it shall go."""

    __slots__ = ("desired", "known", "status", "version")

    def __init__(self, task: Task) -> None:
        self.status = TaskStatus()
        self.status.CopyFrom(task.status)
        self.desired: int = task.desired_state
        self.known: int = task.status.state
        self.version = (task.service_id, task.spec_version)

    @property
    def state(self) -> int:
        return self.status.state


class Agent:
    """One node: its session, one after another, and its tasks. Implements ``worker.agent.session.SessionOwner``."""

    def __init__(self, fleet: Fleet, credentials: NodeCredentials, manager: str, number: int) -> None:
        self._fleet, self._credentials = fleet, credentials
        self._choice = ManagerChoice([manager])
        self._received = ReceivedAssignments(credentials.identity.node_id)
        self._reporter = Measured(self)
        self._tasks: dict[str, SimulatedTask] = {}
        self._nonce, self._stop = new_id(), asyncio.Event()
        self._description = _description(number)
        self._machine = Machine(id=new_id(), hardware=new_id())

    async def run(self) -> None:
        """Keep sessions until cancelled."""
        while True:
            addr, delay_s = self._choice.next(random.random())
            await asyncio.sleep(delay_s)
            try:
                await self._session(addr)
            except SessionError as error:
                self._choice.failed(leader_addr=error.leader_addr)
                self._fleet.ended[str(error)[:80]] += 1

    async def _session(self, addr: str) -> None:
        credentials = channel_credentials(self._credentials)
        first = SessionRequest(
            description=self._description, addr="", boot_nonce=self._nonce, machine=self._machine, known_nonces=[]
        )
        opened = False

        def on_open() -> None:
            nonlocal opened
            opened = True
            self._choice.opened()
            self._fleet.sessions += 1

        async with grpc.aio.secure_channel(addr, credentials, options=channel_options()) as channel:
            session = Session(
                channel, first=first, describe=lambda: self._description, reporter=self._reporter, owner=self
            )
            try:
                await session.run(on_open, self._stop)
            finally:
                self._fleet.sessions -= opened

    # ------------------------------------------------------------ SessionOwner

    def on_session_message(self, message: SessionMessage) -> None:
        if message.managers:
            self._choice.update(manager.grpc_addr for manager in message.managers)

    def on_new_stream(self) -> None:
        self._received.restart()

    def on_assignments(self, message: AssignmentsMessage) -> None:
        applied = self._received.apply(message)
        tasks = self._received.contents.tasks
        for task_id in applied.removed:
            self._drop(task_id)
        new = [task_id for task_id in applied.changed if self._take(tasks[task_id])]
        if new:
            self._later(self._fleet.prepare_s, self._prepared, new)
        stopping = [task_id for task_id in applied.changed if self._has_to_stop(task_id)]
        if stopping:
            self._later(self._fleet.stop_s, self._stopped, stopping)
        ready = [task_id for task_id in applied.changed if self._may_start(task_id)]
        if ready:
            self._prepared(ready)

    def _take(self, wanted: Task) -> bool:
        """Note what the managers want and know of a task; whether it is new and shall be prepared."""
        task = self._tasks.get(wanted.id)
        if task is None:
            task = self._tasks[wanted.id] = SimulatedTask(wanted)
            self._fleet.counts[(*task.version, task.known)] += 1
            if task.state <= TASK_STATE_ASSIGNED and task.desired <= TASK_STATE_RUNNING:
                self._report(wanted.id, task, TASK_STATE_PREPARING)
                return True
            return False
        task.desired = max(task.desired, wanted.desired_state)
        if wanted.status.state > TASK_STATE_RUNNING >= task.state:
            task.status.CopyFrom(wanted.status)
        elif wanted.status.state < task.state:
            self._put(wanted.id, task)
        return False

    def _has_to_stop(self, task_id: str) -> bool:
        task = self._tasks[task_id]
        return task.desired >= TASK_STATE_SHUTDOWN and task.state <= TASK_STATE_RUNNING

    def _may_start(self, task_id: str) -> bool:
        task = self._tasks[task_id]
        return task.state == TASK_STATE_READY and task.desired == TASK_STATE_RUNNING

    def _drop(self, task_id: str) -> None:
        self._reporter.forget(task_id)
        task = self._tasks.pop(task_id, None)
        if task is not None:
            self._fleet.counts[(*task.version, task.known)] -= 1

    # ------------------------------------------------------------ what an engine would do

    def _later(self, delay_s: float, move: Callable[[list[str]], None], task_ids: list[str]) -> None:
        """All tasks of one message move together: a timer each would be the driver's work, not the manager's."""
        asyncio.get_running_loop().call_later(delay_s, move, task_ids)

    def _prepared(self, task_ids: list[str]) -> None:
        starting = []
        for task_id in task_ids:
            task = self._tasks.get(task_id)
            if task is None or task.state > TASK_STATE_READY or task.desired > TASK_STATE_RUNNING:
                continue
            if task.desired < TASK_STATE_RUNNING:
                self._report(task_id, task, TASK_STATE_READY)
            else:
                self._report(task_id, task, TASK_STATE_STARTING)
                starting.append(task_id)
        if starting:
            self._later(self._fleet.start_s, self._started, starting)

    def _started(self, task_ids: list[str]) -> None:
        for task_id in task_ids:
            task = self._tasks.get(task_id)
            if task is not None and task.state == TASK_STATE_STARTING:
                self._report(task_id, task, TASK_STATE_RUNNING)

    def _stopped(self, task_ids: list[str]) -> None:
        for task_id in task_ids:
            task = self._tasks.get(task_id)
            if task is not None and task.state <= TASK_STATE_RUNNING:
                self._report(task_id, task, TASK_STATE_SHUTDOWN)

    def _report(self, task_id: str, task: SimulatedTask, state: TaskState.ValueType) -> None:
        status = task.status
        status.state = state
        status.message = MESSAGES.get(state, status.message)
        status.timestamp.FromNanoseconds(time.time_ns())
        if state >= TASK_STATE_STARTING:
            status.container_status.container_id = f"{task_id:a<64}"
            status.container_status.pid = 4242
        if state == TASK_STATE_RUNNING:
            status.running_since.CopyFrom(status.timestamp)
        self._put(task_id, task)

    def _put(self, task_id: str, task: SimulatedTask) -> None:
        attachments = _ATTACHMENTS if task.state in (TASK_STATE_STARTING, TASK_STATE_RUNNING) else ()
        self._reporter.put(TaskStatusUpdate(task_id=task_id, status=task.status, networks_attachments=attachments))

    def acknowledged(self, batch: Sequence[TaskStatusUpdate], took_s: float) -> None:
        """These are in the managers' log."""
        counts = self._fleet.counts
        self._fleet.reports_s.append(took_s)
        self._fleet.statuses += len(batch)
        for update in batch:
            task = self._tasks.get(update.task_id)
            if task is not None:
                counts[(*task.version, task.known)] -= 1
                task.known = update.status.state
                counts[(*task.version, task.known)] += 1


_ATTACHMENTS = [NetworkAttachment(network_id="bridge", addresses=["172.17.0.2/16"])]


def _description(number: int) -> NodeDescription:
    description = NodeDescription(hostname=f"simulated-{number}")
    description.platform.architecture, description.platform.os = "x86_64", "linux"
    description.resources.nano_cpus, description.resources.memory_bytes = 64 * 10**9, 256 * 2**30
    description.engine.engine_version = "0"
    for kind, name in (("Volume", "local"), ("Network", "bridge"), ("Network", "host"), ("Log", "json-file")):
        description.engine.plugins.add(type=kind, name=name)
    return description


class Fleet:
    """All agents, and what is counted of them."""

    def __init__(self) -> None:
        self.prepare_s = self.start_s = self.stop_s = 0.02
        self.sessions = self.statuses = 0
        self.ended: Counter[str] = Counter()
        self.counts: Counter[tuple[str, int, int]] = Counter()
        self.reports_s: list[float] = []
        self.lags_s: list[float] = []
        self._joined = 0
        self._running = OwnedTasks()

    async def join(self, count: int, addrs: Sequence[str], token: str, grpc_addrs: Sequence[str]) -> dict[str, Any]:
        """Take ``count`` more nodes into the cluster; each opens its session as soon as it has joined."""
        free, refused, taken_s = asyncio.Semaphore(JOINS_AT_ONCE), 0, list[float]()

        async def one(number: int) -> None:
            nonlocal refused
            async with free:
                while True:
                    began_s = time.monotonic()
                    try:
                        result = await join_cluster([addrs[number % len(addrs)]], token)
                    except JoinUnreachableError:
                        refused += 1
                        await asyncio.sleep(0.5)
                    else:
                        break
            taken_s.append(time.monotonic() - began_s)
            agent = Agent(self, result.credentials, grpc_addrs[number % len(grpc_addrs)], number)
            self._running.spawn(agent.run(), name=f"agent {number}")

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one(self._joined))
                self._joined += 1
                await asyncio.sleep(1 / JOINS_A_SECOND)
        return {"refused": refused, **_spread("join", taken_s)}

    def times(self, prepare_s: float, start_s: float, stop_s: float) -> dict[str, Any]:
        """How long an engine takes for a task."""
        self.prepare_s, self.start_s, self.stop_s = prepare_s, start_s, stop_s
        return {}

    def state(self) -> dict[str, Any]:
        """Everything counted; nothing is reset."""
        states: Counter[str] = Counter()
        for (_, _, state), number in self.counts.items():
            states[state_name(TaskState.ValueType(state))] += number
        versions = [
            [service_id, version, number]
            for (service_id, version, state), number in self.counts.items()
            if state == TASK_STATE_RUNNING and number
        ]
        return {
            "sessions": self.sessions,
            "ended": dict(self.ended),
            "tasks": sum(states.values()),
            "states": dict(+states),
            "running": versions,
            "statuses": self.statuses,
        }

    def latencies(self) -> dict[str, Any]:
        """How long reports took since the last call, and how late this very process was."""
        found = {**_spread("report", self.reports_s), **_spread("lag", self.lags_s), "cpu_s": time.process_time()}
        self.reports_s.clear()
        self.lags_s.clear()
        return found

    async def watch_itself(self) -> None:
        """A driver without a processor measures itself: its lag is told beside what it measured."""
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(LAG_PERIOD_S)
            self.lags_s.append(time.monotonic() - began_s - LAG_PERIOD_S)


def _spread(name: str, values_s: list[float]) -> dict[str, Any]:
    ordered = sorted(values_s) or [0.0]
    return {
        f"{name}s": len(values_s),
        f"{name}_p50_ms": 1000 * ordered[len(ordered) // 2],
        f"{name}_p99_ms": 1000 * ordered[len(ordered) * 99 // 100],
        f"{name}_max_ms": 1000 * ordered[-1],
    }


async def _commands() -> None:
    fleet = Fleet()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(fleet.watch_itself(), name="lag")
        while line := await reader.readline():
            name, arguments = json.loads(line)
            answer = getattr(fleet, name)(**arguments)
            if asyncio.iscoroutine(answer):
                answer = await answer
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        watching.cancel()


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_commands())


if __name__ == "__main__":
    main()
