"""The agent of one node in one cluster.

Three parts that need nothing of each other to go on: the sessions with the managers (one after another), a runner for
each task, and the file behind both. Whatever a session brings changes the assignments; runners look at these and at
their containers. With no manager in sight the last assignment counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import grpc.aio
import structlog

from base.connections import peer_at
from base.tasks import unless
from base.threads import run_abortable
from proto.ca_pb2 import ManagerAddress
from proto.dispatcher_pb2 import AssignmentsMessage, SessionMessage, SessionRequest, TaskStatusUpdate
from proto.objects_pb2 import Machine, Node, NodeDescription, Task, TaskState, TaskStatus
from proto.specs_pb2 import NodeAvailability
from worker.agent.assignments import ReceivedAssignments
from worker.agent.boots import Boots
from worker.agent.contents import Contents
from worker.agent.executor import Assignment, Executor, ExecutorError
from worker.agent.managers import ManagerChoice
from worker.agent.persistence import AssignmentFile
from worker.agent.reporter import StatusReporter
from worker.agent.runner import TaskRunner
from worker.agent.session import Session, SessionError
from worker.agent.task_machine import TaskMachine

log = structlog.get_logger(__name__)

ChannelFactory = Callable[[str], grpc.aio.Channel]
"""Makes a channel to ``host:port`` of a manager's gRPC server; the session closes it."""

SESSION_STABLE_S = 5.0
"""A session that lasted so long was a good one: after it the tries begin anew without delay."""

LEAVE_ATTEMPTS_MAX = 5
LEAVE_RETRY_S = 0.5
CLOSE_S = 5.0
"""So long a session's connection may take to close: the next one does not wait for ever."""


class AgentListener(Protocol):
    """What the agent's owner wants to hear. Called on the event loop; quick, and they do not raise."""

    def on_managers(self, managers: Sequence[ManagerAddress]) -> None:
        """Every manager, the leader first."""

    def on_node(self, node: Node) -> None:
        """This node's object, at the begin of each session and after each change (role, availability, labels)."""

    def on_root_ca(self, root_ca_pem: bytes) -> None:
        """The cluster's root certificates."""

    def on_session(self, error: str) -> None:
        """A session is open ("") or was lost, and why."""


