"""Versions of services' specs, each kept while a task or a rollback needs it."""

from __future__ import annotations

from collections.abc import Collection

from manager.model.versions import spec_version_id
from manager.store.kinds.kind import Assigned, Kind
from manager.store.tables import Table
from proto.dispatcher_pb2 import AssignmentKind
from proto.objects_pb2 import SpecVersion


class SpecVersionTable(Table[SpecVersion]):
    __slots__ = ()

    def by_service(self, service_id: str) -> Collection[SpecVersion]:
        return self._rows.lookup("service", service_id)

    def of(self, service_id: str, spec_version: int) -> SpecVersion | None:
        """That version of that service's spec, while it is kept."""
        return self._rows.get(spec_version_id(service_id, spec_version))


SPEC_VERSIONS = Kind(
    name="spec_version",
    plural="spec_versions",
    message=SpecVersion,
    table=SpecVersionTable,
    field_indexes={"service": "service_id"},
    assigned=Assigned(
        AssignmentKind.ASSIGNMENT_KIND_SPEC_VERSION,
        needed_by=lambda task, spec: (spec_version_id(task.service_id, task.spec_version),),
    ),
)
