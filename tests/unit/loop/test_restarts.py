"""Restart policy, lost nodes, and all of it across a change of leader (features A8.01 to A8.03, D07 to D11, X16, X17)."""

from __future__ import annotations

import asyncio

import pytest

from manager.model.defaults import nanoseconds
from proto.objects_pb2 import (
    NODE_STATE_DOWN,
    NODE_STATE_READY,
    NODE_STATE_UNKNOWN,
    TASK_STATE_COMPLETE,
    TASK_STATE_FAILED,
    TASK_STATE_READY,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
)
from proto.specs_pb2 import (
    NODE_AVAILABILITY_DRAIN,
    RESTART_CONDITION_NONE,
    RESTART_CONDITION_ON_FAILURE,
    RestartCondition,
    ServiceSpec,
)
from tests.unit.loop.harness import Change, Harness


def policy(
    *,
    condition: RestartCondition.ValueType | None = None,
    delay_s: float | None = None,
    max_attempts: int = 0,
    window_s: float = 0,
) -> Change:
    def change(spec: ServiceSpec) -> None:
        restart = spec.task_template.restart_policy
        if condition is not None:
            restart.condition = condition
        if delay_s is not None:
            restart.delay_ns = nanoseconds(delay_s)
        if max_attempts:
            restart.max_attempts = max_attempts
        if window_s:
            restart.window_ns = nanoseconds(window_s)

    return change


@pytest.mark.parametrize("leader_changes", [False, True])
async def test_a_failed_task_is_replaced_after_the_delay(leader_changes: bool) -> None:
    """Features A8.02: held at READY meanwhile, in the same slot under a new ID (A6.03, D11)."""
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", replicas=2)
    await cluster.work()
    failed = cluster.running(web)[0]
    await cluster.fail(failed, exit_code=137)
    await cluster.work()
    (replacement,) = cluster.held(web)
    assert replacement.slot == failed.slot
    assert replacement.id != failed.id
    assert replacement.status.state == TASK_STATE_READY
    await cluster.wait(4)
    if leader_changes:
        cluster.change_leader()
    await cluster.settle()
    assert cluster.held(web) == cluster.held(web) != []
    await cluster.wait(1)
    assert len(cluster.running(web)) == 2
    assert cluster.store.view.tasks.get(failed.id).desired_state == TASK_STATE_SHUTDOWN  # type: ignore[union-attr]


@pytest.mark.parametrize("leader_changes", [False, True])
async def test_a_clock_that_was_ahead_holds_no_task_back(leader_changes: bool) -> None:
    """A leader's clock is set back by two hours, or the next leader's never was ahead."""
    cluster = await Harness.started(nodes=1)
    web = await cluster.create_service("web", change=policy(delay_s=30))
    await cluster.work()
    cluster.now += 7200
    await cluster.fail(cluster.running(web)[0])
    await cluster.work()
    assert len(cluster.held(web)) == 1
    cluster.now -= 7200
    if leader_changes:
        cluster.change_leader()
    await asyncio.wait_for(cluster.loop._wait(), 10)  # it is time at once
    await cluster.wait(1)
    assert len(cluster.running(web)) == 1
    await cluster.fail(cluster.running(web)[0])
    await cluster.wait(29)
    assert len(cluster.held(web)) == 1, "the next delay is the usual one"
    await cluster.wait(1)
    assert len(cluster.running(web)) == 1


async def test_managers_whose_clocks_differ_a_little_keep_the_delay() -> None:
    cluster = await Harness.started(nodes=1)
    web = await cluster.create_service("web", change=policy(delay_s=30))
    await cluster.work()
    await cluster.fail(cluster.running(web)[0])
    await cluster.work()
    cluster.now -= 5
    cluster.change_leader()
    await cluster.wait(34)
    assert len(cluster.held(web)) == 1
    await cluster.wait(1)
    assert len(cluster.running(web)) == 1


async def test_many_changes_of_leader_restart_once() -> None:
    """X16."""
    cluster = await Harness.started(nodes=1)
    web = await cluster.create_service("web", change=policy(delay_s=30))
    await cluster.work()
    await cluster.fail(cluster.running(web)[0])
    for _ in range(29):
        cluster.change_leader()
        await cluster.wait(1)
        assert len(cluster.tasks(web)) == 2
    await cluster.wait(1)
    assert len(cluster.running(web)) == 1


async def test_failing_during_the_delay_waits_the_delay_out() -> None:
    """Features A8.02: an image that does not exist must not make a tight loop."""
    cluster = await Harness.started(nodes=1)
    web = await cluster.create_service("web")
    await cluster.work()
    await cluster.fail(cluster.running(web)[0])
    await cluster.work()
    await cluster.fail(cluster.held(web)[0])
    await cluster.wait(4)
    assert len(cluster.tasks(web)) == 2
    await cluster.wait(1)
    assert len(cluster.tasks(web)) == 3
    await cluster.wait(5)
    assert len(cluster.running(web)) == 1


