"""Tables: how objects of one kind are read, whether committed or in a transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Generic

from manager.store.errors import AmbiguousReferenceError, ObjectNotFoundError
from manager.store.kinds import T, spec_version_id
from manager.store.rows import Rows
from proto.objects_pb2 import Cluster, Config, Node, Secret, Service, SpecVersion, Task


class Table(Generic[T]):
    """The objects of one kind. What it hands out is stored: copy before you change.

    A table is live: it shows whatever is committed (or written in its transaction) at the moment it is read.
    Collections it returns are valid until the next ``await`` or write; take a list to keep one.
    """

    __slots__ = ("_rows",)

    def __init__(self, rows: Rows[T]) -> None:
        self._rows = rows

    def get(self, object_id: str) -> T | None:
        """The object of that full ID, or None."""
        return self._rows.get(object_id)

    def __contains__(self, object_id: object) -> bool:
        return isinstance(object_id, str) and self._rows.get(object_id) is not None

    def __iter__(self) -> Iterator[T]:
        return self._rows.values()

    def __len__(self) -> int:
        return len(self._rows)

    def values(self) -> Iterator[T]:
        """Every object, in no particular order."""
        return self._rows.values()

    def find(self, ref: str) -> T:
        """The object that a user means by ``ref``: full ID, exact name, unique prefix of an ID, in this order (W07).

        Raises:
            ObjectNotFoundError: nothing fits.
            AmbiguousReferenceError: several have that name or prefix.
        """
        kind = self._rows.kind.name
        found = self.get(ref)
        if found is not None and self._is_findable(found):
            return found
        candidates = list(self._named(ref))
        if not candidates and ref:
            candidates = [obj for obj in self._rows.values() if obj.id.startswith(ref) and self._is_findable(obj)]
        if not candidates:
            raise ObjectNotFoundError(kind=kind, ref=ref)
        if len(candidates) > 1:
            raise AmbiguousReferenceError(kind=kind, ref=ref, matches=len(candidates))
        return candidates[0]

    def _named(self, name: str) -> Collection[T]:
        return ()

    def _is_findable(self, obj: T) -> bool:
        return True


class ClusterTable(Table[Cluster]):
    __slots__ = ()

    def _named(self, name: str) -> Collection[Cluster]:
        return [cluster for cluster in self._rows.values() if cluster.spec.name == name]


class NodeTable(Table[Node]):
    __slots__ = ()

    def by_name(self, hostname: str) -> list[Node]:
        """Nodes with that host name or that name in their spec; host names need not be unique."""
        return list(self._rows.lookup("name", hostname))

    def _named(self, name: str) -> Collection[Node]:
        return self._rows.lookup("name", name)


class ServiceTable(Table[Service]):
    """Services; ``find`` and ``by_name`` leave out those their user has removed (``pending_delete``)."""

    __slots__ = ()

    def by_name(self, name: str) -> Service | None:
        return next(iter(self._rows.lookup("name", name)), None)

    def referencing_secret(self, secret_id: str) -> Collection[Service]:
        return self._rows.lookup("secret", secret_id)

    def referencing_config(self, config_id: str) -> Collection[Service]:
        return self._rows.lookup("config", config_id)

    def _named(self, name: str) -> Collection[Service]:
        return self._rows.lookup("name", name)

    def _is_findable(self, obj: Service) -> bool:
        return not obj.pending_delete


class SpecVersionTable(Table[SpecVersion]):
    __slots__ = ()

    def by_service(self, service_id: str) -> Collection[SpecVersion]:
        return self._rows.lookup("service", service_id)

    def of(self, service_id: str, spec_version: int) -> SpecVersion | None:
        """That version of that service's spec, while it is kept."""
        return self._rows.get(spec_version_id(service_id, spec_version))


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

    def any_of_service(self, service_id: str) -> bool:
        return self._rows.has_any("service", service_id)

    def any_of_slot(self, service_id: str, slot: int) -> bool:
        return self._rows.has_any("slot", (service_id, slot))

    def any_of_spec_version(self, service_id: str, spec_version: int) -> bool:
        return self._rows.has_any("version", (service_id, spec_version))

    def _named(self, name: str) -> Collection[Task]:
        # A task's name is <service>.<slot or node>.<task ID> (A5.14): its end alone says which.
        task = self._rows.get(name.rpartition(".")[2]) if "." in name else None
        return (task,) if task is not None else ()


class SecretTable(Table[Secret]):
    __slots__ = ()

    def by_name(self, name: str) -> Secret | None:
        return next(iter(self._rows.lookup("name", name)), None)

    def _named(self, name: str) -> Collection[Secret]:
        return self._rows.lookup("name", name)


class ConfigTable(Table[Config]):
    __slots__ = ()

    def by_name(self, name: str) -> Config | None:
        return next(iter(self._rows.lookup("name", name)), None)

    def _named(self, name: str) -> Collection[Config]:
        return self._rows.lookup("name", name)
