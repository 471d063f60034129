"""What this node was told of, by kind and ID; no I/O.

The kinds are those of ``AssignmentKind`` in proto/dispatcher.proto, and nothing here names one but tasks: a kind that is
added to the schema is kept, listed and removed as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, Self, TypeVar, cast

import structlog
from google.protobuf.descriptor import Descriptor

from proto.dispatcher_pb2 import AssignmentChange, AssignmentKey, AssignmentKind
from proto.objects_pb2 import Task

log = structlog.get_logger(__name__)

_TASK = AssignmentKind.ASSIGNMENT_KIND_TASK
_PREFIX = "ASSIGNMENT_KIND_"

FIELDS: Mapping[int, str] = {
    value.number: value.name.removeprefix(_PREFIX).lower() for value in AssignmentKind.DESCRIPTOR.values if value.number
}
"""Number of a kind -> the field of ``AssignmentChange`` that holds an object of it."""


class AssignedObject(Protocol):
    """A message that stands in ``AssignmentChange.object``."""

    DESCRIPTOR: Descriptor
    id: str

    def CopyFrom(self, other: Self) -> None: ...  # noqa: N802 - protobuf's name


M = TypeVar("M", bound=AssignedObject)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_object_id(text: str) -> bool:
    """Whether an object can have this ID. It is the name of a folder, too: one word, and not a way out of it."""
    return _ID.fullmatch(text) is not None


def _message_of(kind: int) -> Descriptor:
    """What a kind's objects are."""
    message = AssignmentChange.DESCRIPTOR.fields_by_name[FIELDS[kind]].message_type
    assert message is not None
    return message


_KINDS: Mapping[str, AssignmentKind.ValueType] = {
    _message_of(number).full_name: AssignmentKind.ValueType(number) for number in FIELDS
}
"""Full name of a message -> its kind."""


def kind_of(message: type[AssignedObject] | AssignedObject) -> AssignmentKind.ValueType:
    """The kind of a message or message class. Raises: KeyError when agents are not told of such."""
    return _KINDS[message.DESCRIPTOR.full_name]


def change_of(obj: AssignedObject, needs: Iterable[AssignmentKey] = ()) -> AssignmentChange:
    """The change that tells of ``obj``, and of a task what it needs."""
    kind = kind_of(obj)
    change = AssignmentChange(kind=kind, id=obj.id, needs=needs)
    content: AssignedObject = getattr(change, FIELDS[kind])
    content.CopyFrom(obj)
    return change


def is_removal(change: AssignmentChange) -> bool:
    return change.WhichOneof("object") is None


class Contents:
    """Objects by kind and ID."""

    def __init__(self, *objects: AssignedObject) -> None:
        self._objects: dict[int, dict[str, AssignedObject]] = {number: {} for number in FIELDS}
        self._needs: dict[str, Sequence[AssignmentKey]] = {}
        for obj in objects:
            self._objects[kind_of(obj)][obj.id] = obj

    def of(self, message: type[M]) -> Mapping[str, M]:
        """The objects of that message class, by ID; live."""
        # By construction and by ``put`` a kind's objects are of its message class.
        return cast(Mapping[str, M], self._objects[kind_of(message)])

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self.of(Task)

    def keys(self) -> set[tuple[int, str]]:
        """(kind, ID) of everything."""
        return {(kind, object_id) for kind, objects in self._objects.items() for object_id in objects}

    def needed_by(self, task_id: str) -> tuple[Contents, bool]:
        """What a task needs, as far as it is here, and whether that is all."""
        found = Contents()
        is_whole = True
        for need in self._needs.get(task_id, ()):
            obj = self._objects.get(need.kind, {}).get(need.id)
            if obj is None:
                is_whole = False
            else:
                found._objects[need.kind][need.id] = obj
        return found, is_whole

    def changes(self) -> Iterator[AssignmentChange]:
        """What leads from nothing to these contents: what a task needs before the task."""
        for kind in sorted(self._objects, key=lambda kind: kind == _TASK):
            for obj in self._objects[kind].values():
                yield change_of(obj, self._needs.get(obj.id, ()) if kind == _TASK else ())

    def put(self, change: AssignmentChange, node_id: str) -> bool:
        """Apply one change, and say whether it makes sense; what does not, or is another node's, is passed over."""
        objects = self._objects.get(change.kind)
        if objects is None:
            log.warning("assignment.unknown_kind", kind=change.kind)  # from a newer manager
            return False
        name = change.WhichOneof("object")
        if name is None:
            objects.pop(change.id, None)
            if change.kind == _TASK:
                self._needs.pop(change.id, None)
            return True
        obj: AssignedObject = getattr(change, name)
        is_one = name == FIELDS[change.kind] and change.id == obj.id and is_object_id(change.id)
        if not is_one or not _is_for(change, node_id):
            log.warning(
                "assignment.passed_over",
                kind=FIELDS[change.kind],
                id=change.id[:128],
                node_id=change.task.node_id[:128],
            )
            return False
        objects[change.id] = obj
        if change.kind == _TASK:
            self._needs[change.id] = tuple(change.needs)
        return True


def _is_for(change: AssignmentChange, node_id: str) -> bool:
    return change.kind != _TASK or change.task.node_id == node_id
