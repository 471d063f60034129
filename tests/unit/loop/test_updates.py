"""Rolling updates and rollbacks (features A8.04 to A8.12), each also with the leader changing all the time (D05)."""

from __future__ import annotations

import pytest

from manager.model.defaults import PROGRESS_DEADLINE_LABEL, nanoseconds
from proto.objects_pb2 import (
    NODE_STATE_DOWN,
    NODE_STATE_READY,
    TASK_STATE_PREPARING,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    TASK_STATE_STARTING,
    UPDATE_STATE_COMPLETED,
    UPDATE_STATE_PAUSED,
    UPDATE_STATE_ROLLBACK_COMPLETED,
    UPDATE_STATE_ROLLBACK_PAUSED,
    UPDATE_STATE_ROLLBACK_STARTED,
    UPDATE_STATE_UPDATING,
    Config,
    Secret,
    TaskState,
)
from proto.specs_pb2 import (
    FAILURE_ACTION_CONTINUE,
    FAILURE_ACTION_PAUSE,
    FAILURE_ACTION_ROLLBACK,
    NODE_AVAILABILITY_ACTIVE,
    NODE_AVAILABILITY_PAUSE,
    RESTART_CONDITION_NONE,
    UPDATE_ORDER_START_FIRST,
    UPDATE_ORDER_STOP_FIRST,
    FailureAction,
    ServiceSpec,
    UpdateOrder,
)
from tests.unit.loop.harness import Change, Harness
from tests.unit.loop.rollouts import fail_new, image_of, images, running_v1, to_image


def one_a_node(spec: ServiceSpec) -> None:
    to_image("v1")(spec)
    spec.task_template.placement.max_replicas = 1


@pytest.mark.parametrize("leader_changes", [False, True])
@pytest.mark.parametrize("order", [UPDATE_ORDER_STOP_FIRST, UPDATE_ORDER_START_FIRST])
async def test_rolling_update_one_at_a_time(leader_changes: bool, order: UpdateOrder.ValueType) -> None:
    cluster, web = await running_v1(nodes=3, replicas=4)
    started_at = cluster.now
    await cluster.update_service(web, to_image("v2", delay_s=10, order=order))
    seen_running = []
    while cluster.service(web).update_status.state != UPDATE_STATE_COMPLETED:
        await cluster.settle()
        seen_running.append(len(cluster.running(web)))
        await cluster.work()
        seen_running.append(len(cluster.running(web)))
        if leader_changes:
            cluster.change_leader()
        cluster.now += 1
        assert cluster.now < started_at + 120
    assert images(cluster, web) == ["v2"] * 4
    # Four delays, and a tail of the delay and a second, because the monitor window is shorter than the delay.
    assert cluster.now - started_at == pytest.approx(51, abs=4)
    assert min(seen_running) == (4 if order == UPDATE_ORDER_START_FIRST else 3)
    assert cluster.service(web).update_status.message == "update completed"
    assert cluster.service(web).update_status.HasField("completed_at")


async def test_a_clock_that_was_ahead_holds_no_update_up() -> None:
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", replicas=3)
    await cluster.work()
    cluster.now += 7200
    await cluster.update_service(web, to_image("two"))
    await cluster.work()
    cluster.now -= 7200
    await cluster.wait(60)
    assert images(cluster, web) == ["two"] * 3
    assert cluster.service(web).update_status.state == UPDATE_STATE_COMPLETED


async def test_parallelism() -> None:
    """Features A8.04: 6 replicas by 2 keep 4 running."""
    cluster, web = await running_v1(nodes=3, replicas=6)
    await cluster.update_service(web, to_image("v2", parallelism=2))
    fewest = 6
    for _ in range(12):
        await cluster.settle()
        stopping = [task for task in cluster.tasks(web) if task.desired_state == TASK_STATE_SHUTDOWN]
        running_on = [task for task in stopping if task.status.state == TASK_STATE_RUNNING]
        fewest = min(fewest, 6 - len(running_on))
        await cluster.obey()
    assert fewest == 4
    await cluster.wait(10)
    assert images(cluster, web) == ["v2"] * 6


async def test_parallelism_zero_is_all_at_once() -> None:
    cluster, web = await running_v1(nodes=3, replicas=6)
    await cluster.update_service(web, to_image("v2", parallelism=0))
    await cluster.settle()
    assert len(cluster.held(web)) == 6
    assert cluster.service(web).update_status.state == UPDATE_STATE_UPDATING
    assert cluster.service(web).update_status.message == "update in progress"


