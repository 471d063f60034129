"""Tables: how objects of one kind are read, whether committed or in a transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Generic

from manager.store.errors import AmbiguousReferenceError, ObjectNotFoundError
from manager.store.objects import T
from manager.store.rows import NAME_INDEX, IndexKey, Rows

if TYPE_CHECKING:  # a kind says what class its table is
    from manager.store.kinds.kind import AnyKind


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
        candidates = list(self.named(ref))
        if not candidates and ref:
            candidates = [obj for obj in self._rows.values() if obj.id.startswith(ref) and self._is_findable(obj)]
        if not candidates:
            raise ObjectNotFoundError(kind=kind, ref=ref)
        if len(candidates) > 1:
            raise AmbiguousReferenceError(kind=kind, ref=ref, matches=len(candidates))
        return candidates[0]

    def named(self, name: str) -> Collection[T]:
        """The objects of exactly that name; at most one where the kind's names are unique."""
        return self._rows.lookup(NAME_INDEX, name) if self._rows.kind.has_names else ()

    def by_name(self, name: str) -> T | None:
        """The object of exactly that name, or one of them."""
        return next(iter(self.named(name)), None)

    def lookup(self, index: str, key: IndexKey) -> Collection[T]:
        """The objects that stand under ``key`` in one of the kind's indexes (``Kind.indexes``)."""
        return self._rows.lookup(index, key)

    def naming(self, kind: AnyKind, object_id: str) -> Collection[T]:
        """The objects that name that object of another kind (``Kind.references``)."""
        return self._rows.lookup(kind.reference_index, object_id)

    def _is_findable(self, obj: T) -> bool:
        return True
