"""What the managers want this node to run, from their messages. No I/O; bad messages change nothing.

``apply`` takes one message at a time. A COMPLETE set comes in parts and replaces everything with its last one; an
increment applies to exactly one state. A gap, or a message that makes no sense, is an error: ask for a complete set.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from proto.dispatcher_pb2 import AssignmentChange, AssignmentKind, AssignmentsMessage
from proto.objects_pb2 import SpecVersion
from worker.agent.contents import Contents, is_removal
from worker.agent.executor import Assignment

PARTS_SIZE_BYTES_MAX = 256 * 1024 * 1024
"""Of one COMPLETE set. Far above what one node can run; a manager gone wrong must not fill the memory."""


class AssignmentGapError(Exception):
    """A message does not follow the one before: open the stream anew."""


class Applied(msgspec.Struct, frozen=True):
    """What a message did.

    Attributes:
        complete: a COMPLETE set was finished: what is not in it exists no more.
        changed: IDs of tasks that are new or changed, in the message's order.
        removed: IDs of tasks that are gone.
        changes: what to remember on disk; for a COMPLETE set the contents are to be stored as a whole.
    """

    complete: bool
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    changes: tuple[AssignmentChange, ...]


_NOTHING = Applied(complete=False, changed=(), removed=(), changes=())


class ReceivedAssignments:
    """The node's assignments; contents survive a session, the position in the stream does not (``restart``)."""

    def __init__(self, node_id: str, contents: Contents | None = None) -> None:
        self._node_id = node_id
        self.contents = contents or Contents()
        self._position: int | None = None
        self._parts: list[AssignmentChange] = []
        self._parts_size_bytes = 0

    def restart(self) -> None:
        """A new stream begins; its first message must be a COMPLETE set."""
        self._position = None
        self._parts, self._parts_size_bytes = [], 0

    def apply(self, message: AssignmentsMessage) -> Applied:
        """Take one message.

        Raises:
            AssignmentGapError: it does not follow; the contents are as before.
        """
        if message.type == AssignmentsMessage.TYPE_COMPLETE:
            return self._complete(message)
        if message.type != AssignmentsMessage.TYPE_INCREMENTAL:
            raise AssignmentGapError(f"assignments of unknown type {message.type}")
        if self._position is None or message.applies_to != self._position or self._parts:
            raise AssignmentGapError(f"assignments apply to state {message.applies_to}, here is {self._position}")
        self._position = message.results_in
        return self._increment(message.changes)

    def assignment(self, task_id: str) -> Assignment | None:
        """The task with what it needs, None when its spec is not here."""
        task = self.contents.tasks.get(task_id)
        version = self.contents.of(SpecVersion).get(f"{task.service_id}.{task.spec_version}") if task else None
        if task is None or version is None:
            return None
        needed, is_whole = self.contents.needed_by(task_id)
        return Assignment(task, version, needed, is_whole=is_whole)

    def _complete(self, message: AssignmentsMessage) -> Applied:
        self._parts_size_bytes += message.ByteSize()
        if self._parts_size_bytes > PARTS_SIZE_BYTES_MAX:
            raise AssignmentGapError(f"a set of more than {PARTS_SIZE_BYTES_MAX} bytes is no assignment of one node")
        self._parts.extend(message.changes)
        if not message.last_part:
            return _NOTHING
        old, self.contents = self.contents, Contents()
        for change in self._parts:
            self.contents.put(change, self._node_id)
        self._parts, self._parts_size_bytes = [], 0
        self._position = message.results_in
        removed = tuple(task_id for task_id in old.tasks if task_id not in self.contents.tasks)
        return Applied(complete=True, changed=tuple(self.contents.tasks), removed=removed, changes=())

    def _increment(self, changes: Iterable[AssignmentChange]) -> Applied:
        changed: dict[str, None] = {}
        removed: dict[str, None] = {}
        kept = [change for change in changes if self.contents.put(change, self._node_id)]
        for change in kept:
            if change.kind != AssignmentKind.ASSIGNMENT_KIND_TASK:
                continue
            gone, there = (changed, removed) if is_removal(change) else (removed, changed)
            gone.pop(change.id, None)
            there[change.id] = None
        return Applied(complete=False, changed=tuple(changed), removed=tuple(removed), changes=tuple(kept))
