"""A view of the whole state, and the transaction that is built over one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from manager.store.encoding import encode_create, encode_removal, encode_update
from manager.store.errors import (
    NameConflictError,
    ObjectExistsError,
    ObjectInUseError,
    ObjectNotFoundError,
    SequenceConflictError,
)
from manager.store.kinds import AnyKind, Kind, Kinds, NodeTable, ServiceTable, SpecVersionTable, TaskTable
from manager.store.objects import StoredObject, T
from manager.store.rows import NAME_INDEX, CommittedRows, LayeredRows, Rows
from manager.store.tables import Table
from proto.objects_pb2 import Cluster, Config, Network, Secret

Committed = Mapping[str, CommittedRows[Any]]
"""Kind name -> its rows. Any, here and below: a state holds rows of every kind, each with objects of its own."""


def empty_state(kinds: Kinds) -> dict[str, CommittedRows[Any]]:
    return {kind.name: CommittedRows(kind) for kind in kinds}


class View:
    """The state, by table. Live: across an ``await`` it may change; the objects in it never do.

    Each kind's table is ``of(kind)`` and the attribute named by ``Kind.plural``. Those below are the ones that are spelled
    out, for type checkers.
    """

    clusters: Table[Cluster]
    nodes: NodeTable
    services: ServiceTable
    spec_versions: SpecVersionTable
    tasks: TaskTable
    secrets: Table[Secret]
    configs: Table[Config]
    networks: Table[Network]

    def __init__(self, kinds: Kinds, rows: Mapping[str, Rows[Any]]) -> None:
        self._kinds, self._all_rows = kinds, rows
        self._tables: dict[AnyKind, Table[Any]] = {}

    def of(self, kind: Kind[T]) -> Table[T]:
        """The table of a kind."""
        table = self._tables.get(kind)
        if table is None:
            if self._kinds.named(kind.name) is not kind:
                raise KeyError(kind.name)
            table = self._tables[kind] = kind.table(self._all_rows[kind.name])
        return table

    if not TYPE_CHECKING:  # for a type checker the tables are those above, and no other name will do

        def __getattr__(self, plural: str) -> Table[Any]:
            """A table, made when it is first asked for: most transactions are about one or two kinds."""
            for kind in vars(self).get("_kinds", ()):
                if kind.plural == plural:
                    table = vars(self)[plural] = self.of(kind)
                    return table
            raise AttributeError(f"a view has no {plural}")

    def missing(self, kind: Kind[T], obj: T) -> Iterator[tuple[AnyKind, str]]:
        """What ``obj`` of that kind names and is not there under that ID and that name: its kind, and the name."""
        for reference in kind.references:
            table = self.of(reference.to)
            for object_id, name in reference.named(obj):
                found = table.get(object_id)
                if found is None or (name != object_id and name not in reference.to.names(found)):
                    yield reference.to, name

    @property
    def cluster(self) -> Cluster:
        """The one cluster object. Raises: ObjectNotFoundError while there is none yet."""
        cluster = next(iter(self.clusters), None)
        if cluster is None:
            raise ObjectNotFoundError(kind="cluster", ref="object")
        return cluster


class _Layers(dict[str, LayeredRows[Any]]):
    """The layer over each kind's rows, by its name, made when it is first used."""

    def __init__(self, committed: Committed) -> None:
        super().__init__()
        self._committed = committed

    def __missing__(self, name: str) -> LayeredRows[Any]:
        layered = self[name] = LayeredRows(self._committed[name])
        return layered


class Layer(View):
    """What a transaction has written so far, over the committed state; every check of it. Reads see both.

    The proposer's transaction (``Working``) and the applying of an entry are the same layer: what one refuses the other
    does.
    """

    def __init__(self, kinds: Kinds, committed: Committed) -> None:
        self._rows = _Layers(committed)
        super().__init__(kinds, self._rows)

    def put_new(self, kind: AnyKind, obj: StoredObject) -> None:
        """Add a new object. Raises: ObjectExistsError, NameConflictError, ObjectNotFoundError (what it names)."""
        rows, object_id = self._rows[kind.name], obj.id
        if rows.get(object_id) is not None or rows.was_removed(object_id):  # IDs are used once
            raise ObjectExistsError(kind=kind.name, object_id=object_id)
        self._check_name(kind, obj)
        self._check_references(kind, obj, None)
        rows.put(object_id, obj)

    def put_changed(self, kind: AnyKind, obj: StoredObject) -> StoredObject:
        """Replace an object by a changed copy of it; returns what it was.

        Raises:
            ObjectNotFoundError, SequenceConflictError, NameConflictError.
        """
        rows, object_id = self._rows[kind.name], obj.id
        old: StoredObject | None = rows.get(object_id)
        if old is None:
            raise ObjectNotFoundError(kind=kind.name, ref=object_id)
        expected, actual = obj.version.index, old.version.index
        if expected != actual:
            raise _conflict(kind, object_id, expected, actual)
        self._check_name(kind, obj)
        self._check_references(kind, obj, old)
        rows.put(object_id, obj)
        return old

    def drop(self, kind: AnyKind, object_id: str, version_index: int) -> None:
        """Remove an object; version 0 removes whatever is there.

        Raises:
            ObjectNotFoundError, SequenceConflictError, ObjectInUseError.
        """
        rows = self._rows[kind.name]
        old: StoredObject | None = rows.get(object_id)
        if old is None:
            raise ObjectNotFoundError(kind=kind.name, ref=object_id)
        if version_index not in (0, old.version.index):
            raise _conflict(kind, object_id, version_index, old.version.index)
        self._check_unused(kind, old)
        rows.drop(object_id)

    def merge(self) -> Iterator[tuple[AnyKind, str, StoredObject | None, StoredObject | None]]:
        """Move what is written into the committed state; yields (kind, ID, old, new) of each object that changed."""
        for kind in self._kinds:
            layered = self._rows.get(kind.name)
            if layered is not None:
                for object_id, old, new in layered.merge():
                    yield kind, object_id, old, new

    def clear(self) -> None:
        """Forget everything written."""
        for layered in self._rows.values():
            layered.clear()

    def _check_name(self, kind: AnyKind, obj: StoredObject) -> None:
        if not kind.unique_names:
            return
        for name in kind.names(obj):
            for holder in self._rows[kind.name].lookup(NAME_INDEX, name):
                if holder.id != obj.id:
                    raise NameConflictError(kind=kind.name, name=name, holder_id=holder.id)

    def _check_references(self, kind: AnyKind, obj: StoredObject, old: StoredObject | None) -> None:
        """An object may begin to name only what is there."""
        for reference in kind.references:
            named: Collection[tuple[str, str]] = reference.named(obj)
            if not named:
                continue
            known = reference.ids(old) if old is not None else ()
            for object_id, name in named:
                if object_id not in known and object_id not in self.of(reference.to):
                    raise ObjectNotFoundError(kind=reference.to.name, ref=name or object_id)

    def _check_unused(self, kind: AnyKind, old: StoredObject) -> None:
        for user_kind, _ in self._kinds.referrers(kind):
            users = self.of(user_kind).naming(kind, old.id)
            if users:
                names = tuple(sorted(user_kind.name_of(user) for user in users))
                raise ObjectInUseError(kind=kind.name, name=kind.name_of(old), user_kind=user_kind.name, users=names)


