"""A view of the whole state, and the transaction that is built over one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manager.store.errors import (
    NameConflictError,
    ObjectExistsError,
    ObjectInUseError,
    ObjectNotFoundError,
    SequenceConflictError,
)
from manager.store.kinds import KINDS, Kind, StoredObject, kind_of
from manager.store.rows import CommittedRows, LayeredRows
from manager.store.tables import (
    ClusterTable,
    ConfigTable,
    NodeTable,
    SecretTable,
    ServiceTable,
    SpecVersionTable,
    TaskTable,
)
from proto.objects_pb2 import Cluster, Config, Secret, Service
from proto.store_pb2 import StoreAction, StoreRemoval

Committed = Mapping[str, CommittedRows[Any]]
"""Kind name -> its rows."""


def empty_state() -> dict[str, CommittedRows[Any]]:
    return {kind.name: CommittedRows(kind) for kind in KINDS}


class View:
    """The state, by table. Live: across an ``await`` it may change; the objects in it never do."""

    def __init__(self, rows: Mapping[str, Any]) -> None:
        self.clusters = ClusterTable(rows["cluster"])
        self.nodes = NodeTable(rows["node"])
        self.services = ServiceTable(rows["service"])
        self.spec_versions = SpecVersionTable(rows["spec_version"])
        self.tasks = TaskTable(rows["task"])
        self.secrets = SecretTable(rows["secret"])
        self.configs = ConfigTable(rows["config"])

    @property
    def cluster(self) -> Cluster:
        """The one cluster object. Raises: ObjectNotFoundError while there is none yet."""
        cluster = next(iter(self.clusters), None)
        if cluster is None:
            raise ObjectNotFoundError(kind="cluster", ref="object")
        return cluster


_Key = tuple[str, str]

_CREATE, _UPDATE, _REMOVE = "create", "update", "remove"


@dataclass(frozen=True, slots=True)
class _Write:
    """One object's action, made into a message only when it is proposed: many are written more than once."""

    verb: str
    kind: Kind
    obj: StoredObject | None = None
    removal: StoreRemoval | None = None

    def message(self) -> StoreAction:
        if self.obj is None:
            return StoreAction(remove=self.removal)
        action = StoreAction()
        wrapped = action.create if self.verb == _CREATE else action.update
        getattr(wrapped, self.kind.name).CopyFrom(self.obj)
        return action