async def test_stop_first_waits_for_the_old_task() -> None:
    cluster, web = await running_v1()
    old = cluster.running(web)[0]
    cluster.refuses_to_stop.add(old.id)
    await cluster.update_service(web, to_image("v2"))
    await cluster.wait(59)
    assert cluster.running(web) == []
    await cluster.wait(1)
    assert images(cluster, web) == ["v2"]


@pytest.mark.parametrize("leader_changes", [False, True])
async def test_failure_pauses(leader_changes: bool) -> None:
    cluster, web = await running_v1(nodes=2, replicas=4)
    await cluster.update_service(web, to_image("v2"))
    await cluster.work(rounds=2)
    (new,) = [task for task in cluster.live(web) if image_of(cluster, task) == "v2"]
    await cluster.fail(new)
    if leader_changes:
        cluster.change_leader()
    await cluster.wait(30)
    status = cluster.service(web).update_status
    assert status.state == UPDATE_STATE_PAUSED
    assert status.message == f"update paused due to failure or early termination of task {new.id}"
    assert images(cluster, web) == ["v1", "v1", "v1", "v2"], "the failed one is restarted, the others stay"


@pytest.mark.parametrize("leader_changes", [False, True])
async def test_failure_rolls_back(leader_changes: bool) -> None:
    """Features A8.06."""
    cluster, web = await running_v1(nodes=2, replicas=4)
    untouched = {task.id for task in cluster.tasks(web)}
    await cluster.update_service(web, to_image("v2", action=FAILURE_ACTION_ROLLBACK, delay_s=5))
    states = set()
    for _ in range(40):
        await cluster.work()
        states.add(cluster.service(web).update_status.state)
        await fail_new(cluster, web, "v2")
        if leader_changes:
            cluster.change_leader()
        await cluster.wait(1)
    service = cluster.service(web)
    assert service.update_status.state == UPDATE_STATE_ROLLBACK_COMPLETED
    assert service.update_status.message == "rollback completed"
    assert UPDATE_STATE_UPDATING in states
    assert UPDATE_STATE_ROLLBACK_STARTED in states
    assert service.spec.task_template.container_spec.image == "v1"
    assert not service.HasField("previous_spec")
    assert images(cluster, web) == ["v1"] * 4
    assert len(untouched & {task.id for task in cluster.running(web)}) >= 2, "what was as it should be was not touched"


async def test_a_rollback_is_never_rolled_back() -> None:
    cluster, web = await running_v1(nodes=2, replicas=2)
    await cluster.update_service(web, to_image("v2", action=FAILURE_ACTION_ROLLBACK, parallelism=0))
    for _ in range(60):
        await cluster.work()
        for task in cluster.running(web):
            if task.spec_version > 1:
                await cluster.fail(task)
        await cluster.wait(1)
    assert cluster.service(web).update_status.state == UPDATE_STATE_ROLLBACK_PAUSED
    assert cluster.service(web).update_status.message.startswith("rollback paused due to failure")


async def test_rollback_without_a_previous_spec_pauses() -> None:
    cluster, web = await running_v1()
    await cluster.update_service(web, to_image("v2", action=FAILURE_ACTION_ROLLBACK))
    service = cluster.service(web)
    changed = type(service)()
    changed.CopyFrom(service)
    changed.ClearField("previous_spec")
    await cluster.store.update(lambda working: working.update(changed))
    await cluster.work(rounds=3)
    await fail_new(cluster, web, "v2")
    await cluster.wait(3)
    assert cluster.service(web).update_status.state == UPDATE_STATE_PAUSED


async def test_continue_goes_on_past_failures() -> None:
    cluster, web = await running_v1(nodes=2, replicas=3)
    await cluster.update_service(web, to_image("v2", action=FAILURE_ACTION_CONTINUE))
    for _ in range(3):
        await cluster.work(rounds=3)
        await fail_new(cluster, web, "v2")
    await cluster.wait(30)
    assert cluster.service(web).update_status.state == UPDATE_STATE_COMPLETED
    assert images(cluster, web) == ["v2"] * 3


