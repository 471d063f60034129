"""What a kind of objects declares of itself; everything generic in the store, in control and in the dispatcher follows it.

Pure: what is declared of an object (names, keys, references) must depend on the object alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter, itemgetter
from typing import Any, Generic

from google.protobuf.message import Message

from manager.store.frames import tag_of, varint
from manager.store.objects import StoredObject, T
from manager.store.rows import NAME_INDEX, IndexKey
from manager.store.tables import Table
from proto.dispatcher_pb2 import AssignmentChange, AssignmentKind
from proto.objects_pb2 import Task
from proto.specs_pb2 import ServiceSpec
from proto.store_pb2 import StoreObject

KeyFunction = Callable[[T], Collection[IndexKey]]
"""The keys under which an object stands in an index."""


def _nameless(_: StoredObject) -> Collection[str]:
    return ()


def _no_labels(_: StoredObject) -> Mapping[str, str]:
    return {}


def _as_it_is(obj: T) -> T:
    return obj


@dataclass(frozen=True, eq=False)
class Reference(Generic[T]):
    """Objects of this kind name objects of another, which cannot be removed while they do.

    Attributes:
        to: the kind that is named.
        named: what an object names: IDs, each with the name that messages call it by (the ID where it says none). An
            object may begin to name only what is there.
    """

    to: AnyKind
    named: Callable[[T], Collection[tuple[str, str]]]

    def ids(self, obj: T) -> Collection[str]:
        """The IDs alone."""
        return {object_id for object_id, _ in self.named(obj)}


@dataclass(frozen=True, eq=False)
class Assigned(Generic[T]):
    """How agents are told of a kind's objects.

    Attributes:
        kind: its name in AssignmentKind; the field of AssignmentChange is called alike.
        needed_by: the IDs that a live task needs, as all of its version of the spec on the same networks do; the spec is None
            once the service is gone.
        sent: what of an object goes over the wire; all of it unless something is left out.
        has_members: who else is on it is told with it (``dispatcher.members``).
    """

    kind: AssignmentKind.ValueType
    needed_by: Callable[[Task, ServiceSpec | None], Iterable[str]]
    sent: Callable[[T], T] = _as_it_is
    has_members: bool = False

    @cached_property
    def field(self) -> str:
        """The field of AssignmentChange."""
        return AssignmentKind.Name(self.kind).removeprefix("ASSIGNMENT_KIND_").lower()

    def change(self, obj: T) -> AssignmentChange:
        """What an agent is told of ``obj``."""
        change = AssignmentChange(kind=self.kind, id=obj.id)
        content: T = getattr(change, self.field)
        content.CopyFrom(self.sent(obj))
        return change


@dataclass(frozen=True, eq=False)
class Kind(Generic[T]):
    """One kind of stored object.

    Attributes:
        name: singular, as users read it; also the field of StoreObject, which tags it in the log and in snapshots.
        plural: the attribute of a view that is its table.
        message: its message class.
        table: how it is read, where that is more than any table can do.
        names: the names an object answers to.
        unique_names: a name belongs to one object.
        labels: the labels an object is listed by.
        field_indexes: name of an index -> the field that is the key of an object in it, or the fields that make it up.
        indexes: name of an index -> the keys of an object in it, where these are more than fields.
        references: the kinds whose objects it names.
        assigned: how agents are told of it; None when they are not, or (tasks) when it is what they are told of.
    """

    name: str
    plural: str
    message: type[T]
    table: type[Table[T]] = Table
    names: Callable[[T], Collection[str]] = _nameless
    unique_names: bool = False
    labels: Callable[[T], Mapping[str, str]] = _no_labels
    field_indexes: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    indexes: Mapping[str, KeyFunction[T]] = field(default_factory=dict)
    references: tuple[Reference[T], ...] = ()
    assigned: Assigned[T] | None = None

    @cached_property
    def key_functions(self) -> tuple[tuple[str, KeyFunction[T]], ...]:
        """Every index but those over fields: those declared, and those that follow from names and references."""
        functions: dict[str, KeyFunction[T]] = dict(self.indexes)
        if self.has_names:
            functions[NAME_INDEX] = self.names
        functions.update((reference.to.reference_index, reference.ids) for reference in self.references)
        return tuple(functions.items())

    @cached_property
    def index_names(self) -> tuple[str, ...]:
        return (*self.field_indexes, *(name for name, _ in self.key_functions))

    @cached_property
    def _fields(self) -> tuple[str, ...]:
        """Every field that an index is over."""
        declared = (fields if isinstance(fields, tuple) else (fields,) for fields in self.field_indexes.values())
        return tuple(dict.fromkeys(name for fields in declared for name in fields))

    @cached_property
    def fields_of(self) -> Callable[[T], tuple[Hashable, ...]]:
        """What an object's keys in the indexes over fields are made of: objects that agree in it stand under the same."""
        first, *others = self._fields
        if others:
            return attrgetter(first, *others)
        return lambda obj: (getattr(obj, first),)

    @cached_property
    def field_keys(self) -> tuple[tuple[str, Callable[[tuple[Hashable, ...]], IndexKey]], ...]:
        """The indexes over fields, and how the key is made of ``fields_of``."""
        position = self._fields.index
        return tuple(
            (name, itemgetter(*map(position, fields if isinstance(fields, tuple) else (fields,))))
            for name, fields in self.field_indexes.items()
        )

    @property
    def has_names(self) -> bool:
        return self.names is not _nameless

    @property
    def reference_index(self) -> str:
        """The index, in the tables of other kinds, of which of their objects name which of these."""
        return f"{self.name} named"

    def name_of(self, obj: T) -> str:
        """What messages call ``obj``: its first name, else its ID."""
        return next(iter(self.names(obj)), obj.id)

    @cached_property
    def tag(self) -> bytes:
        """What stands before an object in a StoreObject."""
        return varint(tag_of(StoreObject, self.name))


