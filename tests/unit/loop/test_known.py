"""What the loop keeps of the store."""

from __future__ import annotations

from manager.model.versions import present_version
from manager.reconcile.known import Known
from proto.objects_pb2 import Service, Task
from tests.unit.loop.harness import Harness


def version(memory_bytes: int) -> Service:
    service = Service(id="web", spec_version=1)
    service.spec.task_template.resources.reservations.memory_bytes = memory_bytes
    return service


async def test_nothing_is_kept_of_a_pass_that_was_refused() -> None:
    """The number that it meant to give to a spec may be another spec's by the next."""
    cluster = await Harness.started()
    known, task = Known(cluster.store, lambda: 0.0, looks_max=10), Task(service_id="web", spec_version=1)
    refused = cluster.store.begin()
    refused.create(present_version(version(1)))
    assert known.needs_of(task, refused).memory_bytes == 1
    await cluster.store.update(lambda working: working.create(present_version(version(2))))
    assert known.needs_of(task, cluster.store.view).memory_bytes == 2
    assert known.needs_of(task, cluster.store.view) is known.needs_of(task, cluster.store.begin())