@pytest.mark.parametrize(("failures", "state"), [(2, UPDATE_STATE_COMPLETED), (3, UPDATE_STATE_PAUSED)])
async def test_failure_ratio(failures: int, state: int) -> None:
    """Features A8.08: half of four slots may fail, more may not."""
    cluster, web = await running_v1(nodes=2, replicas=4)
    await cluster.update_service(web, to_image("v2", ratio=0.5, delay_s=2))
    failed = 0
    for _ in range(60):
        await cluster.work()
        cluster.change_leader()
        fresh = [t for t in cluster.running(web) if image_of(cluster, t) == "v2" and not t.restart_history.attempts]
        if fresh and failed < failures:
            await cluster.fail(fresh[0])
            failed += 1
        await cluster.wait(1)
    assert cluster.service(web).update_status.state == state


@pytest.mark.parametrize(("dies_after_s", "state"), [(3, UPDATE_STATE_PAUSED), (8, UPDATE_STATE_COMPLETED)])
async def test_monitor_window(dies_after_s: int, state: int) -> None:
    """Features A8.07."""
    cluster, web = await running_v1()
    await cluster.update_service(web, to_image("v2", monitor_s=5))
    await cluster.wait(dies_after_s)
    await fail_new(cluster, web, "v2")
    cluster.change_leader()
    await cluster.wait(30)
    assert cluster.service(web).update_status.state == state


async def test_a_new_update_takes_over_from_a_running_one() -> None:
    """Features A8.12."""
    cluster, web = await running_v1(nodes=2, replicas=4)
    await cluster.update_service(web, to_image("v2", delay_s=5))
    await cluster.wait(6)
    assert images(cluster, web) == ["v1", "v1", "v2", "v2"]
    await cluster.update_service(web, to_image("v3"))
    await cluster.wait(20)
    assert images(cluster, web) == ["v3"] * 4
    assert cluster.service(web).update_status.state == UPDATE_STATE_COMPLETED


async def test_back_to_the_first_spec_keeps_the_tasks_that_have_it() -> None:
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", replicas=4, change=to_image("v1", delay_s=5))
    await cluster.work()
    first = {task.id for task in cluster.tasks(web)}
    await cluster.update_service(web, to_image("v2", delay_s=5))
    await cluster.wait(6)
    kept = {task.id for task in cluster.running(web)} & first
    await cluster.update_service(web, to_image("v1", delay_s=5))
    await cluster.wait(60)
    assert images(cluster, web) == ["v1"] * 4
    assert kept <= {task.id for task in cluster.running(web)}


async def test_an_update_without_dirty_tasks_shows_no_status() -> None:
    cluster, web = await running_v1()
    await cluster.update_service(web, to_image("v1", delay_s=7))
    await cluster.wait(10)
    assert not cluster.service(web).HasField("update_status")


async def test_start_first_keeps_the_old_task_when_the_new_one_never_runs() -> None:
    """Features A8.09."""
    cluster = await Harness.started(nodes=1)

    def first(spec: ServiceSpec) -> None:
        to_image("v1")(spec)
        spec.task_template.restart_policy.max_attempts = 1
        spec.task_template.restart_policy.delay_ns = nanoseconds(1)

    web = await cluster.create_service("web", change=first)
    await cluster.work()
    (old,) = cluster.running(web)
    await cluster.update_service(web, to_image("v2", order=UPDATE_ORDER_START_FIRST, action=FAILURE_ACTION_CONTINUE))
    for _ in range(30):
        await cluster.settle()
        for task in cluster.live(web):
            if image_of(cluster, task) == "v2":
                await cluster.fail(task)
        cluster.now += 1
    await cluster.wait(10)
    assert [task.id for task in cluster.running(web)] == [old.id]
    assert len([task for task in cluster.tasks(web) if image_of(cluster, task) == "v2"]) <= 3


async def test_global_services_update_node_by_node() -> None:
    cluster = await Harness.started(nodes=3)
    agent = await cluster.create_service("agent", replicas=None, change=to_image("v1"))
    await cluster.work()
    await cluster.set_node("n3", availability=NODE_AVAILABILITY_PAUSE)
    await cluster.update_service(agent, to_image("v2", delay_s=5))
    await cluster.work()
    assert images(cluster, agent) == ["v1", "v1", "v2"]
    cluster.change_leader()
    await cluster.wait(6)
    assert images(cluster, agent) == ["v1", "v2", "v2"]
    await cluster.wait(30)
    assert cluster.service(agent).update_status.state == UPDATE_STATE_COMPLETED


