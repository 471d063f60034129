"""What one node has to run, as a set and its differences (features A2.08, A6.02). Pure: tables in, changes out.

A node gets its tasks, the spec versions that its live tasks name, and the secrets and configs of those specs, nothing
else. A task counts as live until its observed state is final: what is dead needs its secrets no longer, but stays
assigned until its object is removed, so that the node keeps the container (A6.09).

What the agent itself reported (status, addresses on the node's own bridge) is not sent back as a change, with one
exception: that a task has ended. Managers may end one, too (constraints, A7.05; orphans), and its node has to stop it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from manager.model.tasks import has_ended
from proto.dispatcher_pb2 import AssignmentChange, AssignmentKind, AssignmentsMessage
from proto.objects_pb2 import Config, Secret, SpecVersion, Task, TaskState

MESSAGE_SIZE_BYTES_MAX = 3 * 1024 * 1024
"""Changes are packed up to here; gRPC refuses messages above 4 MiB. One larger object travels alone."""

NODE_NETWORK_ID = "bridge"
"""Attachments to it are reported by the node, not decided for it."""

TASK = AssignmentKind.ASSIGNMENT_KIND_TASK
SPEC_VERSION = AssignmentKind.ASSIGNMENT_KIND_SPEC_VERSION
SECRET = AssignmentKind.ASSIGNMENT_KIND_SECRET
CONFIG = AssignmentKind.ASSIGNMENT_KIND_CONFIG

Key = tuple[AssignmentKind.ValueType, str]
"""(kind, ID) of something a task needs."""

Dependency = SpecVersion | Secret | Config


class Tables(Protocol):
    """The part of the store's view that assignments are made from."""

    def task(self, task_id: str) -> Task | None: ...

    def tasks_of_node(self, node_id: str) -> Iterable[Task]: ...

    def spec_version(self, spec_version_id: str) -> SpecVersion | None: ...

    def secret(self, secret_id: str) -> Secret | None: ...

    def config(self, config_id: str) -> Config | None: ...


def spec_version_id(task: Task) -> str:
    """The ID of the spec version that ``task`` names."""
    return f"{task.service_id}.{task.spec_version}"


def is_assigned(task: Task, node_id: str) -> bool:
    """Whether the node has to know of the task."""
    return task.node_id == node_id and task.status.state >= TaskState.TASK_STATE_ASSIGNED


@dataclass(slots=True)
class _Sent:
    """A task as the agent knows it: ``essence`` is what a change of is worth a message."""

    essence: bytes
    needs: tuple[Key, ...]


