"""Where the objects of one kind lie: the committed rows with their indexes, and a transaction's layer over them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, ValuesView
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


class CommittedRows(Generic[T]):
    """Objects by ID, and indexes that change with them; an object that changes costs what it alone is."""

    __slots__ = ("_indexes", "_key_functions", "kind", "objects")

    def __init__(self, kind: Kind[T]) -> None:
        self.kind = kind
        self.objects: dict[str, T] = {}
        self._key_functions = kind.key_functions
        self._indexes: dict[str, dict[IndexKey, dict[str, T]]] = {name: {} for name, _ in kind.key_functions}

    def get(self, object_id: str) -> T | None:
        return self.objects.get(object_id)

    def values(self) -> Iterator[T]:
        return iter(self.objects.values())

    def __len__(self) -> int:
        return len(self.objects)

    def lookup(self, index: str, key: IndexKey) -> ValuesView[T]:
        found = self._indexes[index].get(key)
        return found.values() if found is not None else {}.values()

    def has_any(self, index: str, key: IndexKey) -> bool:
        """Whether ``lookup`` would find anything, without listing it."""
        return key in self._indexes[index]

    def groups(self, index: str) -> Iterator[tuple[IndexKey, ValuesView[T]]]:
        """Every key of an index, with what stands under it; one at least."""
        return ((key, members.values()) for key, members in self._indexes[index].items())

    def put(self, obj: T) -> T | None:
        """Store ``obj`` under its ID; returns what was there."""
        old = self.objects.get(obj.id)
        self.objects[obj.id] = obj
        for name, keys_of in self._key_functions:
            index = self._indexes[name]
            new_keys = keys_of(obj)
            if old is not None:
                old_keys = keys_of(old)
                if old_keys != new_keys:
                    self._unlink(index, old.id, [key for key in old_keys if key not in new_keys])
            for key in new_keys:
                members = index.get(key)
                if members is None:
                    members = index[key] = {}
                members[obj.id] = obj
        return old

    def replace_by(self, other: CommittedRows[T]) -> None:
        """Take over everything ``other`` holds, which is not used after."""
        self.objects, self._indexes = other.objects, other._indexes

    def drop(self, object_id: str) -> T | None:
        """Forget an object; returns it."""
        old = self.objects.pop(object_id, None)
        if old is not None:
            for name, keys_of in self._key_functions:
                self._unlink(self._indexes[name], object_id, keys_of(old))
        return old

    @staticmethod
    def _unlink(index: dict[IndexKey, dict[str, T]], object_id: str, keys: Collection[IndexKey]) -> None:
        for key in keys:
            members = index[key]
            del members[object_id]
            if not members:
                del index[key]


class LayeredRows(Generic[T]):
    """What a transaction has written, over the committed rows; reads see both.

    Most transactions write to few tables, so what was written gets rows of its own with the first object.
    """

    __slots__ = ("_base", "_nothing", "_removed", "_written", "kind")

    def __init__(self, base: CommittedRows[T], nothing: CommittedRows[T]) -> None:
        """
        Args:
            nothing: empty rows of the kind, which any number of layers share.
        """
        self.kind = base.kind
        self._base = base
        self._written = self._nothing = nothing
        self._removed: set[str] = set()

    def get(self, object_id: str) -> T | None:
        written = self._written.objects.get(object_id)
        if written is not None or object_id in self._removed:
            return written
        return self._base.objects.get(object_id)

    def values(self) -> Iterator[T]:
        hidden = self._hidden()
        for obj in self._base.objects.values():
            if obj.id not in hidden:
                yield obj
        yield from self._written.objects.values()

    def __len__(self) -> int:
        new = sum(1 for object_id in self._written.objects if object_id not in self._base.objects)
        return len(self._base) - len(self._removed) + new

    def lookup(self, index: str, key: IndexKey) -> Collection[T]:
        base = self._base.lookup(index, key)
        if not self._removed and not self._written.objects:
            return base
        removed, written = self._removed, self._written.objects
        found = [obj for obj in base if obj.id not in written and obj.id not in removed]
        found.extend(self._written.lookup(index, key))
        return found

    def has_any(self, index: str, key: IndexKey) -> bool:
        if self._written.has_any(index, key):
            return True
        removed, written = self._removed, self._written.objects
        base = self._base.lookup(index, key)
        if len(base) > len(removed) + len(written):
            return True
        return any(obj.id not in written and obj.id not in removed for obj in base)

    def groups(self, index: str) -> Iterator[tuple[IndexKey, Collection[T]]]:
        keys = dict.fromkeys(key for rows in (self._base, self._written) for key, _ in rows.groups(index))
        return ((key, found) for key in keys if (found := self.lookup(index, key)))

    def put(self, obj: T) -> None:
        self._removed.discard(obj.id)
        if self._written is self._nothing:
            self._written = CommittedRows(self.kind)
        self._written.put(obj)

    def drop(self, object_id: str) -> None:
        self._written.drop(object_id)
        if object_id in self._base.objects:
            self._removed.add(object_id)

    def merge(self) -> Iterator[tuple[T | None, T | None]]:
        """Move the layer into the committed rows; yields (old, new) of each object that changed."""
        for object_id in self._removed:
            yield self._base.drop(object_id), None
        for obj in self._written.objects.values():
            yield self._base.put(obj), obj

    def _hidden(self) -> Collection[str]:
        return self._removed | self._written.objects.keys()
