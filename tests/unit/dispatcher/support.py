"""A leader with a real store, the dispatcher on a real gRPC server, and agents without containers, in one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from manager.consensus.inprocess import InProcessConsensus
from manager.dispatcher.dispatcher import Dispatcher
from manager.dispatcher.looking import LOOK_S, Answer
from manager.dispatcher.watching import Lookout, LookTarget
from manager.store import Store, Working
from pki.certificates import Identity, Role
from proto.ca_pb2 import ManagerAddress
from proto.dispatcher_pb2 import SessionMessage, SessionRequest, StatusReport, TaskStatusUpdate
from proto.dispatcher_pb2_grpc import DispatcherStub
from proto.objects_pb2 import Cluster, Machine, Node, NodeDescription, SpecVersion, Task, TaskState, TaskStatus
from proto.specs_pb2 import NodeAvailability, NodeRole, ServiceSpec
from tests.unit.agent.fakes import FakeExecutor
from tests.waiting import until
from worker.agent.agent import Agent
from worker.agent.executor import Executor

WORKER_PORT = 7946
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def channel_of(node_id: str, addr: str, *options: tuple[str, int]) -> grpc.aio.Channel:
    """A channel whose calls ``caller`` knows as the node's (certificates have tests of their own)."""
    return grpc.aio.insecure_channel(
        addr, options=[("grpc.primary_user_agent", node_id), ("grpc.use_local_subchannel_pool", 1), *options]
    )


def caller(context: grpc.aio.ServicerContext[Any, Any]) -> Identity:
    """Who ``channel_of`` says it is."""
    agents = [str(value) for key, value in context.invocation_metadata() or () if key == "user-agent"]
    return Identity(agents[0].split()[0], Role.WORKER, "cluster", 1, LONG_AGO, LONG_AGO)


def make_node(node_id: str) -> Node:
    """As the certificate server makes it at a join."""
    node = Node(id=node_id, role=NodeRole.NODE_ROLE_WORKER)
    node.spec.role = NodeRole.NODE_ROLE_WORKER
    node.spec.availability = NodeAvailability.NODE_AVAILABILITY_ACTIVE
    return node


def make_spec_version(service_id: str, version: int = 1, *, image: str = "busybox", **container: Any) -> SpecVersion:
    """A service's spec with these fields of ``ContainerSpec``."""
    spec = ServiceSpec(name=f"name-{service_id}")
    spec.task_template.container_spec.image = image
    for name, value in container.items():
        field = getattr(spec.task_template.container_spec, name)
        if hasattr(field, "extend"):
            field.extend(value)
        else:
            setattr(spec.task_template.container_spec, name, value)
    return SpecVersion(id=f"{service_id}.{version}", service_id=service_id, spec_version=version, spec=spec)


def make_task(
    task_id: str,
    node_id: str,
    *,
    service_id: str = "web",
    desired_state: TaskState.ValueType = TaskState.TASK_STATE_RUNNING,
    state: TaskState.ValueType = TaskState.TASK_STATE_ASSIGNED,
) -> Task:
    """A task as the scheduler leaves it."""
    return Task(
        id=task_id,
        service_id=service_id,
        spec_version=1,
        slot=1,
        node_id=node_id,
        status=TaskStatus(state=state),
        desired_state=desired_state,
    )