class AssignmentSet:
    """What one session's agent knows. ``complete`` first, then ``update`` with what may have changed."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._tasks: dict[str, _Sent] = {}
        self._uses: Counter[Key] = Counter()
        self._versions: dict[Key, int] = {}

    def uses(self, kind: AssignmentKind.ValueType, object_id: str) -> bool:
        """Whether a change of that spec version, secret or config is of interest here."""
        return (kind, object_id) in self._uses

    def complete(self, tables: Tables) -> list[AssignmentChange]:
        """Everything, from nothing: what a task needs comes before the task."""
        self._tasks.clear()
        self._uses.clear()
        self._versions.clear()
        tasks = sorted(tables.tasks_of_node(self._node_id), key=lambda task: task.id)
        return self._difference([task.id for task in tasks], tables)

    def update(self, task_ids: Iterable[str], keys: Iterable[Key], tables: Tables) -> list[AssignmentChange]:
        """What to tell the agent after these tasks, and these needed objects, may have changed.

        Args:
            task_ids: of any node; those of other nodes are left out or, when they moved away, removed.
            keys: spec versions, secrets and configs that changed.
            tables: the state now.

        Returns:
            Changes in the order in which they are to be applied: needs, tasks, then what is needed no longer.
        """
        return self._difference(list(dict.fromkeys(task_ids)), tables, keys)

    def _difference(self, task_ids: Sequence[str], tables: Tables, keys: Iterable[Key] = ()) -> list[AssignmentChange]:
        tasks: list[AssignmentChange] = []
        removed: list[AssignmentChange] = []
        touched: dict[Key, None] = dict.fromkeys(keys)
        for task_id in task_ids:
            task = tables.task(task_id)
            if task is None or not is_assigned(task, self._node_id):
                sent = self._tasks.pop(task_id, None)
                if sent is not None:
                    removed.append(_removal(TASK, task_id))
                    self._release(sent.needs, touched)
                continue
            change = self._put(task, tables, touched)
            if change is not None:
                tasks.append(change)
        needs = list(self._settle(touched, tables, removed))
        return needs + tasks + removed

    def _put(self, task: Task, tables: Tables, touched: dict[Key, None]) -> AssignmentChange | None:
        sent = self._tasks.get(task.id)
        needs = () if has_ended(task) else tuple(_needs(task, tables))
        if sent is None or sent.needs != needs:
            for key in needs:
                self._uses[key] += 1
                touched[key] = None
            if sent is not None:
                self._release(sent.needs, touched)
        essence = _essence(task)
        self._tasks[task.id] = _Sent(essence, needs)
        if sent is not None and sent.essence == essence:
            return None
        return AssignmentChange(kind=TASK, id=task.id, task=task)

    def _release(self, needs: tuple[Key, ...], touched: dict[Key, None]) -> None:
        for key in needs:
            self._uses[key] -= 1
            touched[key] = None

    def _settle(
        self, touched: Iterable[Key], tables: Tables, removed: list[AssignmentChange]
    ) -> Iterator[AssignmentChange]:
        """Bring the needed objects up to date; removals go to ``removed``."""
        for key in touched:
            kind, object_id = key
            wanted = _look_up(tables, key) if self._uses[key] > 0 else None
            if self._uses[key] <= 0:
                del self._uses[key]
            known = self._versions.get(key)
            if wanted is None:
                if known is not None:
                    del self._versions[key]
                    removed.append(_removal(kind, object_id))
            elif known != wanted.version.index:
                self._versions[key] = wanted.version.index
                yield _as_change(wanted)


def _needs(task: Task, tables: Tables) -> Iterator[Key]:
    """The spec first: its absence says that the service is gone."""
    name = spec_version_id(task)
    yield SPEC_VERSION, name
    version = tables.spec_version(name)
    if version is None:
        return
    container = version.spec.task_template.container_spec
    yield from dict.fromkeys((SECRET, reference.secret_id) for reference in container.secrets)
    yield from dict.fromkeys((CONFIG, reference.config_id) for reference in container.configs)


def _look_up(tables: Tables, key: Key) -> Dependency | None:
    kind, object_id = key
    if kind == SPEC_VERSION:
        return tables.spec_version(object_id)
    if kind == SECRET:
        return tables.secret(object_id)
    return tables.config(object_id)


def _as_change(needed: Dependency) -> AssignmentChange:
    if isinstance(needed, SpecVersion):
        return AssignmentChange(kind=SPEC_VERSION, id=needed.id, spec_version=needed)
    if isinstance(needed, Secret):
        return AssignmentChange(kind=SECRET, id=needed.id, secret=needed)
    return AssignmentChange(kind=CONFIG, id=needed.id, config=needed)


def _removal(kind: AssignmentKind.ValueType, object_id: str) -> AssignmentChange:
    return AssignmentChange(kind=kind, id=object_id)


def _essence(task: Task) -> bytes:
    """The task without what changes by the agent's own reports, or with every write; and whether it has ended."""
    copy = Task()
    copy.CopyFrom(task)
    for name in ("version", "updated_at", "status"):
        copy.ClearField(name)
    decided = [attachment for attachment in task.networks_attachments if attachment.network_id != NODE_NETWORK_ID]
    copy.ClearField("networks_attachments")
    copy.networks_attachments.extend(decided)
    return copy.SerializeToString(deterministic=True) + (b"ended" if has_ended(task) else b"")


class MessagePacker:
    """Numbers a session's messages and keeps each below the size limit."""

    def __init__(self, size_bytes_max: int = MESSAGE_SIZE_BYTES_MAX) -> None:
        self._size_bytes_max = size_bytes_max
        self._sequence = 0

    def complete(self, changes: Sequence[AssignmentChange]) -> list[AssignmentsMessage]:
        """One message or several parts, the last of which says so; all lead to the same state."""
        self._sequence += 1
        messages = [
            AssignmentsMessage(
                type=AssignmentsMessage.TYPE_COMPLETE, applies_to=0, results_in=self._sequence, changes=part
            )
            for part in self._parts(changes)
        ]
        messages[-1].last_part = True
        return messages

    def incremental(self, changes: Sequence[AssignmentChange]) -> list[AssignmentsMessage]:
        """Each message leads from the state before to the next; none for no changes."""
        messages = []
        for part in self._parts(changes) if changes else ():
            messages.append(
                AssignmentsMessage(
                    type=AssignmentsMessage.TYPE_INCREMENTAL,
                    applies_to=self._sequence,
                    results_in=self._sequence + 1,
                    changes=part,
                    last_part=True,
                )
            )
            self._sequence += 1
        return messages

    def _parts(self, changes: Sequence[AssignmentChange]) -> Iterator[list[AssignmentChange]]:
        part: list[AssignmentChange] = []
        size_bytes = 0
        for change in changes:
            change_bytes = change.ByteSize() + 8  # tag and length
            if part and size_bytes + change_bytes > self._size_bytes_max:
                yield part
                part, size_bytes = [], 0
            part.append(change)
            size_bytes += change_bytes
        yield part
