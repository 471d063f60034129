"""Finding what a reference names: full ID, exact name, unique ID prefix, in this order (features W07)."""

from __future__ import annotations

from manager.control.errors import InvalidRequestError, NotFoundError, OutOfSequenceError
from manager.store import NODES, SERVICES, TASKS, AmbiguousReferenceError, Kind, ObjectNotFoundError, StoredObject, View
from manager.store.objects import T
from proto.objects_pb2 import Node, Service, SpecVersion, Task


def find(view: View, kind: Kind[T], ref: str) -> T:
    """An object of any kind. Raises: NotFoundError, InvalidRequestError (several match)."""
    try:
        return view.of(kind).find(ref)
    except ObjectNotFoundError as error:
        raise NotFoundError(kind.name, ref) from error
    except AmbiguousReferenceError as error:
        raise InvalidRequestError(str(error)) from error


def find_node(view: View, ref: str) -> Node:
    """By ID, hostname or ID prefix. Raises: NotFoundError, InvalidRequestError (several match)."""
    return find(view, NODES, ref)


def find_service(view: View, ref: str) -> Service:
    """One that was not removed. Raises: NotFoundError, InvalidRequestError (several match)."""
    return find(view, SERVICES, ref)


def find_task(view: View, ref: str) -> Task:
    """By ID, by name (``web.1.<ID>``) or ID prefix. Raises: NotFoundError, InvalidRequestError (several match)."""
    return find(view, TASKS, ref)


def spec_version_of(view: View, task: Task) -> SpecVersion | None:
    """The spec version that a task names."""
    return view.spec_versions.of(task.service_id, task.spec_version)


def check_version(item: StoredObject, version: int) -> None:
    """Raises: OutOfSequenceError: ``version`` is not the object's version now (features W06)."""
    if item.version.index != version:
        raise OutOfSequenceError
