"""The loop as it runs: waking, deadlines, refusals, loss of leadership, bounded passes (X25)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

import pytest
import structlog
from structlog.testing import capture_logs

from manager import constants
from manager.consensus.inprocess import InProcessConsensus
from manager.model.defaults import nanoseconds
from manager.reconcile.agenda import SlotKey
from manager.reconcile.loop import ReconcileLoop
from manager.store import Store, Working
from pki.identifiers import new_id
from proto.objects_pb2 import (
    NODE_STATE_DOWN,
    TASK_STATE_ASSIGNED,
    TASK_STATE_FAILED,
    TASK_STATE_READY,
    TASK_STATE_RUNNING,
    Cluster,
    Service,
    Task,
)
from proto.specs_pb2 import ServiceSpec
from tests.unit.loop.harness import Harness
from tests.waiting import until


async def test_it_wakes_by_itself_and_ends_when_cancelled() -> None:
    cluster = await Harness.started(nodes=2)
    cluster.loop.close()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(cluster.loop.run(), name="loop")
        await asyncio.sleep(0)
        web = await cluster.create_service("web", replicas=3)
        await until(lambda: len(cluster.tasks(web)) == 3)
        running.cancel()
    assert running.cancelled()
    await cluster.scale(web, 5)
    assert not cluster.store._callbacks


async def test_it_wakes_for_a_deadline() -> None:
    harness = Harness()
    store = harness.store
    await harness.log.start(store)
    await harness.add_node("n1")

    def quick(spec: object) -> None:
        spec.task_template.restart_policy.delay_ns = nanoseconds(0.05)  # type: ignore[attr-defined]  # a ServiceSpec

    web = await harness.create_service("web", change=quick)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(ReconcileLoop(store, lambda: harness.now, new_id).run(), name="loop")
        await until(lambda: len(harness.tasks(web)) == 1)
        await harness.report(harness.tasks(web)[0].id, TASK_STATE_FAILED)
        await until(lambda: len(harness.tasks(web)) == 2)
        (replacement,) = harness.live(web)
        assert replacement.desired_state == TASK_STATE_READY
        harness.now += 0.05  # nobody tells the loop
        await until(lambda: harness.live(web)[0].desired_state == TASK_STATE_RUNNING)
        running.cancel()


@pytest.mark.parametrize(("others_change", "period_s"), [(True, constants.PACE_S), (False, constants.DUE_PACE_S)])
async def test_what_comes_in_a_stream_is_seen_to_together(others_change: bool, period_s: float) -> None:
    """As many delays as an update has slots end within the same second, each for itself: no pass for each."""
    harness = await Harness.started(nodes=1)
    web = await harness.create_service("web", replicas=20)
    await harness.settle()
    harness.loop.close()
    passes: list[float] = []

    class Counting(ReconcileLoop):
        async def step(self) -> bool:
            passes.append(harness.now)
            return await super().step()

    loop = Counting(harness.store, lambda: harness.now, new_id)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(loop.run(), name="loop")
        await until(lambda: bool(passes) and not loop.known.has_work())
        passes.clear()
        began_s = asyncio.get_running_loop().time()
        for slot in range(1, 21):
            loop.known.agenda.set_deadline(SlotKey(web, slot), harness.now + slot * 0.01)
        loop._wake.set()
        for _ in range(21):
            harness.now += 0.01
            if others_change:
                loop.known.agenda.mark(SlotKey(web, 1))
                loop._wake.set()
            await asyncio.sleep(0.01)
        await until(lambda: not loop.known.agenda.is_due(harness.now) and not loop.known.has_work())
        took_s = asyncio.get_running_loop().time() - began_s
        running.cancel()
    assert 0 < len(passes) <= took_s / period_s + 2


async def test_it_stops_when_it_does_not_lead_any_more() -> None:
    cluster = await Harness.started(nodes=1)
    await cluster.create_service("web")
    await cluster.log.stop()
    cluster.loop.close()
    async with asyncio.timeout(30):
        await cluster.loop.run()
    assert len(cluster.store.view.tasks) == 0


class MeddlingLog(InProcessConsensus):
    """Lets somebody else's entry in before each of the next proposals."""

    meddle: list[Callable[[], bytes]]

    def __init__(self) -> None:
        super().__init__()
        self.meddle = []

    async def propose(self, data: bytes, *, timeout_s: float = 20.0, command_id: bytes | None = None) -> object:
        if self.meddle:
            await super().propose(self.meddle.pop()(), timeout_s=timeout_s)
        return await super().propose(data, timeout_s=timeout_s, command_id=command_id)