class Agent:
    """Construct, ``run()`` as a task, ``close()``; or ``leave()`` when the node leaves its cluster."""

    def __init__(
        self,
        *,
        node_id: str,
        executor: Executor,
        state_dir: Path,
        channels: ChannelFactory,
        managers: Sequence[ManagerAddress],
        describe: Callable[[], NodeDescription],
        listener: AgentListener,
        addr: str = "",
        data_path_addr: str = "",
        machine: Callable[[], Machine] = Machine,
        availability: NodeAvailability.ValueType = NodeAvailability.NODE_AVAILABILITY_ACTIVE,
    ) -> None:
        """
        Args:
            node_id: this node, as its certificate says; assignments of others are ignored.
            executor: runs the containers; stays the caller's.
            state_dir: an existing folder of the agent's own; ``assignments`` and ``boots`` are kept there.
            channels: see ``ChannelFactory``.
            managers: where to look first; replaced by what the managers say.
            describe: the node as it is now; asked at each registration and every 20 s.
            listener: see ``AgentListener``.
            addr: the node's advertise address, told to the managers.
            data_path_addr: where the node takes packets of networks, told to the managers; as ``addr`` when empty.
            machine: what tells this host from others; asked at each registration.
            availability: wished for at the node's first registration.
        """
        self._node_id, self._executor, self._channels = node_id, executor, channels
        self._describe, self._listener = describe, listener
        self._addr, self._data_path_addr, self._availability = addr, data_path_addr, availability
        self._machine = machine
        self._boots = Boots(state_dir)
        self._choice = ManagerChoice(manager.grpc_addr for manager in managers)
        self._reason_known = False
        self._managers_known = asyncio.Event()
        if self._choice.known:
            self._managers_known.set()
        self._file = AssignmentFile(state_dir, node_id)
        self._assignments = ReceivedAssignments(node_id)
        self._reporter = StatusReporter()
        self._runners: dict[str, TaskRunner] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._settled = asyncio.Event()
        self._stop = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    # ------------------------------------------------------------ life

    async def run(self) -> None:
        """Take up what this node ran before, then keep a session; until cancelled or ``close()``d.

        With no manager in sight it goes on with the last assignment.

        Raises:
            AgentStateError: the stored assignments cannot be read.
        """
        self._ended.clear()
        try:
            await self._run_until_stopped()
        finally:
            self._ended.set()

    async def _run_until_stopped(self) -> None:
        contents, statuses = await asyncio.to_thread(self._file.load)
        await asyncio.to_thread(self._boots.begin)
        self._assignments = ReceivedAssignments(self._node_id, contents)
        forget = self._executor.on_change(self._on_container)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                writing = group.create_task(self._file.run(), name="agent file")
                if contents.keys():  # else nothing is known: what there is stays as it is
                    self._executor.replace_networks(contents)
                for task in contents.tasks.values():
                    self._take_up(task, statuses.get(task.id))
                log.info("agent.started", node_id=self._node_id, tasks=len(contents.tasks))
                await self._keep_sessions()
                writing.cancel()
                for running in list(self._running):
                    running.cancel()
        finally:
            forget()
            self._group = None
            self._runners.clear()
            await self._file.flush()
            log.info("agent.stopped", node_id=self._node_id)

    async def close(self) -> None:
        """End the session and ``run()``; containers run on."""
        self._stop.set()
        await self._ended.wait()

    async def leave(self) -> None:
        """``close()``, then stop every task (in its container's own time), remove that and forget all assignments.

        Raises:
            ExecutorError: a container could not be removed; everything else was.
        """
        await self.close()
        failures: list[ExecutorError] = []
        async with asyncio.TaskGroup() as group:
            for task_id in self._executor.task_ids():
                group.create_task(self._take_away(task_id, failures), name=f"leave {task_id}")
        self._file.clear()
        self._executor.replace_networks(Contents())
        if failures:
            raise failures[0]

    async def _take_away(self, task_id: str, failures: list[ExecutorError]) -> None:
        for attempt in range(1, LEAVE_ATTEMPTS_MAX + 1):
            try:
                await self._executor.stop(task_id, None)
                await self._executor.remove(task_id)
            except ExecutorError as error:
                if attempt == LEAVE_ATTEMPTS_MAX:
                    log.error("task.left_behind", task_id=task_id, reason=str(error))
                    failures.append(error)
                await asyncio.sleep(LEAVE_RETRY_S)
            else:
                return

    # ------------------------------------------------------------ sessions

    async def _keep_sessions(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            await unless(self._stop, self._managers_known.wait())
            if self._stop.is_set():
                return
            addr, delay_s = self._choice.next(random.random())
            if delay_s and await self._stopped_within(delay_s):
                return
            began = loop.time()
            try:
                await self._session(addr)
            except SessionError as error:
                if loop.time() - began > SESSION_STABLE_S:
                    self._choice.opened()
                self._choice.failed(leader_addr=error.leader_addr)
                log.info("session.failed", manager=addr, reason=str(error))
                self._tell(error)

    async def _session(self, addr: str) -> None:
        channel = self._channels(addr)
        try:
            first = SessionRequest(
                description=self._describe(),
                availability=self._availability,
                addr=self._addr,
                data_path_addr=self._data_path_addr,
                boot_nonce=self._boots.nonce,
                machine=self._machine(),
                known_nonces=self._boots.known,
            )
            session = Session(
                channel,
                first=first,
                describe=self._describe,
                reporter=self._reporter,
                owner=self,
                peer=peer_at(addr),
            )
            await session.run(lambda: self._on_open(addr), self._stop)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await channel.close()

    def _tell(self, error: SessionError) -> None:
        """A manager that only names the leader hides nothing of why there is no session."""
        if error.leader_addr and self._reason_known:
            return
        self._reason_known = not error.leader_addr
        self._listener.on_session(str(error))

    def _on_open(self, addr: str) -> None:
        log.info("session.opened", manager=addr)
        self._reason_known = False
        self._listener.on_session("")
        assert self._group is not None, "sessions are kept while the agent runs"
        self._group.create_task(self._confirm_boot(), name="agent boots")

    async def _confirm_boot(self) -> None:
        try:
            await run_abortable(lambda _: self._boots.confirm())
        except (
            OSError
        ) as error:  # no thread: the boot stands in the file already, among those that may have come through
            log.warning("boot.not_saved", error=str(error))

    async def _stopped_within(self, delay_s: float) -> bool:
        try:
            async with asyncio.timeout(delay_s):
                await self._stop.wait()
        except TimeoutError:
            return False
        return True

    # ------------------------------------------------------------ what a session brings (SessionOwner)

    def on_session_message(self, message: SessionMessage) -> None:
        """See ``worker.agent.session.SessionOwner``."""
        if message.managers:
            self._choice.update(manager.grpc_addr for manager in message.managers)
            self._managers_known.set()
            self._listener.on_managers(list(message.managers))
        if message.HasField("node"):
            self._listener.on_node(message.node)
        if message.root_ca_pem:
            self._listener.on_root_ca(message.root_ca_pem)

    def on_new_stream(self) -> None:
        """See ``worker.agent.session.SessionOwner``."""
        self._assignments.restart()

    def on_assignments(self, message: AssignmentsMessage) -> None:
        """See ``worker.agent.session.SessionOwner``."""
        applied = self._assignments.apply(message)
        contents = self._assignments.contents
        if applied.complete:
            self._file.replace(contents)
            self._executor.replace_networks(contents)
        else:
            self._file.put_changes(applied.changes)
            self._executor.change_networks(contents, applied.changes)
        for task_id in applied.changed:
            self._take_up(contents.tasks[task_id], None)
        for task_id in applied.removed:
            self._give_up(task_id)
        if applied.complete:
            self._settled.set()
            self._give_up_unknown(contents.tasks)

    def _take_up(self, task: Task, stored: TaskStatus | None) -> None:
        """A task is new here, or the managers said something about it."""
        runner = self._runners.get(task.id)
        if runner is None:
            status = task.status if stored is None or stored.state < task.status.state else stored
            runner = self._add_runner(TaskMachine(task.id, status, task.desired_state))
            runner.grace_s = self._grace_s(task.id)
            self._file.put_status(task.id, status)
        runner.grace_s = self._grace_s(task.id) or runner.grace_s
        runner.assign(task)
        if task.status.state < runner.machine.state:  # the managers do not know, or no more
            self._report_again(runner, task)

    def _report_again(self, runner: TaskRunner, task: Task) -> None:
        container = self._executor.observe(task.id)
        attachments = container.attachments if container is not None else ()
        status = runner.machine.status
        self._reporter.put(TaskStatusUpdate(task_id=task.id, status=status, networks_attachments=attachments))

    def _give_up(self, task_id: str) -> None:
        self._reporter.forget(task_id)
        runner = self._runners.get(task_id)
        if runner is not None:
            runner.unassign()

    def _give_up_unknown(self, assigned: Iterable[str]) -> None:
        """Containers of tasks that no longer exist, from before this daemon lost its file."""
        known = set(assigned)
        for task_id in self._executor.task_ids():
            if task_id not in known and task_id not in self._runners:
                log.info("task.found", task_id=task_id, reason="its task object is gone")
                runner = self._add_runner(TaskMachine(task_id, TaskStatus(), TaskState.TASK_STATE_REMOVE))
                runner.unassign()

    def _grace_s(self, task_id: str) -> float | None:
        assignment = self._assignments.assignment(task_id)
        if assignment is None:
            return None
        container = assignment.spec_version.spec.task_template.container_spec
        return container.stop_grace_period_ns / 1e9 if container.HasField("stop_grace_period_ns") else None

    # ------------------------------------------------------------ runners (RunnerOwner)

    def _add_runner(self, machine: TaskMachine) -> TaskRunner:
        assert self._group is not None, "assignments come only while the agent runs"
        runner = TaskRunner(machine, self._executor, self)
        self._runners[machine.task_id] = runner
        running = self._group.create_task(self._run(runner), name=f"task {machine.task_id}")
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return runner

    async def _run(self, runner: TaskRunner) -> None:
        await runner.run()
        if self._runners.get(runner.machine.task_id) is runner:
            del self._runners[runner.machine.task_id]

    def _on_container(self, task_id: str) -> None:
        runner = self._runners.get(task_id)
        if runner is not None:
            runner.poke()

    def assignment(self, task_id: str) -> Assignment | None:
        """See ``worker.agent.runner.RunnerOwner``."""
        return self._assignments.assignment(task_id)

    async def assignment_settled(self) -> None:
        """See ``worker.agent.runner.RunnerOwner``."""
        await self._settled.wait()

    def on_status(self, update: TaskStatusUpdate) -> None:
        """See ``worker.agent.runner.RunnerOwner``."""
        self._file.put_status(update.task_id, update.status)
        self._reporter.put(update)
