"""Services on a real cluster of three hosts (issue: three hosts; features A4, A5, A7, A8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import docker
import pytest

from tests.multihost.testbed import Testbed
from tests.waiting import wait_until

SLEEP = ["sh", "-c", "trap 'exit 0' TERM; sleep 3600 & wait"]


def replicated(testbed: Testbed, name: str, replicas: int, *, command: list[str] | None = None, **options: Any) -> Any:
    return testbed.client(1).services.create(
        "busybox:latest",
        command=command or SLEEP,
        name=name,
        mode=docker.types.ServiceMode("replicated", replicas),
        **options,
    )


def placed(testbed: Testbed, name: str, count: int) -> dict[str, str]:
    """Node by task, once ``count`` tasks of the service run: one look, so that no task moves in between."""

    def nodes() -> dict[str, str] | None:
        tasks = {task["ID"]: task["NodeID"] for task in testbed.tasks(name)}
        return tasks if len(tasks) == count else None

    return wait_until(nodes, f"{count} tasks of {name} run") or {}


def per_node(tasks: dict[str, str]) -> list[int]:
    return sorted(Counter(tasks.values()).values())


@pytest.fixture(autouse=True)
def no_service_is_left(three: Testbed) -> Iterator[None]:
    yield
    client = three.client(1)
    for service in client.services.list():
        service.remove()
    for node in client.nodes.list():
        if node.attrs["Spec"]["Availability"] != "active":
            three.update_node(node.id, Availability="active")
    wait_until(lambda: not client.api.tasks(), "every task is gone")
    for host in three.hosts():
        wait_until(lambda h=host: not three.client(h).containers.list(all=True), f"no container is left on host {host}")  # type: ignore[misc]


def test_replicas_are_spread_over_the_hosts_and_scaled(three: Testbed) -> None:
    service = replicated(three, "web", 6)
    six = placed(three, "web", 6)
    assert per_node(six) == [2, 2, 2]
    for host in three.hosts():
        names = [container.name for container in three.client(host).containers.list()]
        assert len(names) == 2
        assert all(name.startswith("web.") for name in names)

    service.reload()
    service.scale(3)
    remaining = placed(three, "web", 3)
    assert per_node(remaining) == [1, 1, 1]
    # docker-py sends the spec back with every default written out: nothing of that replaces a task.
    assert remaining.keys() < six.keys()


def test_a_global_service_runs_once_on_every_host(three: Testbed) -> None:
    three.client(1).services.create(
        "busybox:latest", command=SLEEP, name="agent", mode=docker.types.ServiceMode("global")
    )
    assert per_node(placed(three, "agent", 3)) == [1, 1, 1]


def test_a_constraint_nobody_meets_is_explained_and_then_met(three: Testbed) -> None:
    replicated(three, "pinned", 1, constraints=["node.labels.zone==a"])
    text = "no suitable node (scheduling constraints not satisfied on 3 nodes)"
    wait_until(lambda: [t for t in three.tasks("pinned", state="pending") if t["Status"]["Err"] == text], text)
    node = three.client(1).nodes.get(three.node_id(2))
    three.update_node(node.id, Labels={"zone": "a"})
    assert list(placed(three, "pinned", 1).values()) == [node.id]
    three.update_node(node.id, Labels={})


def test_a_drained_host_gives_its_tasks_away(three: Testbed) -> None:
    replicated(three, "moving", 3)
    wait_until(lambda: len(three.tasks("moving")) == 3, "three tasks run")
    drained = three.client(1).nodes.get(three.node_id(3))
    three.update_node(drained.id, Availability="drain")

    def moved() -> bool:
        running = three.tasks("moving")
        return len(running) == 3 and all(task["NodeID"] != drained.id for task in running)

    wait_until(moved, "all tasks run on the other hosts")


def test_a_task_that_ends_is_replaced_after_the_restart_delay(three: Testbed) -> None:
    policy = docker.types.RestartPolicy("any", delay=1_000_000_000)
    replicated(three, "crash", 1, restart_policy=policy)
    first = wait_until(lambda: three.tasks("crash"), "the task runs")[0]
    host = next(h for h in three.hosts() if three.node_id(h) == first["NodeID"])
    three.client(host).containers.get(first["Status"]["ContainerStatus"]["ContainerID"]).kill()
    second = wait_until(lambda: [t for t in three.tasks("crash") if t["ID"] != first["ID"]], "another task runs")[0]
    assert second["Slot"] == first["Slot"]
    old = three.client(1).api.inspect_task(first["ID"])
    assert old["Status"]["State"] == "failed"
    assert old["Status"]["Err"] == "task: non-zero exit (137)"


def test_attempts_are_limited_and_kept_in_the_history(three: Testbed) -> None:
    policy = docker.types.RestartPolicy("on-failure", delay=0, max_attempts=2)
    replicated(three, "limited", 1, command=["false"], restart_policy=policy)

    def failed() -> bool:
        tasks = three.client(1).api.tasks(filters={"service": "limited"})
        return len(tasks) == 3 and all(task["Status"]["State"] == "failed" for task in tasks)

    wait_until(failed, "the first attempt and two more have failed")


def test_a_missing_image_is_rejected_with_the_reason(three: Testbed) -> None:
    policy = docker.types.RestartPolicy("none")
    three.client(1).services.create("127.0.0.1:1/nowhere:latest", name="noimage", restart_policy=policy)
    rejected = wait_until(
        lambda: [
            t for t in three.client(1).api.tasks(filters={"service": "noimage"}) if t["Status"]["State"] == "rejected"
        ],
        "the task is rejected",
    )
    assert rejected[0]["Status"]["Err"]


def test_a_rolling_update_replaces_every_task(three: Testbed) -> None:
    service = replicated(
        three, "roll", 4, update_config=docker.types.UpdateConfig(parallelism=2, delay=0, monitor=500_000_000)
    )
    before = placed(three, "roll", 4)
    service.reload()
    service.force_update()

    def completed() -> bool:
        service.reload()
        return bool(service.attrs.get("UpdateStatus", {}).get("State") == "completed")

    wait_until(completed, "the update completes")
    assert not before.keys() & placed(three, "roll", 4).keys()


def test_two_updates_of_one_version_conflict(three: Testbed) -> None:
    service = replicated(three, "twice", 1)
    stale = three.client(2).services.get(service.id)
    service.reload()
    service.scale(2)
    with pytest.raises(docker.errors.APIError, match="update out of sequence"):
        stale.update(labels={"a": "b"})


def test_a_name_in_use_is_a_conflict(three: Testbed) -> None:
    replicated(three, "taken", 1)
    with pytest.raises(docker.errors.APIError, match="name conflicts with an existing object") as error:
        replicated(three, "taken", 1)
    assert error.value.response.status_code == 409


def test_every_manager_answers_alike(three: Testbed) -> None:
    replicated(three, "same", 2)
    wait_until(lambda: len(three.tasks("same")) == 2, "two tasks run")
    seen = [{task["ID"] for task in three.tasks("same", via=host)} for host in three.hosts()]
    assert seen[0] == seen[1] == seen[2]
