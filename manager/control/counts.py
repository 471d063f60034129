"""How many tasks of each service run, kept from change to change: the REPLICAS column asks for all services at once.

Derived from the store and in it nowhere: every manager has its own, from its own entries, restored snapshots included.
A change costs what it changes; a node that goes down or comes back costs the services that run there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from manager.store import NODES, TASKS, Change, Store, View
from proto.objects_pb2 import Node, NodeState, Task, TaskState

_RUNNING = TaskState.TASK_STATE_RUNNING


@dataclass
class TaskCounts:
    """Counts of one state.

    Attributes:
        wanted: tasks with the desired state RUNNING, by service.
        running: tasks that run on nodes that are not down, by service.
    """

    wanted: dict[str, int] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)
    _on_node: dict[str, dict[str, int]] = field(default_factory=dict)
    """Tasks that were last said to run, by node and service."""
    _down: set[str] = field(default_factory=set)

    def apply(self, changes: Iterable[Change]) -> None:
        """Follow committed changes, in their order."""
        for change in changes:
            if change.kind is TASKS:
                self._count_task(change.old, change.new)
            elif change.kind is NODES:
                self._count_node(change.id, change.new)

    # What a change of tasks or nodes holds is a task or a node, which its type does not say: hence the narrowing below.

    def _count_task(self, old: object, new: object) -> None:
        before = _facts(old) if isinstance(old, Task) else _NOTHING
        after = _facts(new) if isinstance(new, Task) else _NOTHING
        if before == after:
            return
        for (service_id, node_id, wanted, runs), step in ((before, -1), (after, 1)):
            if wanted:
                _add(self.wanted, service_id, step)
            if runs:
                self._count_running(service_id, node_id, step)

    def _count_running(self, service_id: str, node_id: str, step: int) -> None:
        services = self._on_node.setdefault(node_id, {})
        _add(services, service_id, step)
        if not services:
            del self._on_node[node_id]
        if node_id not in self._down:
            _add(self.running, service_id, step)

    def _count_node(self, node_id: str, new: object) -> None:
        """What a node that is down ran last is not known to run, and has been replaced (SwarmKit counts it)."""
        down = isinstance(new, Node) and new.status.state == NodeState.NODE_STATE_DOWN
        if down == (node_id in self._down):
            return
        if down:
            self._down.add(node_id)
        else:
            self._down.remove(node_id)
        for service_id, count in self._on_node.get(node_id, {}).items():
            _add(self.running, service_id, -count if down else count)


_NOTHING = ("", "", False, False)


def _facts(task: Task) -> tuple[str, str, bool, bool]:
    return task.service_id, task.node_id, task.desired_state == _RUNNING, task.status.state == _RUNNING


def _add(counts: dict[str, int], key: str, step: int) -> None:
    count = counts.get(key, 0) + step
    if count:
        counts[key] = count
    else:
        del counts[key]


def fresh_counts(view: View) -> TaskCounts:
    """The counts of a state as it is: what those that are kept have to equal."""
    counts = TaskCounts()
    counts.apply(Change(NODES, node.id, None, node, 0) for node in view.nodes)
    counts.apply(Change(TASKS, task.id, None, task, 0) for task in view.tasks)
    return counts


class FollowedCounts:
    """The counts of a store, from now until ``close``."""

    def __init__(self, store: Store) -> None:
        self._counts = fresh_counts(store.view)
        self.close = store.on_change(self._follow)

    def _follow(self, changes: Sequence[Change]) -> None:
        self._counts.apply(changes)

    @property
    def now(self) -> TaskCounts:
        """Of the state that the store's view shows; read it before the next ``await``."""
        return self._counts
