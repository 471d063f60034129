"""Updates whose new tasks die: none goes unseen, and start-first takes nothing down for them (features A8.06 to A8.10)."""

from __future__ import annotations

import pytest

from manager.model.defaults import insert_defaults, nanoseconds
from manager.model.tasks import running_since
from proto.objects_pb2 import (
    TASK_STATE_RUNNING,
    UPDATE_STATE_COMPLETED,
    UPDATE_STATE_PAUSED,
    UPDATE_STATE_ROLLBACK_COMPLETED,
    UPDATE_STATE_UPDATING,
)
from proto.specs_pb2 import (
    FAILURE_ACTION_CONTINUE,
    FAILURE_ACTION_PAUSE,
    FAILURE_ACTION_ROLLBACK,
    UPDATE_ORDER_START_FIRST,
    FailureAction,
    ServiceSpec,
)
from tests.unit.loop.harness import Change, Harness
from tests.unit.loop.rollouts import fail_new, image_of, images, running_v1, to_image

BOTH_LEADERS = pytest.mark.parametrize("leader_changes", [False, True])


async def go_on(
    cluster: Harness, service_id: str, seconds: int, *, lives_s: float, leader_changes: bool = False, each_s: float = 1
) -> None:
    """Let time pass in which every task of image v2 ends with an error after so many seconds."""
    until = cluster.now + seconds
    while cluster.now < until:
        await cluster.work()
        for task in cluster.running(service_id):
            since = running_since(task)
            assert since is not None
            if image_of(cluster, task) == "v2" and cluster.now - since >= lives_s:
                await cluster.fail(task)
        await cluster.work()
        if leader_changes:
            cluster.change_leader()
        cluster.now += each_s


@BOTH_LEADERS
@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize(
    ("action", "state"),
    [(FAILURE_ACTION_PAUSE, UPDATE_STATE_PAUSED), (FAILURE_ACTION_ROLLBACK, UPDATE_STATE_ROLLBACK_COMPLETED)],
)
async def test_a_delay_longer_than_the_monitor_window_hides_no_failure(
    action: FailureAction.ValueType, state: int, replicas: int, leader_changes: bool
) -> None:
    """The update waits 15 s anyhow; what dies after 8 s is seen, though the window is 5 s (A8.07)."""
    cluster, web = await running_v1(nodes=2, replicas=replicas)
    await cluster.update_service(web, to_image("v2", delay_s=15, monitor_s=5, action=action))
    await go_on(cluster, web, 90, lives_s=8, leader_changes=leader_changes)
    assert cluster.service(web).update_status.state == state
    assert images(cluster, web).count("v1") >= replicas - (action == FAILURE_ACTION_PAUSE)


@pytest.mark.parametrize(("dies_after_s", "state"), [(15, UPDATE_STATE_PAUSED), (18, UPDATE_STATE_COMPLETED)])
async def test_the_window_of_a_long_delay_ends_a_second_after_it(dies_after_s: float, state: int) -> None:
    cluster, web = await running_v1()
    await cluster.update_service(web, to_image("v2", delay_s=15, monitor_s=5))
    await go_on(cluster, web, 60, lives_s=dies_after_s)
    assert cluster.service(web).update_status.state == state


async def test_a_failure_counts_by_when_it_was_not_by_when_it_is_looked_at() -> None:
    """A leader that comes late sees that the task died within the window."""
    cluster, web = await running_v1()
    await cluster.update_service(web, to_image("v2", monitor_s=5))
    await cluster.wait(3)
    await fail_new(cluster, web, "v2")
    cluster.now += 20
    cluster.change_leader()
    await cluster.wait(2)
    assert cluster.service(web).update_status.state == UPDATE_STATE_PAUSED


# ---------------------------------------------------------------- start-first


def start_first(
    image: str, *, parallelism: int = 1, action: FailureAction.ValueType = FAILURE_ACTION_ROLLBACK
) -> Change:
    """Start-first, and with no word about rollbacks: these stop first, as Docker's do."""
    return to_image(image, order=UPDATE_ORDER_START_FIRST, parallelism=parallelism, action=action)