async def test_a_node_lost_in_the_middle_does_not_stop_the_update() -> None:
    cluster, web = await running_v1(nodes=3, replicas=6)
    await cluster.update_service(web, to_image("v2", delay_s=3))
    await cluster.wait(4)
    await cluster.set_node("n1", state=NODE_STATE_DOWN)
    cluster.change_leader()
    await cluster.wait(60)
    assert images(cluster, web) == ["v2"] * 6
    assert cluster.service(web).update_status.state == UPDATE_STATE_COMPLETED


async def test_finished_tasks_are_brought_up_to_date_too() -> None:
    """A service whose tasks are done is run again by an update (swarmkit: UpdatableTasksInSlot)."""
    cluster = await Harness.started(nodes=1)

    def once(spec: ServiceSpec) -> None:
        to_image("v1")(spec)
        spec.task_template.restart_policy.condition = RESTART_CONDITION_NONE

    web = await cluster.create_service("web", change=once)
    await cluster.work()
    await cluster.fail(cluster.running(web)[0])
    await cluster.wait(10)
    assert cluster.live(web) == []
    await cluster.update_service(web, to_image("v2"))
    await cluster.work()
    assert images(cluster, web) == ["v2"]


async def test_a_node_that_was_paused_is_brought_up_to_date_when_active() -> None:
    cluster = await Harness.started(nodes=2)
    agent = await cluster.create_service("agent", replicas=None, change=to_image("v1"))
    await cluster.work()
    for name in ("n1", "n2"):
        await cluster.set_node(name, availability=NODE_AVAILABILITY_PAUSE)
    await cluster.update_service(agent, to_image("v2"))
    await cluster.wait(10)
    assert images(cluster, agent) == ["v1", "v1"]
    for name in ("n1", "n2"):
        await cluster.set_node(name, availability=NODE_AVAILABILITY_ACTIVE)
    await cluster.wait(10)
    assert images(cluster, agent) == ["v2", "v2"]


async def test_scaling_in_the_middle_does_not_take_down_a_second_slot() -> None:
    cluster, web = await running_v1(nodes=3, replicas=4)
    await cluster.update_service(web, to_image("v2"))
    await cluster.settle()
    assert len(cluster.held(web)) == 1
    await cluster.scale(web, 5)
    await cluster.settle()
    assert len(cluster.held(web)) == 1, "the slot that is being replaced still counts"
    await cluster.wait(20)
    assert images(cluster, web) == ["v2"] * 5


async def test_a_second_update_still_waits_for_the_first_task_to_stop() -> None:
    """Stop-first: what the first update told to stop runs on, what it made never ran."""
    cluster, web = await running_v1(nodes=2)
    (old,) = cluster.running(web)
    cluster.refuses_to_stop.add(old.id)
    await cluster.update_service(web, to_image("v2"))
    await cluster.work()
    await cluster.update_service(web, to_image("v3"))
    await cluster.wait(20)
    assert cluster.running(web) == []
    cluster.change_leader()
    await cluster.wait(1)
    assert cluster.running(web) == []
    cluster.refuses_to_stop.clear()
    await cluster.work()
    assert images(cluster, web) == ["v3"]


async def test_a_restart_in_an_update_still_waits_for_the_old_task_to_stop() -> None:
    cluster, web = await running_v1(nodes=2)
    (old,) = cluster.running(web)
    cluster.refuses_to_stop.add(old.id)
    await cluster.update_service(web, to_image("v2"))
    await cluster.work()
    await cluster.fail(cluster.held(web)[0])
    await cluster.wait(30)
    assert cluster.running(web) == []
    await cluster.wait(31)
    assert images(cluster, web) == ["v2"], "a minute after the old one was told to stop"


async def test_an_update_begins_with_the_slot_that_does_not_run() -> None:
    """Else it takes a slot down while another one is."""
    cluster, web = await running_v1(nodes=2, replicas=4)
    (third,) = [task for task in cluster.running(web) if task.slot == 3]
    await cluster.fail(third)
    await cluster.settle()
    await cluster.update_service(web, to_image("v2"))
    await cluster.settle()
    assert {task.slot for task in cluster.running(web)} == {1, 2, 4}
    await cluster.wait(20)
    assert images(cluster, web) == ["v2"] * 4


