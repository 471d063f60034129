"""Where the objects of one kind lie: the committed rows with their indexes, and a transaction's layer over them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from sys import intern  # noqa: TID251 - of equal strings one is kept; nothing is read
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from manager.store.objects import StoredObject, T

if TYPE_CHECKING:  # a kind says what class its table is, and tables stand on rows
    from manager.store.kinds.kind import AnyKind, Kind

IndexKey = Hashable

NAME_INDEX = "name"
"""The index of the names that objects answer to."""

T_co = TypeVar("T_co", bound=StoredObject, covariant=True)


class Rows(Protocol[T_co]):
    """What a table reads from."""

    @property
    def kind(self) -> AnyKind: ...
    def get(self, object_id: str) -> T_co | None: ...
    def values(self) -> Iterator[T_co]: ...
    def lookup(self, index: str, key: IndexKey) -> Collection[T_co]: ...
    def has_any(self, index: str, key: IndexKey) -> bool: ...
    def groups(self, index: str) -> Iterator[tuple[IndexKey, Collection[T_co]]]: ...
    def __len__(self) -> int: ...


class _Found(Collection[T]):
    """Several objects by their IDs, in the order in which they came; live, as the rows are."""

    __slots__ = ("_ids", "_objects")

    def __init__(self, objects: Mapping[str, T], ids: Collection[str]) -> None:
        self._objects, self._ids = objects, ids

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[T]:
        return map(self._objects.__getitem__, self._ids)

    def __contains__(self, obj: object) -> bool:
        return any(obj == found for found in self)


_Members = str | dict[str, None]
"""The IDs under one key: mostly it is one alone, and a dictionary for each would be most of what a task takes."""


class CommittedRows(Generic[T]):
    """Objects by ID, and indexes that change with them; an object that changes costs what it alone is.

    The indexes hold IDs, not objects: a change that moves no object in them does not touch them.
    """

    __slots__ = ("_indexes", "kind", "objects")

    def __init__(self, kind: Kind[T]) -> None:
        self.kind = kind
        self.objects: dict[str, T] = {}
        self._indexes: dict[str, dict[IndexKey, _Members]] = {name: {} for name in kind.index_names}

    def get(self, object_id: str) -> T | None:
        return self.objects.get(object_id)

    def values(self) -> Iterator[T]:
        return iter(self.objects.values())

    def __len__(self) -> int:
        return len(self.objects)

    def lookup(self, index: str, key: IndexKey) -> Collection[T]:
        members = self._indexes[index].get(key)
        return () if members is None else self._found(members)

    def lookup_ids(self, index: str, key: IndexKey) -> Collection[str]:
        """The IDs of what ``lookup`` finds."""
        members = self._indexes[index].get(key)
        if members is None:
            return ()
        return (members,) if type(members) is str else members

    def has_any(self, index: str, key: IndexKey) -> bool:
        """Whether ``lookup`` would find anything, without listing it."""
        return key in self._indexes[index]

    def groups(self, index: str) -> Iterator[tuple[IndexKey, Collection[T]]]:
        """Every key of an index, with what stands under it; one at least."""
        return ((key, self._found(members)) for key, members in self._indexes[index].items())

    def put(self, object_id: str, obj: T) -> T | None:
        """Store ``obj`` under its ID; returns what was there."""
        kind = self.kind
        old = self.objects.get(object_id)
        self.objects[object_id] = obj
        if kind.field_keys:
            fields = kind.fields_of(obj)
            if old is None:
                fields = tuple(intern(value) if type(value) is str else value for value in fields)
                for name, key_of in kind.field_keys:
                    _link(self._indexes[name], key_of(fields), object_id)
            elif (old_fields := kind.fields_of(old)) != fields:
                for name, key_of in kind.field_keys:
                    key, old_key = key_of(fields), key_of(old_fields)
                    if key != old_key:
                        _unlink(self._indexes[name], old_key, object_id)
                        _link(self._indexes[name], key, object_id)
        for name, keys_of in kind.key_functions:
            keys = keys_of(obj)
            old_keys = keys_of(old) if old is not None else ()
            for key in old_keys:
                if key not in keys:
                    _unlink(self._indexes[name], key, object_id)
            for key in keys:
                if key not in old_keys:
                    _link(self._indexes[name], key, object_id)
        return old

    def replace_by(self, other: CommittedRows[T]) -> None:
        """Take over everything ``other`` holds, which is not used after."""
        self.objects, self._indexes = other.objects, other._indexes

    def drop(self, object_id: str) -> T | None:
        """Forget an object; returns it."""
        kind = self.kind
        old = self.objects.pop(object_id, None)
        if old is None:
            return None
        if kind.field_keys:
            fields = kind.fields_of(old)
            for name, key_of in kind.field_keys:
                _unlink(self._indexes[name], key_of(fields), object_id)
        for name, keys_of in kind.key_functions:
            for key in keys_of(old):
                _unlink(self._indexes[name], key, object_id)
        return old

    def _found(self, members: _Members) -> Collection[T]:
        return (self.objects[members],) if isinstance(members, str) else _Found(self.objects, members)


def _link(index: dict[IndexKey, _Members], key: IndexKey, object_id: str) -> None:
    members = index.get(key)
    if members is None:
        index[key] = object_id
    elif isinstance(members, dict):
        members[object_id] = None
    elif members != object_id:
        index[key] = {members: None, object_id: None}


def _unlink(index: dict[IndexKey, _Members], key: IndexKey, object_id: str) -> None:
    members = index.get(key)
    if type(members) is dict:
        members.pop(object_id, None)  # a kind may name a key twice
        if len(members) == 1:
            index[key] = next(iter(members))
    elif members == object_id:
        del index[key]


class LayeredRows(Generic[T]):
    """What a transaction has written, over the committed rows; reads see both.

    Most transactions look nothing up among what they write: that gets indexes with the first who does.
    """

    __slots__ = ("_base", "_indexed", "_removed", "kind", "written")

    def __init__(self, base: CommittedRows[T]) -> None:
        self.kind = base.kind
        self._base = base
        self.written: dict[str, T] = {}
        self._removed: dict[str, None] = {}
        self._indexed: CommittedRows[T] | None = None

    def get(self, object_id: str) -> T | None:
        written = self.written.get(object_id)
        if written is not None or object_id in self._removed:
            return written
        return self._base.objects.get(object_id)

    def was_removed(self, object_id: str) -> bool:
        """Whether the transaction has removed an object that was there before it."""
        return object_id in self._removed

    def values(self) -> Iterator[T]:
        written, removed = self.written, self._removed
        for object_id, obj in self._base.objects.items():
            if object_id not in written and object_id not in removed:
                yield obj
        yield from written.values()

    def __len__(self) -> int:
        new = sum(1 for object_id in self.written if object_id not in self._base.objects)
        return len(self._base) - len(self._removed) + new

    def lookup(self, index: str, key: IndexKey) -> Collection[T]:
        written, removed, objects = self.written, self._removed, self._base.objects
        if not removed and not written:
            return self._base.lookup(index, key)
        found = [
            objects[object_id]
            for object_id in self._base.lookup_ids(index, key)
            if object_id not in written and object_id not in removed
        ]
        if written:
            found.extend(self._written_rows().lookup(index, key))
        return found

    def has_any(self, index: str, key: IndexKey) -> bool:
        written, removed = self.written, self._removed
        ids = self._base.lookup_ids(index, key)
        if len(ids) > len(removed) + len(
            written
        ):  # without indexes of what is written, which every write is put into then
            return True
        if written and self._written_rows().has_any(index, key):
            return True
        return any(object_id not in written and object_id not in removed for object_id in ids)

    def groups(self, index: str) -> Iterator[tuple[IndexKey, Collection[T]]]:
        keys = dict.fromkeys(key for rows in (self._base, self._written_rows()) for key, _ in rows.groups(index))
        return ((key, found) for key in keys if (found := self.lookup(index, key)))

    def put(self, object_id: str, obj: T) -> None:
        self._removed.pop(object_id, None)
        self.written[object_id] = obj
        if self._indexed is not None:
            self._indexed.put(object_id, obj)

    def drop(self, object_id: str) -> None:
        if self.written.pop(object_id, None) is not None and self._indexed is not None:
            self._indexed.drop(object_id)
        if object_id in self._base.objects:
            self._removed[object_id] = None

    def merge(self) -> Iterator[tuple[str, T | None, T | None]]:
        """Move the layer into the committed rows; yields (ID, old, new) of each object that changed."""
        for object_id in self._removed:
            yield object_id, self._base.drop(object_id), None
        for object_id, obj in self.written.items():
            yield object_id, self._base.put(object_id, obj), obj

    def clear(self) -> None:
        """Forget everything written."""
        self.written.clear()
        self._removed.clear()
        self._indexed = None

    def _written_rows(self) -> CommittedRows[T]:
        if self._indexed is None:
            self._indexed = CommittedRows(self.kind)
            for object_id, obj in self.written.items():
                self._indexed.put(object_id, obj)
        return self._indexed
