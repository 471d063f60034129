"""Random histories of a cluster: whatever happens, it is never wrong on the way and right in the end.

Safety, after every step: no more live tasks than wanted, no task placed where it must not be, nothing over-booked,
observed and desired states only rise. Progress: once the world is left in peace, everything runs as asked, and a
second look, also by a new leader, finds nothing to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manager.model.defaults import PROGRESS_DEADLINE_LABEL, nanoseconds, replicas
from manager.reconcile.agenda import Key
from manager.store import Change
from proto.objects_pb2 import (
    NODE_STATE_DOWN,
    NODE_STATE_READY,
    TASK_STATE_ASSIGNED,
    TASK_STATE_NEW,
    TASK_STATE_PENDING,
    TASK_STATE_RUNNING,
    Node,
    Task,
)
from proto.specs_pb2 import (
    NODE_AVAILABILITY_ACTIVE,
    NODE_AVAILABILITY_DRAIN,
    NODE_AVAILABILITY_PAUSE,
    UPDATE_ORDER_START_FIRST,
    NetworkAttachmentConfig,
    ServiceSpec,
)
from tests.unit.loop.harness import Harness

MEMORY_BYTES = 4 << 30
RESERVED_BYTES = 1 << 30
"""A node bears four tasks of the service that reserves."""

ADDRESSES_FOR_TASKS = 4
"""Of those of a /29 network one is the gateway's and one the service's."""

NODES = ("n1", "n2", "n3", "n4")


@dataclass
class World:
    """A cluster with a service of every kind, and a watcher of what is committed."""

    cluster: Harness
    services: dict[str, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    slots_seen: dict[str, int] = field(default_factory=dict)
    racing: bool = False

    @classmethod
    async def made(cls, looks_max: int) -> World:
        world = cls(await Harness.started(looks_max=looks_max))
        for name in NODES:
            await world.cluster.add_node(name, labels={"zone": name[-1]}, memory_bytes=MEMORY_BYTES)
        world.cluster.store.on_change(world._watch)
        create = world.cluster.create_service
        await world.cluster.create_network("front", subnet="10.0.0.0/29")
        world.services["plain"] = await create("plain", replicas=3, change=_on_network)
        world.services["booked"] = await create("booked", replicas=5, change=_reserving)
        world.services["agent"] = await create("agent", replicas=None)
        world.services["first"] = await create("first", replicas=2, change=_start_first)
        return world

    def _watch(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change.new, Task):
                self._check_task(change.old if isinstance(change.old, Task) else None, change.new)

    def _check_task(self, old: Task | None, new: Task) -> None:
        if old is not None and new.status.state < old.status.state:
            self.violations.append(f"{new.id}: observed state fell from {old.status.state} to {new.status.state}")
        if old is not None and new.desired_state < old.desired_state:
            self.violations.append(f"{new.id}: desired state fell from {old.desired_state} to {new.desired_state}")
        if old is not None and old.node_id not in ("", new.node_id):
            self.violations.append(f"{new.id}: moved from {old.node_id} to {new.node_id}")
        placed = new.status.state == TASK_STATE_ASSIGNED and (old is None or old.status.state < TASK_STATE_ASSIGNED)
        node = self.cluster.store.view.nodes.get(new.node_id)
        if placed and not self.racing and not _takes_new_tasks(node):
            self.violations.append(f"{new.id}: placed on {new.node_id}, which takes no new tasks")

    def check(self) -> None:
        """Raise AssertionError when anything is as it must never be."""
        assert not self.violations, self.violations
        view = self.cluster.store.view
        for service_id in self.services.values():
            service = view.services.get(service_id)
            if service is None or service.pending_delete:
                continue
            slots: dict[object, list[Task]] = {}
            is_global = service.spec.mode.HasField("global")
            for task in self.cluster.live(service_id):
                slots.setdefault(task.node_id if is_global else task.slot, []).append(task)
            wanted = len(NODES) if is_global else replicas(service.spec)
            # The user may just have asked for less; but there are never more than there were and than are wanted.
            most = max(wanted, self.slots_seen.get(service_id, 0))
            assert len(slots) <= most, f"{service_id}: {len(slots)} slots are live, {wanted} wanted"
            self.slots_seen[service_id] = len(slots)
            assert all(len(tasks) <= 2 for tasks in slots.values()), (
                f"{service_id}: a slot has more than two live tasks"
            )
        held_addresses = [
            (attachment.network_id, address)
            for task in view.tasks
            if task.status.state <= TASK_STATE_RUNNING
            for attachment in task.networks_attachments
            for address in attachment.addresses
        ]
        held_addresses += [(v.network_id, v.addr) for service in view.services for v in service.endpoint.virtual_ips]
        assert len(held_addresses) == len(set(held_addresses)), f"an address is held twice: {sorted(held_addresses)}"
        for node in view.nodes:
            held = [
                task
                for task in view.tasks.by_node(node.id)
                if task.service_id == self.services["booked"]
                and TASK_STATE_ASSIGNED <= task.status.state <= TASK_STATE_RUNNING
            ]
            assert len(held) * RESERVED_BYTES <= MEMORY_BYTES, f"{node.id} is over-booked"

    def check_converged(self) -> None:
        """Every node is up: everything runs as asked, or says why not."""
        view = self.cluster.store.view
        for service_id in self.services.values():
            service = view.services.get(service_id)
            if service is None:
                assert not view.tasks.by_service(service_id)
                continue
            wanted = len(NODES) if service.spec.mode.HasField("global") else replicas(service.spec)
            running, live = self.cluster.running(service_id), self.cluster.live(service_id)
            assert len(live) == wanted, f"{service_id}: {len(live)} live, {wanted} wanted"
            for task in live:
                if task.status.state == TASK_STATE_NEW:
                    assert task.status.err.startswith("no available IPv4 addresses"), f"{task.id} does not say why"
                elif task not in running:
                    assert task.status.state == TASK_STATE_PENDING, f"{task.id} hangs"
                    assert task.status.err.startswith("no suitable node ("), f"{task.id} does not say why"
            if service_id == self.services["booked"]:
                assert len(running) == min(wanted, len(NODES) * MEMORY_BYTES // RESERVED_BYTES)
            elif service_id == self.services["plain"]:
                assert len(running) == min(wanted, ADDRESSES_FOR_TASKS)
            else:
                assert len(running) == wanted
            # The service may have been rolled back or paused; with nothing failing it has been brought up to date.
            assert {task.spec_version for task in running} <= {
                service.spec_version,
                *(task.spec_version for task in running if _same_template(self.cluster, task)),
            }


def _takes_new_tasks(node: Node | None) -> bool:
    return (
        node is not None
        and node.status.state == NODE_STATE_READY
        and node.spec.availability not in (NODE_AVAILABILITY_PAUSE, NODE_AVAILABILITY_DRAIN)
    )


def _same_template(cluster: Harness, task: Task) -> bool:
    version = cluster.store.view.spec_versions.of(task.service_id, task.spec_version)
    service = cluster.service(task.service_id)
    return version is not None and version.spec.task_template == service.spec.task_template


def _on_network(spec: ServiceSpec) -> None:
    spec.task_template.networks.append(NetworkAttachmentConfig(target="front"))


def _reserving(spec: ServiceSpec) -> None:
    spec.task_template.resources.reservations.memory_bytes = RESERVED_BYTES
    spec.task_template.restart_policy.delay_ns = nanoseconds(1)


def _start_first(spec: ServiceSpec) -> None:
    spec.update_config.order = UPDATE_ORDER_START_FIRST
    spec.update_config.parallelism = 1
    spec.labels[PROGRESS_DEADLINE_LABEL] = "20s"


Event = Callable[[World], Awaitable[None]]

node_names = st.sampled_from(NODES)
service_names = st.sampled_from(["plain", "booked", "first"])
all_services = st.sampled_from(["plain", "booked", "agent", "first"])


def _set_node(name: str, **changes: int) -> Event:
    async def event(world: World) -> None:
        await world.cluster.set_node(name, **changes)  # type: ignore[arg-type]  # enum values by keyword

    return event


def _scale(name: str, count: int) -> Event:
    async def event(world: World) -> None:
        await world.cluster.scale(world.services[name], count)

    return event


def _update(name: str, number: int) -> Event:
    async def event(world: World) -> None:
        def change(spec: ServiceSpec) -> None:
            spec.task_template.container_spec.image = f"image:{number}"

        await world.cluster.update_service(world.services[name], change)

    return event


def _fail(name: str, position: int) -> Event:
    async def event(world: World) -> None:
        candidates = [
            task
            for task in world.cluster.live(world.services[name])
            if TASK_STATE_ASSIGNED <= task.status.state <= TASK_STATE_RUNNING
        ]
        if candidates:
            await world.cluster.fail(candidates[position % len(candidates)])

    return event


def _race(name: str, position: int) -> Event:
    """A report is on its way through the log while the loop decides on the state before it."""

    async def event(world: World) -> None:
        await asyncio.gather(_fail(name, position)(world), world.cluster.loop.step())

    return event


def _race_node(name: str, state: int) -> Event:
    async def event(world: World) -> None:
        # A node that goes down in that moment may still be given tasks; the next look takes them away again.
        world.racing = True
        await asyncio.gather(_set_node(name, state=state)(world), world.cluster.loop.step())
        world.racing = False

    return event


async def _obey(world: World) -> None:
    await world.cluster.obey()


async def _settle(world: World) -> None:
    await world.cluster.settle()


async def _one_pass(world: World) -> None:
    await world.cluster.loop.step()


async def _change_leader(world: World) -> None:
    world.cluster.change_leader()


def _wait(seconds: float) -> Event:
    """Negative: the clock is set back."""

    async def event(world: World) -> None:
        world.cluster.now += seconds

    return event


events = st.one_of(
    st.builds(_set_node, node_names, state=st.sampled_from([NODE_STATE_DOWN, NODE_STATE_READY])),
    st.builds(
        _set_node,
        node_names,
        availability=st.sampled_from([NODE_AVAILABILITY_ACTIVE, NODE_AVAILABILITY_DRAIN, NODE_AVAILABILITY_PAUSE]),
    ),
    st.builds(_scale, service_names, st.integers(0, 7)),
    st.builds(_update, all_services, st.integers(1, 3)),
    st.builds(_fail, all_services, st.integers(0, 9)),
    st.builds(_race, all_services, st.integers(0, 9)),
    st.builds(_race_node, node_names, st.sampled_from([NODE_STATE_DOWN, NODE_STATE_READY])),
    st.builds(_wait, st.sampled_from([0.5, 1.0, 5.0, 61.0, -3.0, -40.0])),
    st.sampled_from([_obey, _settle, _one_pass, _change_leader]),
    st.sampled_from([_obey, _settle]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=st.lists(events, max_size=40), looks_max=st.sampled_from([1000, 1000, 1, 3, 10]), compared=st.booleans())
def test_any_history_is_safe_and_converges(history: list[Event], looks_max: int, compared: bool) -> None:
    """``compared``: what is kept is compared before each pass, for which all of it is brought up to date; else at the end."""
    asyncio.run(_play(history, looks_max, compared))


async def _play(history: list[Event], looks_max: int, compared: bool) -> None:
    world = await World.made(looks_max)
    world.cluster.store.debug = compared
    for event in history:
        await event(world)
        world.check()
    for name in NODES:
        await world.cluster.set_node(name, state=NODE_STATE_READY, availability=NODE_AVAILABILITY_ACTIVE)
    # Updates that failures had paused are asked for once more.
    for name in ("plain", "booked", "agent", "first"):
        service = world.cluster.service(world.services[name])
        if service.update_status.state:
            await _update(name, 9)(world)
    for _ in range(60):
        await world.cluster.work()
        world.check()
        world.cluster.now += 5
    await world.cluster.work()
    world.check_converged()
    cluster = world.cluster
    assert list(cluster.loop.known.slots.differences(cluster.store.view, cluster.now)) == []
    assert list(cluster.loop.known.allocation.differences()) == []
    await _check_nothing_left(world)


async def _check_nothing_left(world: World) -> None:
    """A new leader that looks at everything agrees with what it finds."""
    before = world.cluster.store.index
    world.cluster.change_leader()
    await world.cluster.settle()
    assert world.cluster.store.index == before, "a second look found something to do"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=st.lists(events, max_size=25), looks_max=st.integers(1, 30))
def test_slices_of_any_size_come_to_the_same_end(history: list[Event], looks_max: int) -> None:
    """A new leader decides alike, however little it looks at in one go."""
    asyncio.run(_compare(history, looks_max))


async def _compare(history: list[Event], looks_max: int) -> None:
    world = await World.made(1000)
    for event in history:
        await event(world)
    whole, sliced = await world.cluster.copy(looks_max=1000), await world.cluster.copy(looks_max=looks_max)
    # The marks are the same, so what is decided first is, too.
    assert whole.loop.known.take_in()
    while not sliced.loop.known.take_in():
        pass
    assert [*_marks(sliced)] == [*_marks(whole)]
    assert sliced.loop.known.nodes.infos == whole.loop.known.nodes.infos
    ends = []
    for cluster in (await world.cluster.copy(looks_max=1000), await world.cluster.copy(looks_max=looks_max)):
        for name in NODES:
            await cluster.set_node(name, state=NODE_STATE_READY, availability=NODE_AVAILABILITY_ACTIVE)
        await cluster.wait(200, every=5)
        ends.append([_end(cluster, service_id) for service_id in world.services.values()])
    assert ends[0] == ends[1]


def _marks(cluster: Harness) -> Iterator[Key]:
    while (key := cluster.loop.known.agenda.pop()) is not None:
        yield key


def _end(cluster: Harness, service_id: str) -> tuple[object, ...]:
    """What is live where, of which version; how much of it runs; where the update stands."""
    service, live = cluster.service(service_id), cluster.live(service_id)
    by_node = service.spec.mode.HasField("global")
    slots = sorted((task.node_id if by_node else str(task.slot), task.spec_version) for task in live)
    return slots, len(cluster.running(service_id)), service.update_status.state
