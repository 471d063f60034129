"""Tasks: which of them a list holds (features A6.05, W10).

What a filter asks of a task's spec is asked once of each spec version, and tasks are looked up by their versions,
services or nodes: of 10 000 tasks nothing is looked at that does not come into question.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from base.slices import slices
from manager.control import filters
from manager.control.filters import Values
from manager.control.lookup import find_node, find_service
from manager.model.dirty import DirtyCheck
from manager.store import View
from proto.objects_pb2 import SpecVersion, Task

_NO_SPEC = SpecVersion().spec

TASKS_AT_A_TIME = 5000
"""Filtered in some 3 ms."""

VersionKey = tuple[str, int]
"""(ID of a service, version of its spec)"""


@dataclass(frozen=True)
class TaskSelection:
    """Tasks of one moment.

    Attributes:
        tasks: those that may be listed.
        specs: the spec versions of these that are kept.
        matches: which of the tasks are listed; needs nothing but the task. None when all are.
    """

    tasks: list[Task]
    specs: Mapping[VersionKey, SpecVersion]
    matches: Callable[[Task], bool] | None


def select(view: View, values: Values) -> TaskSelection:
    """What a list with these filters is made of.

    Raises:
        NotFoundError, InvalidRequestError: a service, node or state that does not exist.
    """
    service_ids = dict.fromkeys(find_service(view, ref).id for ref in values.get("service", ()))
    node_ids = dict.fromkeys(find_node(view, ref).id for ref in values.get("node", ()))
    spec_matches = filters.spec_filter(values)
    only_up_to_date = bool(values.get("_up-to-date"))
    tasks: list[Task] = []
    specs: dict[VersionKey, SpecVersion] = {}
    for key, some in _groups(view, service_ids, node_ids):
        version = view.spec_versions.of(*key)
        if not spec_matches(version.spec if version is not None else _NO_SPEC):
            continue
        if version is not None:
            specs[key] = version
        tasks += _up_to_date(view, key, some) if only_up_to_date else some
    names = {key: version.spec.name for key, version in specs.items()}
    matches = filters.task_filter(values, service_name=lambda task: names.get((task.service_id, task.spec_version), ""))
    return TaskSelection(tasks, specs, matches)


async def matching(selection: TaskSelection) -> tuple[list[Task], dict[VersionKey, SpecVersion]]:
    """What of a selection its filter lets through: the tasks, and the spec versions they name."""
    matches = selection.matches
    found: list[Task] = []
    if matches is None:
        return selection.tasks, dict(selection.specs)
    async for some in slices(selection.tasks, TASKS_AT_A_TIME):
        found += filter(matches, some)
    named = {(task.service_id, task.spec_version) for task in found}
    return found, {key: version for key, version in selection.specs.items() if key in named}


def _groups(
    view: View, service_ids: Collection[str], node_ids: Collection[str]
) -> Iterator[tuple[VersionKey, Collection[Task]]]:
    """The tasks of these services on these nodes, where none are given of all, by spec version."""
    if service_ids and node_ids:
        for service_id in service_ids:
            for node_id in node_ids:
                yield from _by_version(view.tasks.by_service_node(service_id, node_id))
    elif service_ids:
        for service_id in service_ids:
            yield from _by_version(view.tasks.by_service(service_id))
    elif node_ids:
        for node_id in node_ids:
            yield from _by_version(view.tasks.by_node(node_id))
    else:
        yield from view.tasks.by_spec_version()


def _by_version(tasks: Collection[Task]) -> Iterator[tuple[VersionKey, Collection[Task]]]:
    groups: dict[VersionKey, list[Task]] = {}
    for task in tasks:
        groups.setdefault((task.service_id, task.spec_version), []).append(task)
    yield from groups.items()


def _up_to_date(view: View, key: VersionKey, tasks: Collection[Task]) -> Collection[Task]:
    """Those of the tasks of one spec version that are of their service's present spec."""
    service = view.services.get(key[0])
    if service is None or service.pending_delete:
        return ()
    if service.spec_version == key[1]:
        return tasks
    check = DirtyCheck(service, view.spec_versions)
    return [task for task in tasks if not check.is_dirty(task, view.nodes.get(task.node_id))]