async def test_a_slot_that_finds_no_node_does_not_keep_the_others_from_the_update() -> None:
    cluster = await Harness.started(nodes=2)

    web = await cluster.create_service("web", replicas=3, change=one_a_node)
    await cluster.work()
    await cluster.set_node("n2", state=NODE_STATE_DOWN)
    await cluster.work()
    await cluster.add_node("n3")
    await cluster.work()
    assert len(cluster.running(web)) == 2
    await cluster.update_service(web, to_image("v2"))
    await cluster.wait(30)
    assert images(cluster, web) == ["v2", "v2"]
    await cluster.set_node("n2", state=NODE_STATE_READY)
    await cluster.wait(30)
    assert images(cluster, web) == ["v2"] * 3
    assert cluster.service(web).update_status.state == UPDATE_STATE_COMPLETED


async def test_a_node_removed_in_the_middle_is_no_failure() -> None:
    """Its tasks are ORPHANED, which says nothing about the new version."""
    cluster, web = await running_v1(nodes=3, replicas=3)
    await cluster.update_service(web, to_image("v2", delay_s=3))
    await cluster.work()
    (new,) = [task for task in cluster.running(web) if image_of(cluster, task) == "v2"]
    await cluster.remove_node(new.node_id)
    await cluster.wait(60)
    assert cluster.service(web).update_status.state == UPDATE_STATE_COMPLETED
    assert images(cluster, web) == ["v2"] * 3


async def test_an_update_that_goes_on_past_failures_keeps_no_list_of_them() -> None:
    cluster, web = await running_v1(replicas=3)
    await cluster.update_service(web, to_image("v2", action=FAILURE_ACTION_CONTINUE, parallelism=0))
    await cluster.work()
    assert await fail_new(cluster, web, "v2")
    await cluster.work()
    assert list(cluster.service(web).rollout.failed_task_ids) == []


async def test_a_node_paused_in_the_middle_keeps_the_task_it_was_given() -> None:
    """The update of its slot had begun: the old task is stopping already."""
    cluster = await Harness.started(nodes=1)
    agent = await cluster.create_service("agent", replicas=None, change=to_image("v1"))
    await cluster.work()
    (old,) = cluster.running(agent)
    cluster.refuses_to_stop.add(old.id)
    await cluster.update_service(agent, to_image("v2"))
    await cluster.work()
    await cluster.set_node("n1", availability=NODE_AVAILABILITY_PAUSE)
    cluster.refuses_to_stop.clear()
    await cluster.work()
    assert images(cluster, agent) == ["v2"]


@pytest.mark.parametrize("what", ["leader", "node"])
async def test_an_update_of_constraints_rolls_whatever_happens_meanwhile(what: str) -> None:
    """Tasks that wait for their turn are not rejected all at once for constraints that are newer than they."""
    cluster = await Harness.started()
    await cluster.add_node("n1", labels={"zone": "a"})
    await cluster.add_node("n2", labels={"zone": "b"})

    def in_zone(zone: str) -> Change:
        def change(spec: ServiceSpec) -> None:
            to_image("v1", delay_s=10)(spec)
            spec.task_template.placement.constraints[:] = [f"node.labels.zone=={zone}"]

        return change

    web = await cluster.create_service("web", replicas=4, change=in_zone("a"))
    await cluster.work()
    await cluster.update_service(web, in_zone("b"))
    await cluster.work()
    assert cluster.per_node(web) == {"n1": 3, "n2": 1}
    if what == "leader":
        cluster.change_leader()
    else:
        await cluster.set_node("n1", labels={"zone": "a", "rack": "1"})
    await cluster.work()
    assert cluster.per_node(web) == {"n1": 3, "n2": 1}
    assert len(cluster.running(web)) == 4
    await cluster.set_node("n1", labels={"zone": "c"})
    await cluster.wait(20)
    assert cluster.per_node(web) == {"n2": 4}, "neither old nor new constraints hold there"


