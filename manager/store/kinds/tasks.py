"""Tasks: what agents are told of."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import cast

from manager.store.kinds.kind import Kind
from manager.store.tables import Table
from proto.objects_pb2 import Task


class TaskTable(Table[Task]):
    __slots__ = ()

    def by_service(self, service_id: str) -> Collection[Task]:
        return self._rows.lookup("service", service_id)

    def by_node(self, node_id: str) -> Collection[Task]:
        """Tasks assigned (or, of a global service, bound) to a node; "" gives those without one."""
        return self._rows.lookup("node", node_id)

    def by_slot(self, service_id: str, slot: int) -> Collection[Task]:
        """Every task a slot of a replicated service has had and still keeps."""
        return self._rows.lookup("slot", (service_id, slot))

    def by_service_node(self, service_id: str, node_id: str) -> Collection[Task]:
        """A global service's tasks on one node."""
        return self._rows.lookup("service_node", (service_id, node_id))

    def by_spec_version(self) -> Iterator[tuple[tuple[str, int], Collection[Task]]]:
        """Every task, by (service ID, spec version)."""
        # A key of the index "version" is what the index says it is, which its type does not.
        return cast("Iterator[tuple[tuple[str, int], Collection[Task]]]", self._rows.groups("version"))

    def of_slot(self, service_id: str, slot: int | str) -> Collection[Task]:
        """Every task of a slot: by its number, or of a global service by the ID of its node."""
        if isinstance(slot, str):
            return self.by_service_node(service_id, slot)
        return self.by_slot(service_id, slot)

    def any_of_service(self, service_id: str) -> bool:
        return self._rows.has_any("service", service_id)

    def any_of_spec_version(self, service_id: str, spec_version: int) -> bool:
        return self._rows.has_any("version", (service_id, spec_version))

    def named(self, name: str) -> Collection[Task]:
        """The task of that name, <service>.<slot or node>.<task ID> (A5.14): its end alone says which."""
        task = self._rows.get(name.rpartition(".")[2]) if "." in name else None
        return (task,) if task is not None else ()


TASKS = Kind(
    name="task",
    plural="tasks",
    message=Task,
    table=TaskTable,
    field_indexes={
        "service": "service_id",
        "node": "node_id",
        "slot": ("service_id", "slot"),
        "service_node": ("service_id", "node_id"),
        "version": ("service_id", "spec_version"),
    },
)
