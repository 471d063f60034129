"""What one node has to run, as a set and its differences (features A2.08, A6.02). Pure: a view in, changes out.

A node gets its tasks and what those of them need that have not ended, nothing else: that is said by the kinds of objects
themselves (``Kind.assigned``; spec versions, secrets and configs). What has ended needs its secrets no longer, but stays
assigned until its object is removed, so that the node keeps the container (A6.09).

What the agent itself reported (status, addresses on the node's own bridge) is not sent back as a change, with one
exception: that a task has ended. Managers may end one, too (constraints, A7.05; orphans), and its node has to stop it.

Who else is on a network is told with the network (``members``), and the routing mesh's to every node that has an address there.

Changes are made as the bytes that go out. What several nodes need (a spec, a config) is encoded once for all of them, and
its users are known by its key: a config that nobody needs yet costs the same beside ten nodes and beside ten thousand.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from manager.dispatcher.members import Entry, Members
from manager.model.tasks import has_ended
from manager.store import KINDS, Kinds, StoredObject, View
from manager.store.frames import tag_of, varint
from manager.store.kinds import AnyKind
from proto.dispatcher_pb2 import AssignmentChange, AssignmentKind, AssignmentsMessage
from proto.objects_pb2 import TASK_STATE_ASSIGNED, NetworkAttachment, Task
from proto.specs_pb2 import ServiceSpec

MESSAGE_SIZE_BYTES_MAX = 3 * 1024 * 1024
"""Changes are packed up to here; gRPC refuses messages above 4 MiB. One larger object travels alone."""

SHARED_SIZE_BYTES_MAX = 32 * 1024 * 1024
VERSIONS_KNOWN_MAX = 4096

_TASK = AssignmentKind.ASSIGNMENT_KIND_TASK
_CHANGES_TAG, _TASK_TAG = varint(tag_of(AssignmentsMessage, "changes")), varint(tag_of(AssignmentChange, "task"))

NODE_NETWORK_ID = "bridge"
"""Attachments to it are reported by the node, not decided for it."""

Key = tuple[AnyKind, str]
"""(kind, ID) of something a task needs."""


def is_assigned(task: Task, node_id: str) -> bool:
    """Whether the node has to know of the task."""
    return task.node_id == node_id and task.status.state >= TASK_STATE_ASSIGNED


@dataclass(slots=True)
class _Sent:
    """A task as the agent knows it."""

    task: Task
    needs: tuple[Key, ...]


Encoded = bytes
"""An ``AssignmentChange``."""


@dataclass(frozen=True, slots=True)
class TaskNeeds:
    """What a task needs, and that as it is sent with it: ``AssignmentChange.needs``."""

    keys: tuple[Key, ...]
    encoded: bytes

    @classmethod
    def of(cls, task: Task, spec: ServiceSpec | None, kinds: Kinds) -> TaskNeeds:
        keys: list[Key] = []
        change = AssignmentChange()
        for kind in kinds.assigned:
            assert kind.assigned is not None
            for object_id in dict.fromkeys(kind.assigned.needed_by(task, spec)):
                keys.append((kind, object_id))
                change.needs.add(kind=kind.assigned.kind, id=object_id)
        return cls(tuple(keys), change.SerializeToString())


NOTHING_NEEDED = TaskNeeds((), b"")


class SharedChanges:
    """What agents are told of objects that tasks need, encoded once a version, and whose agents; one for all sessions."""

    def __init__(self, members: Members | None = None, size_bytes_max: int = SHARED_SIZE_BYTES_MAX) -> None:
        self.members = members
        self._size_bytes_max = size_bytes_max
        self._size_bytes = 0
        self._known: OrderedDict[Key, tuple[int, Encoded]] = OrderedDict()
        self._users: dict[Key, dict[AssignmentSet, None]] = {}  # in order
        self._needs: dict[tuple[str, int, tuple[str, ...]], TaskNeeds] = {}

    def needs(self, task: Task, view: View, kinds: Kinds) -> TaskNeeds:
        """What a live task needs, as all of its version of the spec on the same networks do."""
        key = (task.service_id, task.spec_version, tuple(each.network_id for each in task.networks_attachments))
        known = self._needs.get(key)
        if known is None:
            version = view.spec_versions.of(task.service_id, task.spec_version)
            known = TaskNeeds.of(task, version.spec if version is not None else None, kinds)
            if version is not None:
                if len(self._needs) >= VERSIONS_KNOWN_MAX:
                    self._needs.clear()
                self._needs[key] = known
        return known

    def users(self, key: Key) -> Iterable[AssignmentSet]:
        """The sets that need the object. Valid until one of them changes."""
        return self._users.get(key, ())

    def use(self, key: Key, user: AssignmentSet) -> None:
        """The set needs the object from now on."""
        self._users.setdefault(key, {})[user] = None

    def release(self, key: Key, user: AssignmentSet) -> None:
        """It does so no longer."""
        users = self._users[key]
        del users[user]
        if not users:
            del self._users[key]

    def encoded(self, kind: AnyKind, obj: StoredObject) -> Encoded:
        """The change that tells of ``obj`` as it is."""
        assert kind.assigned is not None
        key, version = (kind, obj.id), obj.version.index
        known = self._known.get(key)
        if known is not None and known[0] == version:
            self._known.move_to_end(key)
            return known[1]
        change: Encoded = kind.assigned.change(obj).SerializeToString()
        self._size_bytes += len(change) - (len(known[1]) if known is not None else 0)
        self._known[key] = (version, change)
        self._known.move_to_end(key)
        while self._size_bytes > self._size_bytes_max:
            _, (_, oldest) = self._known.popitem(last=False)
            self._size_bytes -= len(oldest)
        return change

    def forget(self, key: Key) -> None:
        """The object was removed: its content is not kept here either."""
        known = self._known.pop(key, None)
        if known is not None:
            self._size_bytes -= len(known[1])


class AssignmentSet:
    """What one session's agent knows. ``complete`` first, then ``update`` with what may have changed; ``close`` at the end.

    A large set is better made in slices: ``restart``, then ``update`` with some of its tasks at a time.
    """

    def __init__(self, node_id: str, kinds: Kinds = KINDS, shared: SharedChanges | None = None) -> None:
        """
        Args:
            shared: of all sessions.
        """
        self.node_id = node_id
        self._kinds = kinds
        self._shared = shared or SharedChanges()
        self._tasks: dict[str, _Sent] = {}
        self._uses: Counter[Key] = Counter()
        self._versions: dict[Key, int] = {}
        self._followed: set[str] = set()
        """IDs of the objects whose members are told of."""
        self._own: tuple[Key, ...] = ()
        """What the node itself needs, whatever tasks it has."""

    def uses(self, kind: AnyKind, object_id: str) -> bool:
        """Whether a change of that object is of interest here."""
        return (kind, object_id) in self._uses

    def restart(self, view: View) -> list[str]:
        """The agent knows nothing. Returns the IDs of its tasks, in order."""
        self.close()
        return sorted(task.id for task in view.tasks.by_node(self.node_id))

    def close(self) -> None:
        """Nobody follows this set any more."""
        for key in self._uses:
            self._shared.release(key, self)
        self._tasks.clear()
        self._uses.clear()
        self._versions.clear()
        self._followed.clear()
        self._own = ()

    def complete(self, view: View) -> list[Encoded]:
        """Everything, from nothing: what a task needs comes before the task."""
        return self._difference(self.restart(view), view)

    def update(
        self, task_ids: Iterable[str], keys: Iterable[Key], view: View, entries: Iterable[Entry] = ()
    ) -> list[Encoded]:
        """What to tell the agent after these tasks, needed objects and members, or its node, may have changed.

        Args:
            task_ids: of any node; those of other nodes are left out or, when they moved away, removed.
            keys: needed objects that changed.
            view: the state now.
            entries: members that changed, of networks that are needed here or were.

        Returns:
            Changes in the order in which they are to be applied: needs, tasks, then what is needed no longer.
        """
        members = self._shared.members
        told = [members.encoded(each) for each in entries if each[0] in self._followed] if members is not None else []
        return told + self._difference(list(dict.fromkeys(task_ids)), view, keys)

    def _difference(self, task_ids: Sequence[str], view: View, keys: Iterable[Key] = ()) -> list[Encoded]:
        tasks: list[Encoded] = []
        removed: list[Encoded] = []
        touched: dict[Key, None] = dict.fromkeys(keys)
        own = tuple(self._needs_of_node(view))
        if own != self._own:
            self._use(own, touched)
            self._release(self._own, touched)
            self._own = own
        for task_id in task_ids:
            task = view.tasks.get(task_id)
            if task is None or not is_assigned(task, self.node_id):
                sent = self._tasks.pop(task_id, None)
                if sent is not None:
                    removed.append(AssignmentChange(kind=_TASK, id=task_id).SerializeToString())
                    self._release(sent.needs, touched)
                continue
            change = self._put(task, view, touched)
            if change is not None:
                tasks.append(change)
        needs = list(self._settle(touched, view, removed))
        return needs + tasks + removed

    def _needs_of_node(self, view: View) -> Iterator[Key]:
        node = view.nodes.get(self.node_id)
        for kind in self._kinds.assigned if node is not None else ():
            assert kind.assigned is not None
            if kind.assigned.has_members and node is not None and node.HasField("ingress"):
                yield kind, node.ingress.network_id

    def _use(self, needs: tuple[Key, ...], touched: dict[Key, None]) -> None:
        for key in needs:
            if key not in self._uses:
                self._shared.use(key, self)
            self._uses[key] += 1
            touched[key] = None

    def _put(self, task: Task, view: View, touched: dict[Key, None]) -> Encoded | None:
        sent = self._tasks.get(task.id)
        needs = NOTHING_NEEDED if has_ended(task) else self._shared.needs(task, view, self._kinds)
        keys = needs.keys
        if sent is None or sent.needs != keys:
            self._use(keys, touched)
            if sent is not None:
                self._release(sent.needs, touched)
        self._tasks[task.id] = _Sent(task, keys)
        if sent is not None and sent.needs == keys and not is_news(sent.task, task):
            return None
        # What stands around a task by hand, which spares a copy of it; fields may come in any order.
        content = task.SerializeToString()
        head = AssignmentChange(kind=_TASK, id=task.id).SerializeToString()
        return b"".join((head, _TASK_TAG, varint(len(content)), content, needs.encoded))

    def _release(self, needs: tuple[Key, ...], touched: dict[Key, None]) -> None:
        for key in needs:
            self._uses[key] -= 1
            touched[key] = None

    def _settle(self, touched: Iterable[Key], view: View, removed: list[Encoded]) -> Iterator[Encoded]:
        """Bring the needed objects up to date; removals go to ``removed``."""
        for key in touched:
            kind, object_id = key
            assert kind.assigned is not None
            wanted = view.of(kind).get(object_id) if self._uses[key] > 0 else None
            if self._uses.get(key) == 0:
                del self._uses[key]
                self._shared.release(key, self)
            known = self._versions.get(key)
            if wanted is None:
                if known is not None:
                    del self._versions[key]
                    removed.extend(self._members(kind, object_id, gone=True))
                    removed.append(AssignmentChange(kind=kind.assigned.kind, id=object_id).SerializeToString())
            elif known != wanted.version.index:
                self._versions[key] = wanted.version.index
                yield self._shared.encoded(kind, wanted)
                if known is None:
                    yield from self._members(kind, object_id, gone=False)

    def _members(self, kind: AnyKind, object_id: str, *, gone: bool) -> Iterable[Encoded]:
        """What is told of who is on an object of that kind when it is told of itself, or no longer is."""
        assert kind.assigned is not None
        if not kind.assigned.has_members or self._shared.members is None:
            return ()
        if gone:
            self._followed.discard(object_id)
            return self._shared.members.removals(object_id)
        self._followed.add(object_id)
        return self._shared.members.of(object_id)


AGENTS_OWN = ("status", "networks_attachments")
WITH_EVERY_WRITE = ("version", "updated_at")

_TOLD = tuple(
    field.name for field in Task.DESCRIPTOR.fields if field.name not in (*AGENTS_OWN, *WITH_EVERY_WRITE, "id")
)
_scalars = attrgetter(*(name for name in _TOLD if Task.DESCRIPTOR.fields_by_name[name].message_type is None))
_messages = attrgetter(*(name for name in _TOLD if Task.DESCRIPTOR.fields_by_name[name].message_type is not None))


def is_news(old: Task, new: Task) -> bool:
    """Whether its agent has to be told of what became of a task; not of what changes by its own reports.

    Asked of every change of a task, so nothing is copied.
    """
    return (
        _phase(old) != _phase(new)
        or _scalars(old) != _scalars(new)
        or _messages(old) != _messages(new)
        or (old.networks_attachments != new.networks_attachments and _decided(old) != _decided(new))
    )


def _phase(task: Task) -> int:
    """Not given to its node yet, under way, ended: each is another thing to tell."""
    return (task.status.state >= TASK_STATE_ASSIGNED) + has_ended(task)


def _decided(task: Task) -> list[NetworkAttachment]:
    return [attachment for attachment in task.networks_attachments if attachment.network_id != NODE_NETWORK_ID]


class MessagePacker:
    """Numbers a session's messages, ``AssignmentsMessage`` as it is encoded, and keeps each below the size limit."""

    def __init__(self, size_bytes_max: int = MESSAGE_SIZE_BYTES_MAX) -> None:
        self._size_bytes_max = size_bytes_max
        self._sequence = 0

    def complete(self, changes: Sequence[Encoded]) -> list[bytes]:
        """One message or several parts, the last of which says so; all lead to the same state."""
        self._sequence += 1
        parts = list(self._parts(changes))
        head = AssignmentsMessage(type=AssignmentsMessage.TYPE_COMPLETE, applies_to=0, results_in=self._sequence)
        heads = [head.SerializeToString()] * len(parts)
        head.last_part = True
        heads[-1] = head.SerializeToString()
        return [one + part for one, part in zip(heads, parts, strict=True)]

    def incremental(self, changes: Sequence[Encoded]) -> list[bytes]:
        """Each message leads from the state before to the next; none for no changes."""
        messages = []
        for part in self._parts(changes) if changes else ():
            head = AssignmentsMessage(
                type=AssignmentsMessage.TYPE_INCREMENTAL,
                applies_to=self._sequence,
                results_in=self._sequence + 1,
                last_part=True,
            )
            messages.append(head.SerializeToString() + part)
            self._sequence += 1
        return messages

    def _parts(self, changes: Sequence[Encoded]) -> Iterator[bytes]:
        """The field ``changes`` as it is encoded: what is put behind a message belongs to it."""
        part: list[bytes] = []
        size_bytes = 0
        for change in changes:
            if part and size_bytes + len(change) > self._size_bytes_max:
                yield b"".join(part)
                part, size_bytes = [], 0
            part += (_CHANGES_TAG, varint(len(change)), change)
            size_bytes += len(change) + 8
        yield b"".join(part)