async def test_a_refused_pass_is_looked_at_again() -> None:
    cluster = Harness()
    cluster.log = MeddlingLog()
    cluster.store = Store(cluster.log, clock=lambda: cluster.now, debug=True)
    await cluster.log.start(cluster.store)
    cluster.change_leader()
    for name in ("n1", "n2"):
        await cluster.add_node(name)
    web = await cluster.create_service("web", replicas=4)
    await cluster.work()

    def touch_every_task() -> bytes:
        working = cluster.store.begin()
        for task in list(working.tasks):
            copy = Task()
            copy.CopyFrom(task)
            copy.status.message = "meddled with"
            working.update(copy)
        (entry,) = cluster.store._parts(working, split=False)
        return entry

    await cluster.store.update(lambda working: _scaled(working, web, 2))
    cluster.log.meddle = [touch_every_task] * 3
    await cluster.work()
    assert len(cluster.running(web)) == 2
    assert cluster.log.meddle == []


def _scaled(working: Working, service_id: str, replicas: int) -> None:
    service = Service()
    current = working.services.get(service_id)
    assert current is not None
    service.CopyFrom(current)
    service.spec.mode.replicated.replicas = replicas
    service.spec_version += 1
    working.update(service)


async def test_a_pass_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """X25: however much there is to do, others have their turn in between."""
    monkeypatch.setattr(constants, "PASS_OBJECTS_MAX", 50)
    cluster = await Harness.started(nodes=5)
    cluster.change_leader()
    await cluster.settle()
    web = await cluster.create_service("web", replicas=400)
    most, before = 0, 0
    while await cluster.loop.step():
        now = len(cluster.tasks(web))
        most, before = max(most, now - before), now
    assert len(cluster.tasks(web)) == 400
    assert most <= 50
    assert set(cluster.per_node(web).values()) == {80}
    await cluster.work(rounds=5)
    await cluster.scale(web, 100)
    await cluster.work(rounds=10)
    assert len(cluster.tasks(web)) == 100
    assert len(cluster.running(web)) == 100
    await cluster.remove_service(web)
    await cluster.work(rounds=10)
    assert cluster.store.view.services.get(web) is None


async def test_many_pending_tasks_are_explained_and_placed_in_bounded_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "PASS_OBJECTS_MAX", 50)
    cluster = await Harness.started()
    cluster.change_leader()
    web = await cluster.create_service("web", replicas=230)
    await cluster.settle()
    assert {task.status.err for task in cluster.tasks(web)} == {"no suitable node"}
    await cluster.add_node("n1")
    await cluster.work(rounds=10)
    assert len(cluster.running(web)) == 230


async def test_a_new_leader_takes_the_store_in_by_slices() -> None:
    """Others have their turn in between; what they change meanwhile counts, and nothing is decided before the end."""
    cluster = await Harness.started(nodes=2)
    await cluster.create_service("old", replicas=40)
    await cluster.work()
    busy = await cluster.copy(looks_max=10)
    old = busy.service("service-old").id
    tasks = busy.tasks(old)
    await busy.loop.step()
    await busy.fail(tasks[0])
    await busy.fail(tasks[-1])
    await busy.set_node("n2", state=NODE_STATE_DOWN)
    await busy.add_node("n3")
    web = await busy.create_service("web", replicas=3)
    before = busy.store.index
    for _ in range(3):
        assert await busy.loop.step()
    assert busy.store.index == before
    await busy.wait(10)
    assert len(busy.running(web)) == 3
    assert sorted(task.slot for task in busy.running(old)) == list(range(1, 41))
    assert "n2" not in busy.per_node(old)


async def test_load_that_comes_while_a_new_leader_begins_is_counted() -> None:
    """The entries of the leader before may be applied after the change: a task nobody has seen, with its node."""
    room = 4

    def quarter(spec: ServiceSpec) -> None:
        spec.task_template.resources.reservations.memory_bytes = (16 << 30) // room

    cluster = await Harness.started(nodes=1)
    cluster.change_leader()
    await cluster.settle()
    await cluster.create_service("big", replicas=2, change=quarter)
    await cluster.work()
    other = await cluster.copy(looks_max=1)
    await other.scale("service-big", 5)
    late = Task()
    late.CopyFrom(other.tasks("service-big")[0])
    late.id, late.slot = "late", 3
    await other.store.update(lambda working: working.create(late))
    await other.work()
    assert len(other.running("service-big")) == room
    (unplaced,) = [task for task in other.live("service-big") if not task.node_id]
    assert unplaced.status.err == "no suitable node (insufficient resources on 1 node)"


async def test_a_pass_looks_at_so_much_and_no_more() -> None:
    cluster = await Harness.started(nodes=4)
    await cluster.create_service("web", replicas=40)
    await cluster.work()
    cluster = await cluster.copy(looks_max=15)
    while not cluster.loop.known.take_in():
        pass
    looks = []
    while cluster.loop.known.has_work():
        looks.append(cluster.loop._decide(cluster.now).looks)
    # A node with its ten tasks, and the service with its forty, are looked at as a whole.
    assert max(looks) <= 15 + 41
    assert len(looks) >= 5