@BOTH_LEADERS
@pytest.mark.parametrize("replicas", [1, 3, None])
@pytest.mark.parametrize("parallelism", [1, 0])
@pytest.mark.parametrize("lives_s", [0.0, 0.5])
async def test_a_command_that_dies_at_once_takes_no_healthy_task_with_it(
    parallelism: int, replicas: int | None, lives_s: float, leader_changes: bool
) -> None:
    """The new task was RUNNING for an instant; rolled back, the very same tasks run as before (A8.09)."""
    cluster, web = await running_v1(nodes=2, replicas=replicas)
    before = {task.id for task in cluster.running(web)}
    await cluster.update_service(web, start_first("v2", parallelism=parallelism))
    await go_on(cluster, web, 20, lives_s=lives_s, leader_changes=leader_changes, each_s=0.25)
    assert cluster.service(web).update_status.state == UPDATE_STATE_ROLLBACK_COMPLETED
    assert {task.id for task in cluster.live(web)} == before
    assert {task.id for task in cluster.running(web)} == before


@pytest.mark.parametrize(("monitor_s", "wait_s"), [(5.0, 1.0), (0.4, 0.4)])
async def test_the_old_task_is_told_to_stop_when_the_new_one_has_been_up_for_a_second(
    monitor_s: float, wait_s: float
) -> None:
    """Or for the monitor window, where that is shorter."""
    cluster, web = await running_v1()
    (old,) = cluster.running(web)
    await cluster.update_service(web, to_image("v2", order=UPDATE_ORDER_START_FIRST, monitor_s=monitor_s))
    await cluster.work()
    assert images(cluster, web) == ["v1", "v2"]
    cluster.now += wait_s - 0.05
    await cluster.work()
    assert old.id in {task.id for task in cluster.running(web)}
    cluster.now += 0.1
    await cluster.work()
    assert images(cluster, web) == ["v2"]


async def test_parallelism_counts_slots_until_their_old_task_may_go() -> None:
    """Else all slots had two tasks within a second."""
    cluster, web = await running_v1(nodes=2, replicas=4)
    await cluster.update_service(web, start_first("v2"))
    most = 0
    for _ in range(60):
        await cluster.work()
        most = max(most, len(cluster.live(web)))
        cluster.now += 0.25
    assert most == 5
    assert images(cluster, web) == ["v2"] * 4


@BOTH_LEADERS
async def test_an_update_that_goes_on_past_failures_completes_beside_the_old_tasks(leader_changes: bool) -> None:
    """With ``continue`` the new tasks die and are tried again; the old ones serve until a new one stays up."""
    cluster, web = await running_v1(nodes=2, replicas=2)
    before = {task.id for task in cluster.running(web)}
    await cluster.update_service(web, start_first("v2", action=FAILURE_ACTION_CONTINUE))
    await go_on(cluster, web, 40, lives_s=0.5, leader_changes=leader_changes, each_s=0.25)
    assert cluster.service(web).update_status.state == UPDATE_STATE_COMPLETED
    assert before <= {task.id for task in cluster.running(web)}
    await cluster.wait(20)
    assert images(cluster, web) == ["v2", "v2"], "now they stay up"
    assert [task.status.state for task in cluster.live(web)] == [TASK_STATE_RUNNING] * 2


async def test_a_paused_start_first_update_leaves_the_old_task() -> None:
    cluster, web = await running_v1()
    (old,) = cluster.running(web)
    await cluster.update_service(web, start_first("v2", action=FAILURE_ACTION_PAUSE))
    await go_on(cluster, web, 20, lives_s=0.5, each_s=0.25)
    assert cluster.service(web).update_status.state == UPDATE_STATE_PAUSED
    assert old.id in {task.id for task in cluster.running(web)}