@pytest.mark.parametrize("kind", ["secret", "config"])
async def test_a_rollback_to_what_is_gone_pauses_and_says_why(kind: str) -> None:
    cluster = await Harness.started(nodes=1)
    payload = Secret(id="gone") if kind == "secret" else Config(id="gone")
    payload.spec.name = "password"
    await cluster.store.update(lambda working: working.create(payload))

    def with_payload(spec: ServiceSpec) -> None:
        container = spec.task_template.container_spec
        if kind == "secret":
            container.secrets.add(secret_id="gone", secret_name="password")
        else:
            container.configs.add(config_id="gone", config_name="password")

    def without(spec: ServiceSpec) -> None:
        to_image("v2", action=FAILURE_ACTION_ROLLBACK)(spec)
        spec.task_template.container_spec.ClearField("secrets")
        spec.task_template.container_spec.ClearField("configs")

    web = await cluster.create_service("web", change=with_payload)
    await cluster.work()
    await cluster.update_service(web, without)
    await cluster.store.update(lambda working: working.remove(payload))
    await cluster.work()
    assert await fail_new(cluster, web, "v2")
    await cluster.wait(10)
    status = cluster.service(web).update_status
    assert status.state == UPDATE_STATE_PAUSED
    assert status.message.endswith(f"; the previous spec wants the {kind} password, which is gone")
    assert images(cluster, web) == ["v2"]


async def test_a_task_that_constraints_reject_is_no_failure_of_the_update() -> None:
    cluster = await Harness.started()
    await cluster.add_node("n1", labels={"zone": "a"})
    await cluster.add_node("n2", labels={"zone": "a"})

    def there(spec: ServiceSpec) -> None:
        to_image("v1")(spec)
        spec.task_template.placement.constraints.append("node.labels.zone==a")

    web = await cluster.create_service("web", replicas=4, change=there)
    await cluster.work()
    await cluster.update_service(web, to_image("v2"))
    await cluster.work()
    await cluster.set_node("n1", labels={})
    await cluster.wait(30)
    assert cluster.service(web).update_status.state == UPDATE_STATE_COMPLETED
    assert images(cluster, web) == ["v2"] * 4


async def test_a_task_that_lost_its_node_and_finds_no_other_does_not_stop_the_update() -> None:
    cluster = await Harness.started(nodes=3)

    web = await cluster.create_service("web", replicas=3, change=one_a_node)
    await cluster.work()

    def to_v2(spec: ServiceSpec) -> None:
        one_a_node(spec)
        to_image("v2", delay_s=5)(spec)

    await cluster.update_service(web, to_v2)
    await cluster.work()
    (new,) = [task for task in cluster.running(web) if image_of(cluster, task) == "v2"]
    await cluster.set_node(new.node_id, state=NODE_STATE_DOWN)
    await cluster.wait(60)
    assert images(cluster, web) == ["v2", "v2"]
    assert cluster.service(web).update_status.state == UPDATE_STATE_COMPLETED


def with_deadline(change: Change, deadline: str = "30s") -> Change:
    def changed(spec: ServiceSpec) -> None:
        change(spec)
        spec.labels[PROGRESS_DEADLINE_LABEL] = deadline

    return changed


def nowhere(spec: ServiceSpec) -> None:
    spec.task_template.placement.constraints.append("node.labels.there == no")


@pytest.mark.parametrize("leader_changes", [False, True])
@pytest.mark.parametrize("action", [FAILURE_ACTION_PAUSE, FAILURE_ACTION_ROLLBACK])
async def test_a_task_that_finds_no_node_in_time_fails_the_update(
    action: FailureAction.ValueType, leader_changes: bool
) -> None:
    """Features A8.14."""
    cluster, web = await running_v1(nodes=2, replicas=2)

    def change(spec: ServiceSpec) -> None:
        with_deadline(to_image("v2", action=action))(spec)
        nowhere(spec)

    await cluster.update_service(web, change)
    await cluster.wait(28)
    assert cluster.service(web).update_status.state == UPDATE_STATE_UPDATING
    (late,) = [task for task in cluster.live(web) if image_of(cluster, task) == "v2"]
    if leader_changes:
        cluster.change_leader()
    await cluster.wait(3)
    status = cluster.service(web).update_status
    reason = f"task {late.id}, which did not run within 30 s (it is pending)"
    if action == FAILURE_ACTION_PAUSE:
        assert status.state == UPDATE_STATE_PAUSED
        assert status.message == f"update paused due to {reason}"
        return
    assert status.message == f"update rolled back due to {reason}"
    await cluster.wait(20)
    assert cluster.service(web).update_status.state == UPDATE_STATE_ROLLBACK_COMPLETED
    assert images(cluster, web) == ["v1", "v1"]