@pytest.mark.parametrize("leader_changes", [False, True])
async def test_max_attempts(leader_changes: bool) -> None:
    """Features A8.03: two attempts make three tasks; the count survives the leader (X17)."""
    cluster = await Harness.started(nodes=1)
    web = await cluster.create_service("web", change=policy(max_attempts=2, delay_s=1))
    for _ in range(5):
        await cluster.wait(3)
        if leader_changes:
            cluster.change_leader()
        for task in cluster.running(web):
            await cluster.fail(task)
    await cluster.wait(30)
    assert [task.status.state for task in cluster.tasks(web)] == [TASK_STATE_FAILED] * 3
    assert cluster.live(web) == []


async def test_attempts_outside_the_window_are_forgotten() -> None:
    cluster = await Harness.started(nodes=1)
    web = await cluster.create_service("web", change=policy(max_attempts=2, delay_s=1, window_s=10))
    await cluster.work()
    for _ in range(6):
        await cluster.fail(cluster.running(web)[0])
        await cluster.wait(20)
        assert len(cluster.running(web)) == 1
    for _ in range(2):
        await cluster.fail(cluster.running(web)[0])
        await cluster.wait(2)
    await cluster.fail(cluster.running(web)[0])
    await cluster.wait(30)
    assert cluster.live(web) == []


async def test_a_new_version_clears_the_count() -> None:
    cluster = await Harness.started(nodes=1)
    web = await cluster.create_service("web", change=policy(max_attempts=1, delay_s=1))
    for _ in range(3):
        await cluster.wait(3)
        for task in cluster.running(web):
            await cluster.fail(task)
    assert cluster.live(web) == []

    def change(spec: ServiceSpec) -> None:
        spec.task_template.force_update += 1

    await cluster.update_service(web, change)
    await cluster.wait(3)
    (task,) = cluster.running(web)
    await cluster.fail(task)
    await cluster.wait(3)
    assert len(cluster.running(web)) == 1


@pytest.mark.parametrize(
    ("condition", "ending", "live"),
    [
        (RESTART_CONDITION_NONE, TASK_STATE_FAILED, 0),
        (RESTART_CONDITION_NONE, TASK_STATE_COMPLETE, 0),
        (RESTART_CONDITION_ON_FAILURE, TASK_STATE_FAILED, 1),
        (RESTART_CONDITION_ON_FAILURE, TASK_STATE_COMPLETE, 0),
        (None, TASK_STATE_COMPLETE, 1),
    ],
)
async def test_conditions(condition: RestartCondition.ValueType | None, ending: int, live: int) -> None:
    """Features A8.01."""
    cluster = await Harness.started(nodes=1)
    web = await cluster.create_service("web", change=policy(condition=condition))
    await cluster.work()
    await cluster.report(
        cluster.running(web)[0].id, TASK_STATE_FAILED if ending == TASK_STATE_FAILED else TASK_STATE_COMPLETE
    )
    await cluster.wait(20)
    cluster.change_leader()
    await cluster.wait(20)
    assert len(cluster.live(web)) == live


async def test_tasks_of_a_node_that_is_down_run_elsewhere_at_once() -> None:
    """D07, and the issue: no restart delay, no wait for the old task."""
    cluster = await Harness.started(nodes=3)
    web = await cluster.create_service("web", replicas=6)
    await cluster.work()
    await cluster.set_node("n1", state=NODE_STATE_DOWN)
    await cluster.work()
    assert len(cluster.running(web)) == 6
    assert cluster.per_node(web) == {"n2": 3, "n3": 3}


async def test_a_worker_that_comes_back_drops_what_was_replaced() -> None:
    """D08: and gets no new work unless it is needed."""
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", replicas=2)
    await cluster.work()
    await cluster.set_node("n1", state=NODE_STATE_DOWN)
    await cluster.work()
    await cluster.set_node("n1", state=NODE_STATE_READY)
    await cluster.work()
    assert cluster.per_node(web) == {"n2": 2}
    (old,) = [task for task in cluster.tasks(web) if task.node_id == "n1"]
    assert old.status.state == TASK_STATE_SHUTDOWN


async def test_node_loss_is_no_attempt() -> None:
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", change=policy(max_attempts=1))
    await cluster.work()
    for _ in range(4):
        name = cluster.running(web)[0].node_id
        await cluster.set_node(name, state=NODE_STATE_DOWN)
        await cluster.work()
        await cluster.set_node(name, state=NODE_STATE_READY)
        await cluster.work()
        assert len(cluster.running(web)) == 1


async def test_drain_moves_tasks_without_delay_once_they_stopped() -> None:
    """Features A4.03."""
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", replicas=2)
    await cluster.work()
    await cluster.set_node("n1", availability=NODE_AVAILABILITY_DRAIN)
    await cluster.settle()
    (replacement,) = cluster.held(web)
    assert replacement.node_id == "n2"
    assert not replacement.HasField("not_before")
    await cluster.work()
    assert cluster.per_node(web) == {"n2": 2}
    assert len(cluster.running(web)) == 2


