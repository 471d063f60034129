"""Secrets, which the tasks of services that name them get as files."""

from __future__ import annotations

from collections.abc import Iterable

from manager.store.kinds.kind import Assigned, Kind
from proto.dispatcher_pb2 import AssignmentKind
from proto.objects_pb2 import Secret, Task
from proto.specs_pb2 import ServiceSpec


def _needed_by(_: Task, spec: ServiceSpec | None) -> Iterable[str]:
    return () if spec is None else [ref.secret_id for ref in spec.task_template.container_spec.secrets]


SECRETS = Kind(
    name="secret",
    plural="secrets",
    message=Secret,
    names=lambda secret: (secret.spec.name,),
    unique_names=True,
    labels=lambda secret: secret.spec.labels,
    assigned=Assigned(AssignmentKind.ASSIGNMENT_KIND_SECRET, _needed_by),
)