AnyKind = Kind[Any]
"""A kind of which it does not matter here what its objects are; each function of it is given its own."""


class UnknownKindError(ValueError):
    """An object or a name of a kind that this version does not know."""


class Kinds:
    """The kinds that a store holds, in the order in which snapshots hold them."""

    def __init__(self, *kinds: AnyKind) -> None:
        """Raises: TypeError: a kind does not fit the schema."""
        self._kinds = kinds
        self._by_name = {kind.name: kind for kind in kinds}
        self._by_message: dict[type[Message], AnyKind] = {kind.message: kind for kind in kinds}
        self._by_tag: dict[int, AnyKind] = {}
        self.assigned = tuple(kind for kind in kinds if kind.assigned is not None)
        """What agents are told of besides tasks."""
        self._referrers: dict[AnyKind, list[tuple[AnyKind, Reference[Any]]]] = {}
        for kind in kinds:
            _check_schema(StoreObject, kind.name, kind)
            self._by_tag[tag_of(StoreObject, kind.name)] = kind
            if kind.assigned is not None:
                _check_schema(AssignmentChange, kind.assigned.field, kind)
            for reference in kind.references:
                self._referrers.setdefault(reference.to, []).append((kind, reference))

    def __iter__(self) -> Iterator[AnyKind]:
        return iter(self._kinds)

    def of(self, obj: StoredObject) -> AnyKind:
        """The kind of ``obj``. Raises: TypeError when it is no storable message."""
        try:
            return self._by_message[type(obj)]  # type: ignore[index]  # the messages are all there is of this protocol
        except KeyError:
            raise TypeError(f"not a storable object: {type(obj).__name__}") from None

    def named(self, name: str) -> AnyKind:
        """Raises: UnknownKindError."""
        try:
            return self._by_name[name]
        except KeyError:
            raise UnknownKindError(f"no kind of objects is called {name!r}") from None

    def referrers(self, kind: AnyKind) -> Iterable[tuple[AnyKind, Reference[Any]]]:
        """The kinds that name objects of ``kind``, and how."""
        return self._referrers.get(kind, ())

    def tagged(self, tag: int) -> AnyKind:
        """The kind whose objects stand behind ``tag`` in a StoreObject. Raises: UnknownKindError."""
        try:
            return self._by_tag[tag]
        except KeyError:
            raise UnknownKindError(f"no kind of objects has the tag {tag}") from None


def _check_schema(outer: type[Message], name: str, kind: AnyKind) -> None:
    declared = outer.DESCRIPTOR.fields_by_name.get(name)
    if declared is None or declared.message_type is not kind.message.DESCRIPTOR:
        raise TypeError(f"{outer.__name__} has no field {name} for {kind.message.__name__}")