class Manager:
    """One manager that leads: store, dispatcher and gRPC server on a port of the loopback, or on ``socket``."""

    def __init__(self, *, heartbeat_period_s: float = 5.0, socket: Path | None = None) -> None:
        self.consensus = InProcessConsensus()
        self.store = Store(self.consensus, clock=time.time, debug=True)
        self.addr = ""
        self.leader_addr = ""
        self.unheard: dict[str, str] = {}
        self.answers: dict[int, Answer] = {}
        """What looks find at a port; ANSWERED unless said."""
        self.elsewhere: dict[str, bool] = {}
        """What other managers see of nodes."""
        self.looks: list[int] = []
        self.handed_over = 0
        self.here = ("", "")
        self.proposals = 0
        self._ahead_s = 0.0
        self._period_s = heartbeat_period_s
        self._socket = socket
        self._server = grpc.aio.server()
        self._leading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.consensus.start(self.store)
        cluster = Cluster(id="cluster")
        cluster.spec.name = "default"
        cluster.spec.dispatcher.heartbeat_period_ns = round(self._period_s * 1e9)
        cluster.root_ca.ca_cert_pem = b"root"
        await self.store.update(lambda working: working.create(cluster))
        propose = self.consensus.propose

        async def counted(data: bytes, **options: Any) -> object:
            self.proposals += 1
            return await propose(data, **options)

        self.consensus.propose = counted  # type: ignore[method-assign]  # counts entries of the real thing
        self.dispatcher = Dispatcher(
            self.store,
            caller=caller,
            managers=self.managers,
            leader_addr=lambda: self.leader_addr,
            unheard_managers=lambda: self.unheard,
            is_here=lambda node_id, machine: (node_id, machine.id) == self.here,
            lookout=Lookout(
                look_at=self._look_at, ask_others=self._ask_others, hand_over=self._hand_over, port=WORKER_PORT
            ),
            monotonic=lambda: time.monotonic() + self._ahead_s,
        )
        self._server.add_generic_rpc_handlers((self.dispatcher.handler(),))
        port = self._server.add_insecure_port(f"unix:{self._socket}" if self._socket else "127.0.0.1:0")
        self.addr = self.leader_addr = f"unix:{self._socket}" if self._socket else f"127.0.0.1:{port}"
        await self._server.start()

    async def _look_at(self, host: str, port: int, *, within_s: float = LOOK_S) -> Answer:
        assert host == "127.0.0.1"
        self.looks.append(port)
        return self.answers.get(port, Answer.ANSWERED)

    async def _ask_others(self, hosts: Sequence[LookTarget]) -> dict[str, bool]:
        return {host.node_id: self.elsewhere[host.node_id] for host in hosts if host.node_id in self.elsewhere}

    async def _hand_over(self) -> None:
        self.handed_over += 1

    def managers(self) -> Sequence[ManagerAddress]:
        return [ManagerAddress(node_id="m1", grpc_addr=self.addr, raft_addr="127.0.0.1:2377")]

    def lead(self) -> None:
        """Become the leader."""
        self._leading = asyncio.get_running_loop().create_task(self.dispatcher.run(), name="dispatcher")

    def later(self, seconds: float) -> None:
        """Move the clock that heartbeats are measured with on."""
        self._ahead_s += seconds
        self.dispatcher._liveness._watch._changed.set()  # its timer goes by the loop's clock

    async def forgotten(self, node_id: str) -> None:
        """Return once the node's session is over here."""
        await until(lambda: node_id not in self.dispatcher._sessions, what=f"the end of {node_id}'s session")

    async def follow(self) -> None:
        """Be the leader no more."""
        if self._leading is not None:
            self._leading.cancel()
            await asyncio.wait([self._leading])
            if not self._leading.cancelled():
                self._leading.result()
            self._leading = None

    async def stop(self) -> None:
        await self.follow()
        await self._server.stop(None)
        await self.consensus.stop()
        self.store.check_unmutated()

    async def add(self, *objects: Any) -> None:
        """Create objects in one entry."""

        def change(working: Working) -> None:
            for obj in objects:
                working.create(obj)

        await self.store.update(change)

    async def edit(self, table: str, object_id: str, change: Callable[[Any], None]) -> None:
        """Change one object."""

        def update(working: Working) -> None:
            old = getattr(working, table).get(object_id)
            assert old is not None
            copy = type(old)()
            copy.CopyFrom(old)
            change(copy)
            working.update(copy)

        await self.store.update(update)

    async def set_desired(self, task_id: str, state: TaskState.ValueType) -> None:
        def change(task: Task) -> None:
            task.desired_state = state

        await self.edit("tasks", task_id, change)

    async def remove(self, table: str, object_id: str) -> None:
        def change(working: Working) -> None:
            obj = getattr(working, table).get(object_id)
            assert obj is not None
            working.remove(obj)

        await self.store.update(change)

    def task(self, task_id: str) -> Task:
        task = self.store.view.tasks.get(task_id)
        assert task is not None
        return task

    def node(self, node_id: str) -> Node:
        node = self.store.view.nodes.get(node_id)
        assert node is not None
        return node


