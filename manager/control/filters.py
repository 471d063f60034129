"""``?filters=`` of the list endpoints, as predicates (features A4.01, A5.02, A6.05, A10.14, A10.16).

Values of one key are alternatives, except labels, which must all be there; keys must all match. A key that the list
does not know is refused. Source: moby ``daemon/cluster/filters.go``, swarmkit ``manager/controlapi/common.go``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from manager.control.errors import InvalidRequestError
from manager.model.modes import mode_of
from manager.store import Kind
from manager.store.objects import T
from proto.control_pb2 import Filters
from proto.objects_pb2 import Node, Service, Task, TaskState
from proto.options_pb2 import api
from proto.specs_pb2 import NodeRole, ServiceSpec

Values = Mapping[str, Collection[str]]

NODE_KEYS = frozenset({"id", "label", "membership", "name", "node.label", "role"})
SERVICE_KEYS = frozenset({"id", "label", "mode", "name", "runtime"})
TASK_KEYS = frozenset({"_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service"})
OBJECT_KEYS = frozenset({"id", "label", "name"})

_TASK_STATES = {value.GetOptions().Extensions[api]: value.number for value in TaskState.DESCRIPTOR.values}
_ROLES = {value.GetOptions().Extensions[api]: value.number for value in NodeRole.DESCRIPTOR.values if value.number}


def filter_values(filters: Filters, accepted: Collection[str]) -> dict[str, list[str]]:
    """The filters as plain lists; keys without a value are dropped.

    Raises:
        InvalidRequestError: a key is not in ``accepted``.
    """
    result = {}
    for key, values in filters.by_key.items():
        if key not in accepted:
            raise InvalidRequestError(f"invalid filter '{key}'")
        if values.values:
            result[key] = list(values.values)
    return result


def node_filter(filters: Values) -> Callable[[Node], bool]:
    """Raises: InvalidRequestError: a role or membership that does not exist."""
    roles = _numbers("role", filters.get("role", ()), _ROLES)
    memberships = [value.lower() for value in filters.get("membership", ())]
    for value in memberships:
        if value not in ("accepted", "pending"):
            raise InvalidRequestError(f"Invalid membership filter: '{value}'")

    def matches(node: Node) -> bool:
        return (
            _has_prefix(node.id, filters.get("id"))
            and _has_prefix(node.description.hostname, filters.get("name"))
            and _has_labels(node.description.engine.labels, filters.get("label"))
            and _has_labels(node.spec.labels, filters.get("node.label"))
            and (not roles or node.role in roles)
            and (not memberships or "accepted" in memberships)
        )

    return matches


def service_filter(filters: Values) -> Callable[[Service], bool]:
    modes = filters.get("mode")
    runtimes = filters.get("runtime") or ("container",)

    def matches(service: Service) -> bool:
        spec = service.spec
        return (
            _has_prefix(service.id, filters.get("id"))
            and _has_prefix(spec.name, filters.get("name"))
            and _has_labels(spec.labels, filters.get("label"))
            and (not modes or mode_of(spec).word in modes)
            and (spec.task_template.runtime or "container") in runtimes
        )

    return matches


def spec_filter(filters: Values) -> Callable[[ServiceSpec], bool]:
    """What a list of tasks asks of the version of the spec that a task was made from.

    A version may match and its tasks not: of a name the part behind the service's is ``task_filter``'s.
    """
    runtimes = filters.get("runtime") or ("container", "")
    names, labels = filters.get("name"), filters.get("label")

    def matches(spec: ServiceSpec) -> bool:
        return (
            (not names or _begins_a_name(f"{spec.name}.", names))
            and _has_labels(spec.labels, labels)
            and spec.task_template.runtime in runtimes
        )

    return matches


def task_filter(filters: Values, *, service_name: Callable[[Task], str]) -> Callable[[Task], bool] | None:
    """What a list asks of a task itself; None when it is nothing.

    Args:
        filters: ``service``, ``node`` and what concerns specs are not looked at.
        service_name: the name of a task's service, as of the spec version it names.

    Raises:
        InvalidRequestError: a desired state that does not exist.
    """
    states = _numbers("desired-state", filters.get("desired-state", ()), _TASK_STATES)
    ids, names = filters.get("id"), filters.get("name")
    if not (states or ids or names):
        return None

    def matches(task: Task) -> bool:
        return (
            (not states or task.desired_state in states)
            and _has_prefix(task.id, ids)
            and (not names or _has_prefix(task_name(task, service_name(task)), names))
        )

    return matches


def object_filter(kind: Kind[T], filters: Values) -> Callable[[T], bool]:
    """By ID, name and labels, for kinds that have no filters of their own."""
    ids, names, exact = filters.get("id"), filters.get("name"), filters.get("names")
    labels = filters.get("label")

    def matches(obj: T) -> bool:
        return (
            _has_prefix(obj.id, ids)
            and (not names or any(_has_prefix(name, names) for name in kind.names(obj)))
            and (not exact or any(name in exact for name in kind.names(obj)))
            and (not labels or _has_labels(kind.labels(obj), labels))
        )

    return matches


def task_name(task: Task, service_name: str) -> str:
    """``web.1.<task ID>``; a global service's task has its node in place of the slot (features A5.14)."""
    return f"{service_name}.{task.slot or task.node_id}.{task.id}"


def _has_prefix(text: str, prefixes: Iterable[str] | None) -> bool:
    """Whether ``text`` begins with one of ``prefixes``; no prefixes match all."""
    return not prefixes or text.startswith(tuple(prefixes))


def _begins_a_name(beginning: str, prefixes: Iterable[str]) -> bool:
    """Whether a name that begins so can begin with one of ``prefixes``."""
    return any(beginning.startswith(prefix) or prefix.startswith(beginning) for prefix in prefixes)


def _has_labels(labels: Mapping[str, str], wanted: Iterable[str] | None) -> bool:
    """Whether every ``key`` or ``key=value`` of ``wanted`` is there; an empty value matches any, other than in the engine's
    lists (``base.labels``)."""
    for label in wanted or ():
        key, _, value = label.partition("=")
        if key not in labels or (value and labels[key] != value):
            return False
    return True


def _numbers(key: str, values: Iterable[str], table: Mapping[str, int]) -> set[int]:
    found = set()
    for value in values:
        if not value:
            continue
        if value.lower() not in table:
            raise InvalidRequestError(f"Invalid {key} filter: '{value}'")
        found.add(table[value.lower()])
    return found
