"""What is kept of a service's slots follows the store, the clock and the spec. (Each pass compares it with a fresh look.)"""

from __future__ import annotations

import pytest

from manager.orchestrator.slots import Slot, SlotFacts, Slots
from proto.objects_pb2 import UPDATE_STATE_COMPLETED
from proto.specs_pb2 import NODE_AVAILABILITY_ACTIVE, NODE_AVAILABILITY_PAUSE, ServiceSpec
from tests.unit.loop.harness import Harness


def one_at_a_time(spec: ServiceSpec) -> None:
    spec.update_config.parallelism = 1


def to_v2(spec: ServiceSpec) -> None:
    spec.task_template.container_spec.image = "v2"


async def test_several_nodes_that_were_paused_are_brought_up_to_date_one_after_the_other() -> None:
    """The update was complete without them: what goes on then goes on to its end."""
    cluster = await Harness.started(nodes=5)
    agent = await cluster.create_service("agent", replicas=None, change=one_at_a_time)
    await cluster.wait(10)
    paused = ("n1", "n2", "n3")
    for name in paused:
        await cluster.set_node(name, availability=NODE_AVAILABILITY_PAUSE)
    await cluster.update_service(agent, to_v2)
    await cluster.wait(60)
    assert cluster.service(agent).update_status.state == UPDATE_STATE_COMPLETED
    for name in paused:
        await cluster.set_node(name, availability=NODE_AVAILABILITY_ACTIVE)
    await cluster.wait(60)
    assert {task.spec_version for task in cluster.running(agent)} == {2}
    assert len(cluster.running(agent)) == 5


@pytest.mark.parametrize("back_s", [3, 6, 9, 40, 3000])
async def test_a_clock_that_is_set_back_changes_no_end(back_s: float) -> None:
    cluster = await Harness.started(nodes=3)
    web = await cluster.create_service("web", replicas=6, change=one_at_a_time)
    await cluster.wait(10)
    await cluster.update_service(web, to_v2)
    await cluster.wait(8)
    cluster.now -= back_s
    await cluster.wait(90)
    assert cluster.service(web).update_status.state == UPDATE_STATE_COMPLETED
    assert {task.spec_version for task in cluster.running(web)} == {2}


async def test_another_number_of_replicas_judges_no_slot_that_did_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a service that was updated before, whose slots keep tasks of the spec before that."""
    cluster = await Harness.started(nodes=3)
    web = await cluster.create_service("web", replicas=30, change=lambda spec: spec.update_config.SetInParent())
    await cluster.wait(10)
    await cluster.update_service(web, to_v2)
    await cluster.wait(60)
    assert cluster.service(web).update_status.state == UPDATE_STATE_COMPLETED
    await cluster.scale(web, 31)
    await cluster.work()
    judged: list[Slot] = []
    put = Slots.put

    def noted(slots: Slots, slot: Slot, facts: SlotFacts | None) -> None:
        judged.append(slot)
        put(slots, slot, facts)

    monkeypatch.setattr(Slots, "put", noted)
    cluster.store.debug = False  # the comparison judges all
    await cluster.scale(web, 32)
    await cluster.work()
    assert set(judged) <= {31, 32}
    assert len(cluster.running(web)) == 32