@pytest.mark.parametrize("stuck_at", [TASK_STATE_PREPARING, TASK_STATE_STARTING])
async def test_a_task_that_is_never_ready_fails_the_update(stuck_at: TaskState.ValueType) -> None:
    """A pull that never ends; a health check that never passes."""
    cluster, web = await running_v1()
    await cluster.update_service(web, with_deadline(to_image("v2")))
    await cluster.settle()
    (old,) = cluster.running(web) or [task for task in cluster.tasks(web) if task.desired_state == TASK_STATE_SHUTDOWN]
    (new,) = cluster.live(web)
    await cluster.report(new.id, TASK_STATE_PREPARING)
    cluster.now += 20
    await cluster.report(old.id, TASK_STATE_SHUTDOWN)
    await cluster.settle()
    await cluster.report(new.id, stuck_at)
    cluster.now += 29
    await cluster.settle()
    assert cluster.service(web).update_status.state == UPDATE_STATE_UPDATING, "it had to wait for the old one"
    cluster.now += 2
    await cluster.settle()
    assert cluster.service(web).update_status.state == UPDATE_STATE_PAUSED
    assert [task.id for task in cluster.live(web)] == [new.id], "it may yet run"


async def test_without_the_label_an_update_waits_for_ever() -> None:
    cluster, web = await running_v1()

    def change(spec: ServiceSpec) -> None:
        to_image("v2")(spec)
        nowhere(spec)

    await cluster.update_service(web, change)
    await cluster.wait(24 * 3600, every=3600)
    assert cluster.service(web).update_status.state == UPDATE_STATE_UPDATING


@pytest.mark.parametrize("order", [UPDATE_ORDER_STOP_FIRST, UPDATE_ORDER_START_FIRST])
async def test_an_update_that_goes_on_past_failures_goes_on_past_late_tasks(order: UpdateOrder.ValueType) -> None:
    cluster, web = await running_v1(replicas=2)

    def change(spec: ServiceSpec) -> None:
        with_deadline(to_image("v2", action=FAILURE_ACTION_CONTINUE, order=order))(spec)
        nowhere(spec)

    await cluster.update_service(web, change)
    await cluster.wait(80)
    assert cluster.service(web).update_status.state == UPDATE_STATE_COMPLETED
    assert len([task for task in cluster.live(web) if image_of(cluster, task) == "v2"]) == 2
    assert images(cluster, web) == (["v1", "v1"] if order == UPDATE_ORDER_START_FIRST else [])
    await cluster.set_node("n1", labels={"there": "no"})
    await cluster.wait(20)
    assert images(cluster, web) == ["v2", "v2"], "late is not never"
    assert [image_of(cluster, task) for task in cluster.live(web)] == ["v2", "v2"]


async def test_late_tasks_within_the_failure_ratio_do_not_hold_the_update_up() -> None:
    cluster, web = await running_v1(nodes=2, replicas=4)

    def change(spec: ServiceSpec) -> None:
        with_deadline(to_image("v2", ratio=0.5))(spec)
        spec.task_template.placement.max_replicas = 1

    await cluster.update_service(web, change)
    await cluster.wait(120)
    assert cluster.service(web).update_status.state == UPDATE_STATE_COMPLETED
    assert images(cluster, web) == ["v2", "v2"]


async def test_start_first_beside_a_task_that_leaves_no_room_says_why_and_may_have_a_deadline() -> None:
    """Features A8.09: the old one stops only when the new one runs."""
    cluster = await Harness.started(nodes=1)
    web = await cluster.create_service("web", change=one_a_node)
    await cluster.work()
    await cluster.update_service(web, with_deadline(to_image("v2", order=UPDATE_ORDER_START_FIRST)))
    await cluster.wait(20)
    (new,) = [task for task in cluster.live(web) if image_of(cluster, task) == "v2"]
    assert new.status.err == "no suitable node (max replicas per node limit exceed)"
    assert cluster.service(web).update_status.state == UPDATE_STATE_UPDATING
    await cluster.wait(20)
    assert cluster.service(web).update_status.state == UPDATE_STATE_PAUSED
    assert images(cluster, web) == ["v1"]
