"""What users do alike with objects of any kind: create, list, update and remove them.

The kind's declaration in the store says how it is named, labelled and referred to; ``Managed`` adds what only users and
their requests concern. ``manager.control.object_methods`` has the table of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from manager.control.errors import AlreadyExistsError
from manager.control.filters import OBJECT_KEYS
from manager.control.lookup import check_version
from manager.store import Kind, StoredObject, Working


class SpecObject(StoredObject, Protocol):
    """A stored object that a user's spec describes."""

    @property
    def spec(self) -> Message: ...


S = TypeVar("S", bound=SpecObject)


def _nothing(_: Working, __: SpecObject) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Managed(Generic[S]):
    """A kind whose objects users make and remove through the five RPCs called after it (CreateSecret, ListSecrets).

    Attributes:
        kind: as the store knows it.
        validate: refuses an object of a spec that cannot be (InvalidArgumentError, UnimplementedError).
        change: writes into a copy of an object, the first argument, what is to be changed of it by the second, which has
            the wanted spec; refuses what may not be changed.
        filter_keys: the filters a list takes.
        complete: writes into an object that is made what is chosen for it; may change others; refuses what is not to be had.
        removable: refuses to remove an object that is needed, where that is more than being named by others.
    """

    kind: Kind[S]
    validate: Callable[[S], None]
    change: Callable[[S, S], None]
    filter_keys: frozenset[str] = OBJECT_KEYS
    complete: Callable[[Working, S], None] = _nothing
    removable: Callable[[Working, S], None] = _nothing

    @cached_property
    def word(self) -> str:
        """As the RPCs spell it: ``Secret``."""
        return "".join(part.capitalize() for part in self.kind.name.split("_"))

    def wanted(self, spec: Message) -> S:
        """An object of that spec and nothing else."""
        obj = self.kind.message()
        obj.spec.CopyFrom(spec)
        return obj


def create(working: Working, managed: Managed[S], wanted: S, *, object_id: str, now: Timestamp) -> S:
    """Add an object.

    Args:
        wanted: its spec, which is valid; the rest is filled in.

    Raises:
        AlreadyExistsError, and what completing it raises.
    """
    kind = managed.kind
    if kind.unique_names:
        for name in kind.names(wanted):
            if working.of(kind).by_name(name) is not None:
                raise AlreadyExistsError(f"{kind.name} {name} already exists")
    obj = _copy(kind, wanted)
    obj.id = object_id
    obj.created_at.CopyFrom(now)
    obj.updated_at.CopyFrom(now)
    managed.complete(working, obj)
    working.create(obj)
    return obj


def update(working: Working, managed: Managed[S], obj: S, wanted: S, *, version: int, now: Timestamp) -> S:
    """Change an object as far as its kind allows.

    Raises:
        OutOfSequenceError, InvalidArgumentError.
    """
    check_version(obj, version)
    changed = _copy(managed.kind, obj)
    managed.change(changed, wanted)
    changed.updated_at.CopyFrom(now)
    working.update(changed)
    return changed


def _copy(kind: Kind[S], obj: S) -> S:
    copy = kind.message()
    copy.CopyFrom(obj)
    return copy