async def test_a_second_start_first_update_keeps_the_task_that_serves() -> None:
    """v2 was up for an instant when v3 came: v1 goes on until v3 stays up."""
    cluster, web = await running_v1()
    (old,) = cluster.running(web)
    await cluster.update_service(web, start_first("v2"))
    await cluster.work()
    await cluster.update_service(web, start_first("v3"))
    await cluster.settle()
    assert old.id in {task.id for task in cluster.running(web)}
    await cluster.wait(3)
    assert images(cluster, web) == ["v3"]
    assert cluster.service(web).update_status.state == UPDATE_STATE_UPDATING


async def test_rolled_back_by_hand_before_the_new_one_is_up_for_good() -> None:
    cluster, web = await running_v1()
    (old,) = cluster.running(web)
    await cluster.update_service(web, start_first("v2"))
    await cluster.work()
    await cluster.roll_back_service(web)
    await cluster.wait(3)
    assert [task.id for task in cluster.live(web)] == [old.id]


async def test_attempts_used_up_leave_the_old_task_and_end_the_update() -> None:
    cluster = await Harness.started(nodes=1)

    def twice(spec: ServiceSpec) -> None:
        to_image("v1")(spec)
        spec.task_template.restart_policy.max_attempts = 2
        spec.task_template.restart_policy.delay_ns = nanoseconds(1)

    web = await cluster.create_service("web", change=twice)
    await cluster.work()
    (old,) = cluster.running(web)
    await cluster.update_service(web, start_first("v2", action=FAILURE_ACTION_CONTINUE))
    await go_on(cluster, web, 30, lives_s=0.5, each_s=0.25)
    assert cluster.service(web).update_status.state == UPDATE_STATE_COMPLETED
    assert [task.id for task in cluster.live(web)] == [old.id]


async def test_two_tasks_on_a_node_of_a_global_service_are_looked_at_once() -> None:
    """While the new one starts, and while an update that is paused leaves both, there is nothing to do."""
    cluster, web = await running_v1(nodes=3, replicas=None)
    await cluster.update_service(web, start_first("v2"))
    assert await cluster.settle() < 10
    cluster.change_leader()
    assert await cluster.settle() < 10
    assert len(cluster.live(web)) == 4


# ---------------------------------------------------------------- updates that change nothing


def nothing(_spec: ServiceSpec) -> None:
    """What ``docker service update`` without options asks for."""


def defaults_written_out(spec: ServiceSpec) -> None:
    spec.CopyFrom(insert_defaults(spec))


@BOTH_LEADERS
@pytest.mark.parametrize("change", [nothing, defaults_written_out])
async def test_an_update_that_changes_nothing_leaves_a_paused_one_paused(change: Change, leader_changes: bool) -> None:
    """And the way back with it: a rollback afterwards goes to the spec that was good."""
    cluster, web = await running_v1(nodes=2, replicas=3)
    await cluster.update_service(web, to_image("v2", delay_s=4))
    await cluster.work(rounds=3)
    await fail_new(cluster, web, "v2")
    await cluster.wait(3)
    paused = cluster.service(web)
    assert paused.update_status.state == UPDATE_STATE_PAUSED
    await cluster.update_service(web, change)
    if leader_changes:
        cluster.change_leader()
    await cluster.wait(30)
    assert cluster.service(web).update_status == paused.update_status
    assert images(cluster, web) == ["v1", "v1", "v2"]
    await cluster.roll_back_service(web)
    await cluster.wait(30)
    assert images(cluster, web) == ["v1"] * 3


async def test_an_update_that_changes_nothing_does_not_disturb_the_one_under_way() -> None:
    """It still knows its tasks: one that fails is counted."""
    cluster, web = await running_v1(nodes=2, replicas=2)
    await cluster.update_service(web, to_image("v2", delay_s=3, action=FAILURE_ACTION_ROLLBACK))
    await cluster.work()
    await cluster.update_service(web, nothing)
    await fail_new(cluster, web, "v2")
    await cluster.wait(30)
    assert cluster.service(web).update_status.state == UPDATE_STATE_ROLLBACK_COMPLETED
    assert images(cluster, web) == ["v1"] * 2
