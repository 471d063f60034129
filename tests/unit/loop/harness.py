"""A whole manager without network and disk: store, reconcile loop, a clock moved by hand, and agents that obey.

Everything goes through the real store and the real loop, what users and agents do through control's and the
dispatcher's own functions; the log is the in-process one. Stored messages that somebody changes in place are found at
once.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from manager import constants
from manager.consensus.inprocess import InProcessConsensus
from manager.consensus.port import LeaderState
from manager.control import objects
from manager.control import services as control
from manager.control.networks import MANAGED_NETWORKS
from manager.control.nodes import Membership, remove_node
from manager.dispatcher import status
from manager.dispatcher.intake import put
from manager.model.times import to_timestamp
from manager.reconcile.loop import ReconcileLoop
from manager.store import Store, Working
from proto.dispatcher_pb2 import TaskStatusUpdate
from proto.objects_pb2 import (
    NODE_STATE_DOWN,
    NODE_STATE_READY,
    TASK_STATE_ASSIGNED,
    TASK_STATE_COMPLETE,
    TASK_STATE_FAILED,
    TASK_STATE_READY,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    Cluster,
    Node,
    NodeState,
    Service,
    Task,
    TaskState,
)
from proto.specs_pb2 import NODE_AVAILABILITY_ACTIVE, IPAMConfig, NetworkSpec, NodeAvailability, ServiceSpec

STEPS_MAX = 500

Change = Callable[[ServiceSpec], None]


class Harness:
    """``await Harness.started()``; then change the cluster, ``await settle()``, and look."""

    def __init__(self, *, looks_max: int = constants.PASS_LOOKS_MAX) -> None:
        self.looks_max = looks_max
        self.now = 1_000_000.0
        self.log = InProcessConsensus()
        self.store = Store(self.log, clock=lambda: self.now, debug=True)
        self._numbers = count(1)
        self.loop = self._new_loop()
        self.refuses_to_stop: set[str] = set()

    @classmethod
    async def started(cls, *, nodes: int = 0, looks_max: int = constants.PASS_LOOKS_MAX) -> Harness:
        harness = cls(looks_max=looks_max)
        await harness.log.start(harness.store)
        await harness.store.update(lambda working: working.create(Cluster(id="cluster")))
        for number in range(1, nodes + 1):
            await harness.add_node(f"n{number}")
        harness.loop.start()
        return harness

    def new_id(self) -> str:
        return f"id{next(self._numbers):08d}"

    def _new_loop(self) -> ReconcileLoop:
        return ReconcileLoop(self.store, lambda: self.now, self.new_id, looks_max=self.looks_max)

    def change_leader(self) -> None:
        """All that a leader had in memory is gone."""
        self.loop.close()
        self.loop = self._new_loop()
        self.loop.start()

    async def copy(self, *, looks_max: int) -> Harness:
        """Another cluster in the same state, under a leader that has just begun."""
        other = Harness(looks_max=looks_max)
        await other.log.start(other.store)
        other.store.load(self.store.snapshot()(), self.store.index)()
        other.log._index = self.store.index
        other.now, other._numbers = self.now, count(10_000)
        other.loop.start()
        return other

    # ------------------------------------------------------------------ running

    async def settle(self) -> int:
        """Let the loop do all it has to do now; returns the number of passes. Fails when it never ends."""
        for steps in range(STEPS_MAX):
            if not await self.loop.step():
                self.store.check_unmutated()
                return steps
        raise AssertionError(f"the loop still finds something to do after {STEPS_MAX} passes")

    async def work(self, rounds: int = 20) -> None:
        """Loop and agents in turn until neither has anything to do."""
        for _ in range(rounds):
            await self.settle()
            if not await self.obey():
                return

    async def wait(self, seconds: float, *, every: float = 1.0) -> None:
        """Let time pass in small steps, loop and agents working."""
        until = self.now + seconds
        await self.work()
        while self.now < until:
            self.now = min(self.now + every, until)
            await self.work()

    async def obey(self) -> bool:
        """Every agent that is up brings its tasks where they are wanted; returns whether anything changed."""
        changed = False
        for task in list(self.store.view.tasks):
            node = self.store.view.nodes.get(task.node_id) if task.node_id else None
            if node is None or node.status.state == NODE_STATE_DOWN:
                continue
            state = self._obeyed_state(task)
            if state is not None:
                await self.report(task.id, state)
                changed = True
        return changed

    def _obeyed_state(self, task: Task) -> TaskState.ValueType | None:
        state = task.status.state
        if not TASK_STATE_ASSIGNED <= state <= TASK_STATE_RUNNING:
            return None
        if task.desired_state > TASK_STATE_RUNNING:
            return None if task.id in self.refuses_to_stop else TASK_STATE_SHUTDOWN
        wanted = min(task.desired_state, TASK_STATE_RUNNING)
        return wanted if state < wanted else None

    # ------------------------------------------------------------------ what others do

    async def report(self, task_id: str, state: TaskState.ValueType, *, exit_code: int = 0) -> None:
        """An agent's status report, as the dispatcher writes it."""

        def change(working: Working) -> None:
            current = working.tasks.get(task_id)
            assert current is not None
            update = TaskStatusUpdate(task_id=task_id)
            update.status.state = state
            update.status.timestamp.CopyFrom(to_timestamp(self.now))
            if state in (TASK_STATE_COMPLETE, TASK_STATE_FAILED):
                update.status.container_status.exit_code = exit_code
            assert status.refusal(current, update, current.node_id) == ""
            put(working, status.apply(current, update, to_timestamp(self.now)))

        await self.store.update(change)

    async def fail(self, task: Task, *, exit_code: int = 1) -> None:
        """Its container ends with an error."""
        await self.report(task.id, TASK_STATE_FAILED, exit_code=exit_code)

    async def add_node(self, name: str, *, labels: dict[str, str] | None = None, memory_bytes: int = 0) -> Node:
        node = Node(id=name)
        node.description.hostname = name
        node.description.platform.architecture = "x86_64"
        node.description.platform.os = "linux"
        node.description.resources.memory_bytes = memory_bytes or 16 << 30
        node.description.resources.nano_cpus = 8_000_000_000
        node.status.state = NODE_STATE_READY
        node.spec.availability = NODE_AVAILABILITY_ACTIVE
        node.spec.labels.update(labels or {})
        await self.store.update(lambda working: working.create(node))
        return node

    async def set_node(
        self,
        name: str,
        *,
        state: NodeState.ValueType | None = None,
        availability: NodeAvailability.ValueType | None = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        current = self.store.view.nodes.get(name)
        assert current is not None
        node = Node()
        node.CopyFrom(current)
        if state is not None:
            node.status.state = state
            node.status_since.CopyFrom(to_timestamp(self.now))
        if availability is not None:
            node.spec.availability = availability
        if labels is not None:
            node.spec.labels.clear()
            node.spec.labels.update(labels)
        await self.store.update(lambda working: working.update(node))

    async def remove_node(self, name: str) -> None:
        """What ``docker node rm --force`` has control do."""
        nobody = Membership([], set(), LeaderState(1, None, True))

        def change(working: Working) -> None:
            node = working.nodes.find(name)
            remove_node(working, working.cluster, node, nobody, force=True, now=to_timestamp(self.now))

        await self.store.update(change)

    async def create_network(self, name: str, *, subnet: str, ingress: bool = False) -> str:
        """What ``docker network create -d overlay`` has control do. Returns its ID."""
        spec = NetworkSpec(name=name, ingress=ingress)
        spec.ipam_options.configs.append(IPAMConfig(subnet=subnet))
        wanted, now = MANAGED_NETWORKS.wanted(spec), to_timestamp(self.now)
        await self.store.update(
            lambda working: objects.create(working, MANAGED_NETWORKS, wanted, object_id=f"network-{name}", now=now)
        )
        return f"network-{name}"

    async def remove_network(self, network_id: str) -> None:
        await self.store.update(lambda working: working.remove(working.networks.find(network_id)))

    async def create_service(self, name: str, *, replicas: int | None = 1, change: Change | None = None) -> str:
        """Replicated, or global when ``replicas`` is None. Returns its ID."""
        spec = ServiceSpec(name=name)
        spec.task_template.container_spec.image = "busybox"
        if replicas is None:
            getattr(spec.mode, "global").SetInParent()
        else:
            spec.mode.replicated.replicas = replicas
        if change is not None:
            change(spec)
        service_id = f"service-{name}"
        await self.store.update(lambda working: control.create_service(working, spec, service_id=service_id))
        return service_id

    async def update_service(self, service_id: str, change: Change) -> None:
        """What ``docker service update`` has control do."""
        service, spec = self.service(service_id), ServiceSpec()
        spec.CopyFrom(service.spec)
        change(spec)
        await self.store.update(
            lambda working: control.update_service(working, service, spec, version=service.version.index)
        )

    async def roll_back_service(self, service_id: str) -> None:
        """What ``docker service rollback`` has control do."""
        service, now = self.service(service_id), to_timestamp(self.now)
        await self.store.update(
            lambda working: control.roll_back_service(working, service, version=service.version.index, now=now)
        )

    async def scale(self, service_id: str, replicas: int) -> None:
        def change(spec: ServiceSpec) -> None:
            spec.mode.replicated.replicas = replicas

        await self.update_service(service_id, change)

    async def remove_service(self, service_id: str) -> None:
        """What ``docker service rm`` has control do where a task moved under it: its tasks are left to the loop."""
        service, now = self.service(service_id), to_timestamp(self.now)
        await self.store.update(lambda working: control.remove_service(working, service, now=now, tasks_max=0))

    # ------------------------------------------------------------------ looking

    def service(self, service_id: str) -> Service:
        service = self.store.view.services.get(service_id)
        assert service is not None
        return service

    def tasks(self, service_id: str) -> list[Task]:
        return sorted(self.store.view.tasks.by_service(service_id), key=lambda task: task.id)

    def live(self, service_id: str) -> list[Task]:
        """Tasks wanted to run or to be ready for it."""
        return [task for task in self.tasks(service_id) if task.desired_state <= TASK_STATE_RUNNING]

    def running(self, service_id: str) -> list[Task]:
        return [task for task in self.live(service_id) if task.status.state == TASK_STATE_RUNNING]

    def held(self, service_id: str) -> list[Task]:
        """Replacements that wait for their start."""
        return [task for task in self.live(service_id) if task.desired_state == TASK_STATE_READY]

    def per_node(self, service_id: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for task in self.live(service_id):
            counts[task.node_id] = counts.get(task.node_id, 0) + 1
        return counts