class Working(View):
    """A transaction under construction: reads see its own writes, nothing else does until it is committed.

    Objects handed in belong to the transaction and must not be changed after. An object written twice is one
    action in the end. Every write is checked as it will be when it is applied, so most refusals come at once;
    an entry that was committed in between is found at commit.

    Raises (of create, update, remove):
        ObjectExistsError, NameConflictError, SequenceConflictError, ObjectNotFoundError, ObjectInUseError.
    """

    def __init__(self, committed: Committed) -> None:
        self._rows: dict[str, LayeredRows[Any]] = {name: LayeredRows(rows) for name, rows in committed.items()}
        self._writes: dict[_Key, _Write] = {}
        self._boundaries: set[_Key] = set()
        super().__init__(self._rows)

    @property
    def actions(self) -> list[StoreAction]:
        """What commit will propose, in the order in which the objects were first written."""
        return [write.message() for write in self._writes.values()]

    @property
    def size(self) -> int:
        """Number of objects written so far."""
        return len(self._writes)

    def boundary(self) -> None:
        """Say that the state is consistent at this point: ``commit(split=True)`` may end an entry here."""
        if self._writes:
            self._boundaries.add(next(reversed(self._writes)))

    def groups(self) -> list[list[StoreAction]]:
        """The actions, cut at the boundaries."""
        groups: list[list[StoreAction]] = [[]]
        for key, write in self._writes.items():
            groups[-1].append(write.message())
            if key in self._boundaries:
                groups.append([])
        return [group for group in groups if group]

    def create(self, obj: StoredObject) -> None:
        """Add a new object; its ID must be set, its version is the store's to set."""
        kind = kind_of(obj)
        if not obj.id:
            raise ValueError(f"a {kind.name} without an ID cannot be stored")
        rows = self._rows[kind.name]
        if rows.get(obj.id) is not None:
            raise ObjectExistsError(kind=kind.name, object_id=obj.id)
        if (kind.name, obj.id) in self._writes:
            raise ObjectExistsError(kind=kind.name, object_id=obj.id)  # removed in this transaction: IDs are used once
        self._check_name(kind, obj, None)
        self._check_references(obj, None)
        rows.put(obj)
        self._writes[kind.name, obj.id] = _Write(_CREATE, kind, obj)

    def update(self, obj: StoredObject) -> None:
        """Replace an object by a changed copy of it; ``version`` must be that of the copy's source."""
        kind = kind_of(obj)
        rows = self._rows[kind.name]
        old = self.existing(obj)
        if old.version.index != obj.version.index:
            raise _conflict(kind, obj.id, obj.version.index, old.version.index)
        self._check_name(kind, obj, old)
        self._check_references(obj, old)
        rows.put(obj)
        key = (kind.name, obj.id)
        earlier = self._writes.get(key)
        is_new = earlier is not None and earlier.verb == _CREATE
        self._writes[key] = _Write(_CREATE if is_new else _UPDATE, kind, obj)

    def existing(self, obj: StoredObject) -> StoredObject:
        """What the transaction now holds under the ID of ``obj``. Raises: ObjectNotFoundError."""
        kind = kind_of(obj)
        old: StoredObject | None = self._rows[kind.name].get(obj.id)
        if old is None:
            raise ObjectNotFoundError(kind=kind.name, ref=obj.id)
        return old

    def remove(self, obj: StoredObject) -> None:
        """Remove an object as it was read: refused when it has changed since."""
        kind = kind_of(obj)
        self.remove_by_id(kind, obj.id, obj.version.index)

    def remove_by_id(self, kind: Kind, object_id: str, version_index: int) -> None:
        """Remove by ID; version 0 removes whatever is there."""
        rows = self._rows[kind.name]
        old = rows.get(object_id)
        if old is None:
            raise ObjectNotFoundError(kind=kind.name, ref=object_id)
        if version_index not in (0, old.version.index):
            raise _conflict(kind, object_id, version_index, old.version.index)
        self._check_unused(old)
        rows.drop(object_id)
        key = (kind.name, object_id)
        earlier = self._writes.get(key)
        if earlier is not None and earlier.verb == _CREATE:
            self._forget(key)
        else:
            removal = StoreRemoval(table=kind.name, id=object_id, version_index=version_index)
            self._writes[key] = _Write(_REMOVE, kind, removal=removal)

    def merge(self, on_change: Callable[[Kind, StoredObject | None, StoredObject | None], None]) -> None:
        """Move everything written into the committed state (the store's own use, when an entry is applied)."""
        for layered in self._rows.values():
            for old, new in layered.merge():
                on_change(layered.kind, old, new)

    def _forget(self, key: _Key) -> None:
        """Undo the write of an object that the transaction itself had created; a boundary there moves up."""
        if key in self._boundaries:
            self._boundaries.discard(key)
            keys: Sequence[_Key] = list(self._writes)
            at = keys.index(key)
            if at:
                self._boundaries.add(keys[at - 1])
        del self._writes[key]

    def _check_name(self, kind: Kind, obj: StoredObject, old: StoredObject | None) -> None:
        if kind.unique is None:
            return
        keys_of = kind.indexes[kind.unique]
        for name in keys_of(obj):
            for holder in self._rows[kind.name].lookup(kind.unique, name):
                if holder.id != obj.id:
                    raise NameConflictError(kind=kind.name, name=str(name), holder_id=holder.id)

    def _check_references(self, obj: StoredObject, old: StoredObject | None) -> None:
        """A service may begin to name only secrets and configs that are there."""
        if not isinstance(obj, Service) or obj.pending_delete:
            return
        container = obj.spec.task_template.container_spec
        if not container.secrets and not container.configs:
            return
        before = old.spec.task_template.container_spec if isinstance(old, Service) else None
        known = {ref.secret_id for ref in before.secrets} if before else set()
        for secret in container.secrets:
            if secret.secret_id not in known and secret.secret_id not in self.secrets:
                raise ObjectNotFoundError(kind="secret", ref=secret.secret_name or secret.secret_id)
        known = {ref.config_id for ref in before.configs} if before else set()
        for config in container.configs:
            if config.config_id not in known and config.config_id not in self.configs:
                raise ObjectNotFoundError(kind="config", ref=config.config_name or config.config_id)

    def _check_unused(self, old: StoredObject) -> None:
        if isinstance(old, Secret):
            users = self.services.referencing_secret(old.id)
        elif isinstance(old, Config):
            users = self.services.referencing_config(old.id)
        else:
            return
        if users:
            names = tuple(sorted(service.spec.name for service in users))
            raise ObjectInUseError(kind=kind_of(old).name, name=old.spec.name, services=names)


def _conflict(kind: Kind, object_id: str, expected: int, actual: int) -> SequenceConflictError:
    return SequenceConflictError(kind=kind.name, object_id=object_id, expected=expected, actual=actual)