async def test_another_history_limit_is_applied_by_slices() -> None:
    cluster = await Harness.started(nodes=1, looks_max=7)
    web = await cluster.create_service("web", replicas=10)
    await cluster.work()
    for _ in range(2):
        for task in cluster.running(web):
            await cluster.fail(task)
        await cluster.wait(6)
    assert len(cluster.tasks(web)) == 30
    changed = Cluster()
    changed.CopyFrom(cluster.store.view.cluster)
    changed.spec.orchestration.task_history_retention_limit = 1
    await cluster.store.update(lambda working: working.update(changed))
    await cluster.work()
    assert [task.slot for task in cluster.tasks(web)] == [task.slot for task in cluster.running(web)]
    assert len(cluster.tasks(web)) == 10


async def test_tasks_without_a_node_are_tried_again_by_slices() -> None:
    """A node that comes concerns all of them; each is tried, and none is forgotten when more changes meanwhile."""
    cluster = await Harness.started(looks_max=8)
    services = [await cluster.create_service(f"web{number}", replicas=6) for number in range(5)]
    await cluster.settle()
    await cluster.add_node("n1")
    tried: list[int] = []
    while cluster.loop.known.has_work():
        if len(tried) == 2:
            await cluster.add_node("n2")
        work = cluster.loop._decide(cluster.now)
        tried.append(sum(task.status.state == TASK_STATE_ASSIGNED for task in work.touched.values()))
        await cluster.store.commit(work.working, split=True)
    assert max(tried) <= 8
    await cluster.work()
    assert [len(cluster.running(service)) for service in services] == [6] * 5


async def test_one_status_report_does_not_cost_a_look_at_every_task() -> None:
    cluster = await Harness.started(nodes=3)
    await cluster.create_service("web", replicas=100)
    await cluster.work()
    task = next(iter(cluster.store.view.tasks))
    copy = Task()
    copy.CopyFrom(task)
    copy.status.message = "still running"
    await cluster.store.update(lambda working: working.update(copy))
    assert cluster.loop._decide(cluster.now).looked_at == [], "it runs on, and no other task of its slot waits for it"
    await cluster.fail(task)
    assert cluster.loop._decide(cluster.now).looked_at == [SlotKey(task.service_id, task.slot)]


@pytest.fixture
def level() -> Iterator[Callable[[int], None]]:
    """Sets what is logged; back to the default afterwards."""
    yield lambda least: structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(least))
    structlog.reset_defaults()


@pytest.mark.parametrize("replicas", [3, 300])
async def test_every_task_can_be_followed_by_its_id(replicas: int, level: Callable[[int], None]) -> None:
    """However many there are in a pass; states by name."""
    level(logging.DEBUG)
    cluster = await Harness.started(nodes=2)
    with capture_logs() as lines:
        web = await cluster.create_service("web", replicas=replicas)
        await cluster.work()
        tasks = {task.id: task for task in cluster.tasks(web)}
        await cluster.fail(cluster.tasks(web)[0])
        await cluster.work()
        await cluster.remove_service(web)
        await cluster.work()
    for task in tasks.values():
        story = [line for line in lines if line.get("task_id") == task.id]
        created, removed = story[0], story[-1]
        assert (created["event"], removed["event"]) == ("task.created", "task.removed")
        assert (created["service_id"], created["node_id"], created["slot"]) == (web, task.node_id, task.slot)
        assert (created["state"], created["desired_state"]) == ("ASSIGNED", "RUNNING")
    assert {line["replaces_task_id"] for line in lines if "replaces_task_id" in line} <= tasks.keys()


async def test_many_tasks_are_one_line_unless_asked_for(level: Callable[[int], None]) -> None:
    level(logging.INFO)
    cluster = await Harness.started(nodes=2)
    with capture_logs() as lines:
        await cluster.create_service("web", replicas=300)
        await cluster.settle()
    assert [line["event"] for line in lines] == ["tasks.changed"]
    assert lines[0]["tasks"] == 300


async def test_one_that_waited_for_a_node_is_told_to_be_assigned() -> None:
    cluster = await Harness.started()
    with capture_logs() as lines:
        await cluster.create_service("web")
        await cluster.settle()
        await cluster.add_node("n1")
        await cluster.settle()
    told = [(line["event"], line["state"], line["node_id"]) for line in lines if "task_id" in line]
    assert told == [("task.created", "PENDING", ""), ("task.assigned", "ASSIGNED", "n1")]