async def test_a_task_that_does_not_stop_is_waited_for_one_minute() -> None:
    """Features A3.12."""
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", replicas=2)
    await cluster.work()
    (stubborn,) = [task for task in cluster.running(web) if task.node_id == "n1"]
    cluster.refuses_to_stop.add(stubborn.id)
    await cluster.set_node("n1", availability=NODE_AVAILABILITY_DRAIN)
    await cluster.wait(30)
    cluster.change_leader()
    await cluster.wait(29)
    assert len(cluster.held(web)) == 1
    await cluster.wait(1)
    assert len(cluster.running(web)) == 2


async def test_the_minute_for_a_task_that_does_not_stop_begins_once() -> None:
    """Its replacement is lost while it waits: the next one waits for what is left of the minute."""
    cluster = await Harness.started(nodes=3)
    web = await cluster.create_service("web")
    await cluster.work()
    (stubborn,) = cluster.running(web)
    cluster.refuses_to_stop.add(stubborn.id)
    await cluster.set_node(stubborn.node_id, availability=NODE_AVAILABILITY_DRAIN)
    await cluster.wait(40)
    (held,) = cluster.held(web)
    await cluster.set_node(held.node_id, state=NODE_STATE_DOWN)
    await cluster.wait(19)
    (second,) = cluster.held(web)
    assert second.id != held.id
    await cluster.wait(1)
    assert [task.id for task in cluster.running(web)] == [second.id]


@pytest.mark.parametrize("leader_changes", [False, True])
async def test_a_clock_that_was_ahead_waits_for_no_task_that_does_not_stop(leader_changes: bool) -> None:
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web")
    await cluster.work()
    (stubborn,) = cluster.running(web)
    cluster.refuses_to_stop.add(stubborn.id)
    cluster.now += 7200
    await cluster.set_node(stubborn.node_id, availability=NODE_AVAILABILITY_DRAIN)
    await cluster.work()
    assert len(cluster.held(web)) == 1
    cluster.now -= 7200
    if leader_changes:
        cluster.change_leader()
    await cluster.wait(60)
    assert len(cluster.running(web)) == 1


async def test_a_task_that_had_finished_when_its_node_was_lost_is_not_run_again() -> None:
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", change=policy(condition=RESTART_CONDITION_ON_FAILURE))
    await cluster.work()
    (task,) = cluster.running(web)
    await cluster.report(task.id, TASK_STATE_COMPLETE)
    await cluster.set_node(task.node_id, state=NODE_STATE_DOWN)
    await cluster.wait(20)
    assert cluster.live(web) == []


async def test_a_drained_node_that_goes_down_is_waited_for_no_longer() -> None:
    """A host that is switched off right after the drain: nobody will tell that its task has stopped."""
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web")
    await cluster.work()
    (task,) = cluster.running(web)
    cluster.refuses_to_stop.add(task.id)
    await cluster.set_node(task.node_id, availability=NODE_AVAILABILITY_DRAIN)
    await cluster.work()
    assert len(cluster.held(web)) == 1
    await cluster.set_node(task.node_id, state=NODE_STATE_DOWN)
    await cluster.work()
    assert len(cluster.running(web)) == 1


async def test_unknown_nodes_keep_their_tasks() -> None:
    """Features A3.02: after a change of leader nodes are UNKNOWN until they are heard of."""
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", replicas=2)
    await cluster.work()
    before = [task.id for task in cluster.tasks(web)]
    for name in ("n1", "n2"):
        await cluster.set_node(name, state=NODE_STATE_UNKNOWN)
    cluster.change_leader()
    await cluster.wait(20)
    assert [task.id for task in cluster.tasks(web)] == before
    assert all(task.status.state == TASK_STATE_RUNNING for task in cluster.tasks(web))


async def test_a_node_where_a_service_keeps_failing_comes_last() -> None:
    """Features A3.11."""
    cluster = await Harness.started(nodes=3)
    web = await cluster.create_service("web", replicas=3, change=policy(delay_s=1))
    await cluster.work()
    for _ in range(12):
        for task in cluster.running(web):
            if task.node_id == "n1":
                await cluster.fail(task)
        await cluster.wait(2)
    assert "n1" not in cluster.per_node(web)
    await cluster.wait(400, every=50)
    await cluster.scale(web, 4)
    await cluster.work()
    assert cluster.per_node(web)["n1"] == 1


@pytest.mark.parametrize("replicas", [1, None])
async def test_a_task_that_constraints_reject_uses_up_no_attempt(replicas: int | None) -> None:
    """It did not fail: a label that comes and goes must not end the service."""
    cluster = await Harness.started()
    await cluster.add_node("n1", labels={"zone": "a"})

    def change(spec: ServiceSpec) -> None:
        policy(delay_s=1, max_attempts=1)(spec)
        spec.task_template.placement.constraints.append("node.labels.zone==a")

    web = await cluster.create_service("web", replicas=replicas, change=change)
    await cluster.work()
    for _ in range(3):
        await cluster.set_node("n1", labels={})
        await cluster.wait(5)
        assert cluster.running(web) == []
        await cluster.set_node("n1", labels={"zone": "a"})
        await cluster.wait(5)
        assert len(cluster.running(web)) == 1
