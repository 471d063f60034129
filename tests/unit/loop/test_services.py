"""Services as their users see them: created, scaled, removed (features A5, A6, A7)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from manager.store import Change
from proto.objects_pb2 import (
    NODE_STATE_DOWN,
    NODE_STATE_READY,
    TASK_STATE_ASSIGNED,
    TASK_STATE_ORPHANED,
    TASK_STATE_PENDING,
    TASK_STATE_REJECTED,
    TASK_STATE_REMOVE,
    TASK_STATE_RUNNING,
    TASK_STATE_SHUTDOWN,
    Cluster,
    Task,
)
from proto.specs_pb2 import (
    NODE_AVAILABILITY_ACTIVE,
    NODE_AVAILABILITY_DRAIN,
    NODE_AVAILABILITY_PAUSE,
    PUBLISH_MODE_HOST,
    RESTART_CONDITION_NONE,
    PortConfig,
    ServiceSpec,
)
from tests.unit.loop.harness import Harness


async def test_new_tasks_are_created_and_placed_in_one_entry() -> None:
    cluster = await Harness.started(nodes=4)
    await cluster.settle()
    web = await cluster.create_service("web", replicas=8)
    before = cluster.store.index
    await cluster.loop.step()
    assert cluster.store.index == before + 1
    assert {task.status.state for task in cluster.tasks(web)} == {TASK_STATE_ASSIGNED}
    assert cluster.per_node(web) == {"n1": 2, "n2": 2, "n3": 2, "n4": 2}
    assert sorted(task.slot for task in cluster.tasks(web)) == list(range(1, 9))


async def test_a_second_look_finds_nothing_to_do() -> None:
    cluster = await Harness.started(nodes=3)
    await cluster.create_service("web", replicas=5)
    await cluster.create_service("agent", replicas=None)
    await cluster.work()
    before = cluster.store.index
    cluster.change_leader()
    await cluster.settle()
    assert cluster.store.index == before


async def test_scale_down_leaves_the_nodes_even_and_low_slots() -> None:
    """Features A7.14: 5 to 3 on 3 nodes gives one each."""
    cluster = await Harness.started(nodes=3)
    web = await cluster.create_service("web", replicas=5)
    await cluster.work()
    await cluster.scale(web, 3)
    await cluster.settle()
    assert cluster.per_node(web) == {"n1": 1, "n2": 1, "n3": 1}
    assert sorted(task.slot for task in cluster.live(web)) == [1, 2, 3]
    await cluster.work()
    assert len(cluster.tasks(web)) == 3
    assert not any(task.desired_state == TASK_STATE_REMOVE for task in cluster.tasks(web))


async def test_scale_to_zero_and_back() -> None:
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", replicas=3)
    await cluster.work()
    await cluster.scale(web, 0)
    await cluster.work()
    assert cluster.tasks(web) == []
    await cluster.scale(web, 2)
    await cluster.work()
    assert sorted(task.slot for task in cluster.running(web)) == [1, 2]


async def test_scaled_up_again_while_what_was_scaled_down_still_stops() -> None:
    """A task that is to be removed is no reason to leave its slot empty, though the policy restarts nothing."""

    def restart_nothing(spec: ServiceSpec) -> None:
        spec.task_template.restart_policy.condition = RESTART_CONDITION_NONE

    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", replicas=3, change=restart_nothing)
    await cluster.work()
    await cluster.scale(web, 0)
    await cluster.settle()
    await cluster.scale(web, 2)
    await cluster.settle()
    assert sorted(task.slot for task in cluster.live(web)) == [1, 2]


async def test_scaling_and_labels_restart_nothing() -> None:
    """Features A5.06."""
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", replicas=2)
    await cluster.work()
    before = {task.id for task in cluster.tasks(web)}

    def change(spec: ServiceSpec) -> None:
        spec.labels["tier"] = "front"
        spec.mode.replicated.replicas = 3

    await cluster.update_service(web, change)
    await cluster.work()
    assert before < {task.id for task in cluster.running(web)}
    assert not cluster.service(web).HasField("update_status")


async def test_a_removed_service_goes_with_its_last_task() -> None:
    """Features A5.09: its name is free at once."""
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", replicas=3)
    await cluster.work()
    await cluster.remove_service(web)
    assert cluster.store.view.services.by_name("web") is None
    await cluster.settle()
    assert {task.desired_state for task in cluster.tasks(web)} == {TASK_STATE_REMOVE}
    assert cluster.store.view.services.get(web) is not None
    await cluster.work()
    assert cluster.store.view.services.get(web) is None
    assert len(cluster.store.view.tasks) == 0
    assert len(cluster.store.view.spec_versions) == 0


async def test_a_removed_service_without_placed_tasks_goes_at_once() -> None:
    cluster = await Harness.started()
    web = await cluster.create_service("web", replicas=3)
    await cluster.settle()
    await cluster.remove_service(web)
    await cluster.settle()
    assert cluster.store.view.services.get(web) is None


async def test_pending_tasks_say_why_and_are_placed_when_a_node_comes() -> None:
    cluster = await Harness.started()
    web = await cluster.create_service("web", replicas=2)
    await cluster.settle()
    assert {(task.status.state, task.status.err) for task in cluster.tasks(web)} == {
        (TASK_STATE_PENDING, "no suitable node")
    }
    await cluster.add_node("n1")
    await cluster.settle()
    assert {(task.status.state, task.status.err) for task in cluster.tasks(web)} == {(TASK_STATE_ASSIGNED, "")}


async def test_explanation_counts_nodes_by_the_first_filter_they_fail() -> None:
    """Features A6.06."""
    cluster = await Harness.started(nodes=3)
    await cluster.set_node("n1", availability=NODE_AVAILABILITY_PAUSE)

    def change(spec: ServiceSpec) -> None:
        spec.task_template.placement.constraints.append("node.labels.zone==a")

    web = await cluster.create_service("web", change=change)
    await cluster.settle()
    assert cluster.tasks(web)[0].status.err == (
        "no suitable node (scheduling constraints not satisfied on 2 nodes; 1 node not available for new tasks)"
    )
    written = cluster.store.index
    await cluster.set_node("n3", availability=NODE_AVAILABILITY_ACTIVE)
    await cluster.settle()
    assert cluster.store.index == written + 1, "the same explanation is not written again"


async def test_reserved_resources_are_not_given_twice() -> None:
    cluster = await Harness.started()
    await cluster.add_node("n1", memory_bytes=1 << 30)

    def change(spec: ServiceSpec) -> None:
        spec.task_template.resources.reservations.memory_bytes = 400 << 20

    web = await cluster.create_service("web", replicas=3, change=change)
    await cluster.work()
    assert len(cluster.running(web)) == 2
    (pending,) = [task for task in cluster.tasks(web) if task.status.state == TASK_STATE_PENDING]
    assert pending.status.err == "no suitable node (insufficient resources on 1 node)"
    await cluster.scale(web, 2)
    await cluster.work()
    assert len(cluster.tasks(web)) == 2


async def test_host_ports_exclude_each_other() -> None:
    """Features A7.13, A5.17: also across services."""
    cluster = await Harness.started(nodes=1)

    def change(spec: ServiceSpec) -> None:
        spec.endpoint_spec.ports.append(PortConfig(target_port=80, published_port=80, publish_mode=PUBLISH_MODE_HOST))

    web = await cluster.create_service("web", replicas=2, change=change)
    other = await cluster.create_service("other", replicas=1, change=change)
    await cluster.work()
    assert len(cluster.running(web)) == 1
    assert cluster.tasks(other)[0].status.err == "no suitable node (host-mode port already in use on 1 node)"
    assert cluster.service(web).endpoint.ports[0].published_port == 80
    await cluster.remove_service(web)
    await cluster.work()
    assert len(cluster.running(other)) == 1


async def test_max_replicas_per_node() -> None:
    """Features A7.04."""
    cluster = await Harness.started(nodes=2)

    def change(spec: ServiceSpec) -> None:
        spec.task_template.placement.max_replicas = 1

    web = await cluster.create_service("web", replicas=3, change=change)
    await cluster.work()
    assert len(cluster.running(web)) == 2
    assert "no suitable node (max replicas per node limit exceed)" in {task.status.err for task in cluster.live(web)}


async def test_global_service_follows_the_nodes() -> None:
    """Features A5.12, X27."""
    cluster = await Harness.started(nodes=2)
    agent = await cluster.create_service("agent", replicas=None)
    await cluster.work()
    assert cluster.per_node(agent) == {"n1": 1, "n2": 1}
    await cluster.add_node("n3")
    await cluster.work()
    assert cluster.per_node(agent) == {"n1": 1, "n2": 1, "n3": 1}
    await cluster.set_node("n1", availability=NODE_AVAILABILITY_DRAIN)
    await cluster.set_node("n2", state=NODE_STATE_DOWN)
    await cluster.work()
    assert cluster.per_node(agent) == {"n3": 1}
    await cluster.set_node("n1", availability=NODE_AVAILABILITY_ACTIVE)
    await cluster.set_node("n2", state=NODE_STATE_READY)
    await cluster.work()
    assert cluster.per_node(agent) == {"n1": 1, "n2": 1, "n3": 1}
    assert len(cluster.running(agent)) == 3
    await cluster.remove_node("n3")
    await cluster.work()
    assert cluster.per_node(agent) == {"n1": 1, "n2": 1}
    assert {task.node_id for task in cluster.tasks(agent)} == {"n1", "n2"}, "a removed node leaves no history"


async def test_global_service_on_a_paused_node_goes_on_but_is_not_restarted() -> None:
    cluster = await Harness.started(nodes=1)
    agent = await cluster.create_service("agent", replicas=None)
    await cluster.work()
    await cluster.set_node("n1", availability=NODE_AVAILABILITY_PAUSE)
    await cluster.work()
    (task,) = cluster.running(agent)
    await cluster.fail(task)
    await cluster.wait(30)
    assert cluster.live(agent) == []
    await cluster.set_node("n1", availability=NODE_AVAILABILITY_ACTIVE)
    await cluster.wait(10)
    assert len(cluster.running(agent)) == 1


async def test_a_killed_global_task_is_restarted() -> None:
    """X27."""
    cluster = await Harness.started(nodes=2)
    agent = await cluster.create_service("agent", replicas=None)
    await cluster.work()
    (task,) = [task for task in cluster.running(agent) if task.node_id == "n1"]
    await cluster.fail(task, exit_code=137)
    await cluster.wait(6)
    assert len(cluster.running(agent)) == 2


async def test_label_removed_under_a_running_task() -> None:
    """Features A7.05."""
    cluster = await Harness.started()
    await cluster.add_node("n1", labels={"zone": "a"})
    await cluster.add_node("n2")

    def change(spec: ServiceSpec) -> None:
        spec.task_template.placement.constraints.append("node.labels.zone==a")

    web = await cluster.create_service("web", change=change)
    await cluster.work()
    await cluster.set_node("n2", labels={"zone": "a"})
    await cluster.set_node("n1", labels={})
    await cluster.wait(6)
    rejected, running = cluster.tasks(web)
    assert rejected.status.state == TASK_STATE_REJECTED
    assert rejected.status.err == "assigned node no longer meets constraints"
    assert (running.node_id, running.status.state) == ("n2", TASK_STATE_RUNNING)


async def test_a_constraint_only_change_moves_only_what_does_not_match() -> None:
    """Features A5.06."""
    cluster = await Harness.started()
    for name, zone in (("n1", "a"), ("n2", "b")):
        await cluster.add_node(name, labels={"zone": zone})
    web = await cluster.create_service("web", replicas=2)
    await cluster.work()
    (stays,) = [task.id for task in cluster.running(web) if task.node_id == "n1"]

    def change(spec: ServiceSpec) -> None:
        spec.task_template.placement.constraints.append("node.labels.zone==a")

    await cluster.update_service(web, change)
    await cluster.wait(20)
    assert cluster.per_node(web) == {"n1": 2}
    assert stays in {task.id for task in cluster.running(web)}


@pytest.mark.parametrize(("limit", "kept"), [(5, 5), (1, 1), (0, 1), (-1, 9)])
async def test_task_history_is_bounded(limit: int, kept: int) -> None:
    """Features A1.08: so many tasks per slot, the running one included."""
    cluster = await Harness.started(nodes=1)
    current = cluster.store.view.cluster
    changed = Cluster()
    changed.CopyFrom(current)
    changed.spec.orchestration.task_history_retention_limit = limit
    await cluster.store.update(lambda working: working.update(changed))
    web = await cluster.create_service("web", replicas=1)
    for _ in range(8):
        await cluster.wait(6)
        (task,) = cluster.running(web)
        await cluster.fail(task)
    await cluster.wait(6)
    assert len(cluster.tasks(web)) == kept
    assert len(cluster.running(web)) == 1


async def test_a_service_is_kept_with_the_version_of_its_spec() -> None:
    cluster = await Harness.started(nodes=1)
    web = await cluster.create_service("web", replicas=0)
    await cluster.settle()
    (version,) = cluster.store.view.spec_versions
    assert (version.service_id, version.spec_version, version.spec) == (web, 1, cluster.service(web).spec)


async def test_a_task_comes_in_one_entry_with_the_version_it_names() -> None:
    """Also one that a restart makes of a spec that came a moment ago, before the service as a whole was looked at."""
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", replicas=3)
    await cluster.work()
    seen: list[Task] = []

    def follow(changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change.new, Task):
                seen.append(change.new)
                assert cluster.store.view.spec_versions.of(change.new.service_id, change.new.spec_version) is not None

    cluster.store.on_change(follow)

    def image(spec: ServiceSpec) -> None:
        spec.task_template.container_spec.image = "busybox:2"

    await cluster.update_service(web, image)
    for task in cluster.running(web):
        await cluster.fail(task)
    await cluster.wait(30)
    await cluster.roll_back_service(web)
    await cluster.wait(30)
    assert {task.spec_version for task in cluster.running(web)} == {3}
    assert {task.spec_version for task in seen} == {1, 2, 3}


async def test_versions_of_specs_are_kept_only_while_needed() -> None:
    cluster = await Harness.started(nodes=1)
    web = await cluster.create_service("web")
    for number in range(12):

        def change(spec: ServiceSpec, number: int = number) -> None:
            spec.task_template.container_spec.image = f"busybox:{number}"

        await cluster.update_service(web, change)
        await cluster.wait(15)
    assert len(cluster.running(web)) == 1
    versions = {version.spec_version for version in cluster.store.view.spec_versions}
    assert versions == {task.spec_version for task in cluster.tasks(web)} | {12, 13}
    assert len(cluster.tasks(web)) == 5


async def test_tasks_of_a_removed_node_are_orphaned_and_replaced() -> None:
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", replicas=2)
    await cluster.work()
    await cluster.remove_node("n1")
    await cluster.work()
    assert cluster.per_node(web) == {"n2": 2}
    assert len(cluster.running(web)) == 2
    (gone,) = [task for task in cluster.tasks(web) if task.node_id == "n1"]
    assert (gone.desired_state, gone.status.state) == (TASK_STATE_SHUTDOWN, TASK_STATE_ORPHANED)


async def test_tasks_of_a_node_that_is_down_for_a_day_are_orphaned() -> None:
    """Features A3.03."""
    cluster = await Harness.started(nodes=2)
    web = await cluster.create_service("web", replicas=2)
    await cluster.work()
    await cluster.set_node("n1", state=NODE_STATE_DOWN)
    await cluster.work()
    (old,) = [task for task in cluster.tasks(web) if task.node_id == "n1"]
    assert old.status.state == TASK_STATE_RUNNING
    cluster.change_leader()
    cluster.now += 24 * 3600 - 1
    await cluster.settle()
    cluster.now += 1
    await cluster.settle()
    (old,) = [task for task in cluster.tasks(web) if task.node_id == "n1"]
    assert old.status.state == TASK_STATE_ORPHANED


async def test_jobs_are_left_alone() -> None:
    """Jobs come later; a job in the store must not disturb."""
    cluster = await Harness.started(nodes=1)

    def change(spec: ServiceSpec) -> None:
        spec.mode.replicated_job.total_completions = 3

    job = await cluster.create_service("job", change=change)
    web = await cluster.create_service("web")
    await cluster.work()
    assert cluster.tasks(job) == []
    assert len(cluster.running(web)) == 1


async def test_the_clusters_log_driver_is_given_to_new_tasks_alone() -> None:
    """Features A1.22: to those whose spec names none, however they come to be; it stays what it was for the others."""
    cluster = await Harness.started(nodes=2)

    async def set_default(name: str) -> None:
        changed = Cluster()
        changed.CopyFrom(cluster.store.view.cluster)
        changed.spec.task_defaults.log_driver.name = name
        changed.spec.task_defaults.log_driver.options["tag"] = name
        await cluster.store.update(lambda working: working.update(changed))

    def own_driver(spec: ServiceSpec) -> None:
        spec.task_template.log_driver.name = "none"

    def drivers(service_id: str) -> list[tuple[str, str]]:
        return sorted(
            (task.log_driver.name, task.log_driver.options.get("tag", "")) for task in cluster.live(service_id)
        )

    before = await cluster.create_service("before")
    await cluster.work()
    await set_default("json-file")
    web = await cluster.create_service("web")
    agent = await cluster.create_service("agent", replicas=None)
    own = await cluster.create_service("own", change=own_driver)
    await cluster.work()
    assert drivers(before) == drivers(own) == [("", "")]
    assert drivers(web) == [("json-file", "json-file")]
    assert drivers(agent) == [("json-file", "json-file")] * 2

    await set_default("local")
    await cluster.work()
    assert drivers(web) == [("json-file", "json-file")]
    await cluster.scale(web, 2)
    await cluster.work()
    assert drivers(web) == [("json-file", "json-file"), ("local", "local")]
    for task in [*cluster.running(web), *cluster.running(before), *cluster.running(own)]:
        await cluster.fail(task)
    await cluster.wait(6)
    assert drivers(web) == [("local", "local")] * 2
    assert drivers(before) == [("local", "local")]
    assert drivers(own) == [("", "")]

    def new_image(spec: ServiceSpec) -> None:
        spec.task_template.container_spec.image = "busybox:2"

    await set_default("none")
    await cluster.update_service(before, new_image)
    await cluster.wait(2)
    assert drivers(before) == [("none", "none")]