_Key = tuple[str, str]

_Write = tuple[str, AnyKind, StoredObject | None, int]
"""One object's action: what, of which kind, the object (None: removed), the version at which it is removed.

It is encoded only when it is proposed: many objects are written more than once.
"""

_CREATE, _UPDATE, _REMOVE = "create", "update", "remove"


class Working(Layer):
    """A transaction under construction: reads see its own writes, nothing else does until it is committed.

    Objects handed in belong to the transaction and must not be changed after. An object written twice is one
    action in the end. Every write is checked as it will be when it is applied, so most refusals come at once;
    an entry that was committed in between is found at commit.

    Raises (of create, update, remove):
        ObjectExistsError, NameConflictError, SequenceConflictError, ObjectNotFoundError, ObjectInUseError.
    """

    def __init__(self, kinds: Kinds, committed: Committed) -> None:
        self._writes: dict[_Key, _Write] = {}
        self._boundaries: set[_Key] = set()
        super().__init__(kinds, committed)

    @property
    def actions(self) -> list[bytes]:
        """What commit will propose: a StoreAction each, in the order in which the objects were first written."""
        return [_encoded(object_id, write) for (_, object_id), write in self._writes.items()]

    @property
    def size(self) -> int:
        """Number of objects written so far."""
        return len(self._writes)

    def boundary(self) -> None:
        """Say that the state is consistent at this point: ``commit(split=True)`` may end an entry here."""
        if self._writes:
            self._boundaries.add(next(reversed(self._writes)))

    def groups(self) -> list[list[bytes]]:
        """The actions, cut at the boundaries."""
        groups: list[list[bytes]] = [[]]
        for key, write in self._writes.items():
            groups[-1].append(_encoded(key[1], write))
            if key in self._boundaries:
                groups.append([])
        return [group for group in groups if group]

    def create(self, obj: StoredObject) -> None:
        """Add a new object; its ID must be set, its version is the store's to set."""
        kind = self._kinds.of(obj)
        if not obj.id:
            raise ValueError(f"a {kind.name} without an ID cannot be stored")
        self.put_new(kind, obj)
        self._writes[kind.name, obj.id] = (_CREATE, kind, obj, 0)

    def update(self, obj: StoredObject) -> None:
        """Replace an object by a changed copy of it; ``version`` must be that of the copy's source."""
        kind = self._kinds.of(obj)
        self.put_changed(kind, obj)
        key = (kind.name, obj.id)
        earlier = self._writes.get(key)
        is_new = earlier is not None and earlier[0] == _CREATE
        self._writes[key] = (_CREATE if is_new else _UPDATE, kind, obj, 0)

    def remove(self, obj: StoredObject) -> None:
        """Remove an object as it was read: refused when it has changed since."""
        self.remove_by_id(self._kinds.of(obj), obj.id, obj.version.index)

    def remove_by_id(self, kind: AnyKind, object_id: str, version_index: int) -> None:
        """Remove by ID; version 0 removes whatever is there."""
        self.drop(kind, object_id, version_index)
        key = (kind.name, object_id)
        earlier = self._writes.get(key)
        if earlier is not None and earlier[0] == _CREATE:
            self._forget(key)
        else:
            self._writes[key] = (_REMOVE, kind, None, version_index)

    def _forget(self, key: _Key) -> None:
        """Undo the write of an object that the transaction itself had created; a boundary there moves up."""
        if key in self._boundaries:
            self._boundaries.discard(key)
            keys: Sequence[_Key] = list(self._writes)
            at = keys.index(key)
            if at:
                self._boundaries.add(keys[at - 1])
        del self._writes[key]


def _encoded(object_id: str, write: _Write) -> bytes:
    verb, kind, obj, version_index = write
    if obj is None:
        return encode_removal(kind, object_id, version_index)
    return encode_create(kind, obj) if verb == _CREATE else encode_update(kind, obj)


def _conflict(kind: AnyKind, object_id: str, expected: int, actual: int) -> SequenceConflictError:
    return SequenceConflictError(kind=kind.name, object_id=object_id, expected=expected, actual=actual)