@asynccontextmanager
async def leading_manager(**options: Any) -> AsyncIterator[Manager]:
    """A manager that leads and goes away at the end."""
    manager = Manager(**options)
    await manager.start()
    manager.lead()
    try:
        yield manager
    finally:
        await manager.stop()


class RawAgent:
    """The session of a node that says what the test has it say."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = DispatcherStub(channel).Session()
        self.session_id = ""
        self.number = 0

    async def open(self) -> None:
        """Register."""
        await self.call.write(SessionRequest(description=NodeDescription(hostname="h"), boot_nonce="a"))
        message = await self.call.read()
        assert isinstance(message, SessionMessage)
        self.session_id = message.session_id

    async def send(self, *updates: TaskStatusUpdate, number: int = 0) -> None:
        """Report, with the next number or another one."""
        self.number += 1
        report = StatusReport(number=number or self.number, updates=updates)
        await self.call.write(SessionRequest(report=report))

    async def report(self, *updates: TaskStatusUpdate) -> None:
        """Report, and return when it is acknowledged. Raises AioRpcError: the session was ended."""
        await self.send(*updates)
        while True:
            message = await self.call.read()
            if not isinstance(message, SessionMessage):
                raise EOFError("the session ended")
            if message.reported:
                assert message.reported == self.number
                return


class Heard:
    """An agent's listener that remembers."""

    def __init__(self) -> None:
        self.managers: list[Sequence[ManagerAddress]] = []
        self.nodes: list[Node] = []
        self.root_ca_pem = b""
        self.sessions: list[str] = []

    def on_managers(self, managers: Sequence[ManagerAddress]) -> None:
        self.managers.append(managers)

    def on_node(self, node: Node) -> None:
        self.nodes.append(node)

    def on_root_ca(self, root_ca_pem: bytes) -> None:
        self.root_ca_pem = root_ca_pem

    def on_session(self, error: str) -> None:
        self.sessions.append(error)


class AgentHost:
    """One node: its containers and state folder outlive its agent."""

    def __init__(self, node_id: str, state_dir: Path, addrs: Sequence[str]) -> None:
        self.node_id, self.state_dir = node_id, state_dir
        self.addrs = list(addrs)
        self.executor = FakeExecutor()
        self.heard = Heard()
        self.hostname = f"host-{node_id}"
        self.machine = Machine(id="one", hardware="board")
        self.agent: Agent | None = None
        self._running: asyncio.Task[None] | None = None
        state_dir.mkdir(exist_ok=True)

    def describe(self) -> NodeDescription:
        return NodeDescription(hostname=self.hostname)

    def start(self, executor: Executor | None = None) -> Agent:
        """Start the daemon (again)."""
        self.executor = FakeExecutor(self.executor.containers) if executor is None else self.executor
        self.agent = Agent(
            node_id=self.node_id,
            executor=executor or self.executor,
            state_dir=self.state_dir,
            channels=lambda addr: channel_of(self.node_id, addr),
            managers=[ManagerAddress(node_id=addr, grpc_addr=addr) for addr in self.addrs],
            describe=self.describe,
            listener=self.heard,
            addr="192.0.2.7",
            machine=lambda: self.machine,
        )
        self._running = asyncio.get_running_loop().create_task(self.agent.run(), name=f"agent {self.node_id}")
        return self.agent

    async def stop(self) -> None:
        """Stop the daemon in order."""
        if self.agent is not None and self._running is not None:
            await self.agent.close()
            await self._running
            self._running = None

    async def kill(self) -> None:
        """The daemon dies; what it had in memory is lost."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
            self._running = None
