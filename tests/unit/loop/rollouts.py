"""Updates that change a service's image, and what runs of it: shared by the tests of updates."""

from __future__ import annotations

from manager.model.defaults import nanoseconds
from proto.objects_pb2 import Task
from proto.specs_pb2 import (
    FAILURE_ACTION_PAUSE,
    UPDATE_ORDER_STOP_FIRST,
    FailureAction,
    ServiceSpec,
    UpdateConfig,
    UpdateOrder,
)
from tests.unit.loop.harness import Change, Harness


def to_image(
    image: str,
    *,
    parallelism: int = 1,
    delay_s: float = 0,
    monitor_s: float = 5,
    action: FailureAction.ValueType = FAILURE_ACTION_PAUSE,
    ratio: float = 0,
    order: UpdateOrder.ValueType = UPDATE_ORDER_STOP_FIRST,
) -> Change:
    def change(spec: ServiceSpec) -> None:
        spec.task_template.container_spec.image = image
        spec.update_config.CopyFrom(
            UpdateConfig(
                parallelism=parallelism,
                delay_ns=nanoseconds(delay_s),
                monitor_ns=nanoseconds(monitor_s),
                failure_action=action,
                max_failure_ratio=ratio,
                order=order,
            )
        )

    return change


def image_of(cluster: Harness, task: Task) -> str:
    version = cluster.store.view.spec_versions.of(task.service_id, task.spec_version)
    assert version is not None
    return version.spec.task_template.container_spec.image


def images(cluster: Harness, service_id: str) -> list[str]:
    return sorted(image_of(cluster, task) for task in cluster.running(service_id))


async def fail_new(cluster: Harness, service_id: str, image: str) -> bool:
    """Make running tasks of that image fail; returns whether there were any."""
    bad = [task for task in cluster.running(service_id) if image_of(cluster, task) == image]
    for task in bad:
        await cluster.fail(task)
    return bool(bad)


async def running_v1(*, nodes: int = 1, replicas: int | None = 1) -> tuple[Harness, str]:
    """A cluster that runs the service ``web`` of image v1, and the service's ID; ``replicas`` as in ``create_service``."""
    cluster = await Harness.started(nodes=nodes)
    web = await cluster.create_service("web", replicas=replicas, change=to_image("v1"))
    await cluster.work()
    return cluster, web
