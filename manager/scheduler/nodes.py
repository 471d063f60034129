"""What the scheduler knows of each node: what is free on it, and which tasks it bears.

``NodeSet`` follows the store object by object, so that a task that changes costs what it alone is. One round of
scheduling works on a ``Round`` over it, which copies a node when it puts a task there: nothing is kept of a round
whose transaction is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from manager import constants
from manager.model.needs import HostPort, Needs
from manager.model.resources import GenericPool
from manager.model.tasks import is_on_node
from proto.objects_pb2 import (
    TASK_STATE_COMPLETE,
    TASK_STATE_FAILED,
    TASK_STATE_REJECTED,
    Node,
    Task,
)
from proto.specs_pb2 import GenericResource

FAILURE_MEMORY_MAX = 10_000
"""Pairs of node and version of a service of which failures are remembered."""

NeedsOf = Callable[[Task], Needs]


@dataclass(frozen=True, slots=True)
class _Load:
    """What one task takes of its node. ``active``: not on its way out, so it counts in the ranking."""

    service_id: str
    active: bool
    needs: Needs
    generic: tuple[GenericResource, ...]


@dataclass
class NodeInfo:
    """One node and its load."""

    node: Node
    loads: dict[str, _Load] = field(default_factory=dict)
    nano_cpus: int = 0
    memory_bytes: int = 0
    active: int = 0
    active_by_service: dict[str, int] = field(default_factory=dict)
    host_ports: dict[HostPort, int] = field(default_factory=dict)
    generic: GenericPool = field(default_factory=GenericPool)

    def __post_init__(self) -> None:
        self.set_node(self.node)

    def set_node(self, node: Node) -> None:
        """The node itself changed; its tasks stay."""
        self.node = node
        total = node.description.resources
        self.nano_cpus = total.nano_cpus - sum(load.needs.nano_cpus for load in self.loads.values())
        self.memory_bytes = total.memory_bytes - sum(load.needs.memory_bytes for load in self.loads.values())
        self._rebuild_generic()

    def copy(self) -> NodeInfo:
        other = object.__new__(NodeInfo)
        other.node = self.node
        other.loads = dict(self.loads)
        other.nano_cpus, other.memory_bytes, other.active = self.nano_cpus, self.memory_bytes, self.active
        other.active_by_service = dict(self.active_by_service)
        other.host_ports = dict(self.host_ports)
        other.generic = self.generic.copy()
        return other

    def put(self, task: Task, needs: Needs) -> None:
        """Take note of a task that lies on this node, new or changed."""
        self.drop(task.id)
        load = _Load(task.service_id, counts_on_node(task), needs, tuple(task.assigned_generic_resources))
        self.loads[task.id] = load
        self._account(load, 1)
        self.generic.consume(load.generic)

    def place(self, task: Task, needs: Needs) -> list[GenericResource]:
        """Put a task here that fits; returns the generic resources it is assigned."""
        assigned = [resource for kind, count in needs.generic for resource in self.generic.claim(kind, count)]
        load = _Load(task.service_id, True, needs, tuple(assigned))
        self.loads[task.id] = load
        self._account(load, 1)
        return assigned

    def drop(self, task_id: str) -> None:
        load = self.loads.pop(task_id, None)
        if load is not None:
            self._account(load, -1)
            if load.generic:
                self._rebuild_generic()

    def _account(self, load: _Load, sign: int) -> None:
        self.nano_cpus -= sign * load.needs.nano_cpus
        self.memory_bytes -= sign * load.needs.memory_bytes
        for port in load.needs.host_ports:
            self.host_ports[port] = self.host_ports.get(port, 0) + sign
        if load.active:
            self.active += sign
            self.active_by_service[load.service_id] = self.active_by_service.get(load.service_id, 0) + sign
            if not self.active_by_service[load.service_id]:
                del self.active_by_service[load.service_id]

    def _rebuild_generic(self) -> None:
        self.generic = GenericPool.of(self.node.description.resources.generic_resources)
        for load in self.loads.values():
            self.generic.consume(load.generic)


def counts_on_node(task: Task) -> bool:
    """Whether a task of the node is not on its way out: the ranking counts it."""
    return task.desired_state <= TASK_STATE_COMPLETE


def occupies_node(task: Task) -> bool:
    """Whether the task lies on its node: assigned, and not seen to have ended."""
    return bool(task.node_id) and is_on_node(task)


_Version = tuple[str, int]
"""Service ID and version of its spec."""


class NodeSet:
    """All nodes, kept up from changes of the store."""

    def __init__(self, needs_of: NeedsOf) -> None:
        self._needs_of = needs_of
        self.infos: dict[str, NodeInfo] = {}
        self._failures: dict[tuple[str, _Version], deque[float]] = {}

    def put_node(self, node: Node) -> None:
        info = self.infos.get(node.id)
        if info is None:
            self.infos[node.id] = NodeInfo(node)
        else:
            info.set_node(node)

    def drop_node(self, node_id: str) -> None:
        self.infos.pop(node_id, None)
        for key in [key for key in self._failures if key[0] == node_id]:
            del self._failures[key]

    def change_task(self, old: Task | None, new: Task | None) -> None:
        """Follow a task. Its node must have been put before; a task of a node that is gone counts nowhere."""
        if old is not None and occupies_node(old):
            moved = new is None or not occupies_node(new) or new.node_id != old.node_id
            if moved and old.node_id in self.infos:
                self.infos[old.node_id].drop(old.id)
        if new is not None and occupies_node(new) and new.node_id in self.infos:
            self.infos[new.node_id].put(new, self._needs_of(new))

    def note_failure(self, task: Task, at: float) -> None:
        """A task failed or was rejected on its node (a hint for ranking; features A3.11)."""
        key = (task.node_id, (task.service_id, task.spec_version))
        times = self._failures.setdefault(key, deque(maxlen=constants.NODE_FAILURES_MAX * 4))
        times.append(at)
        if len(self._failures) > FAILURE_MEMORY_MAX:
            self._forget_failures(at)

    def _forget_failures(self, now: float) -> None:
        """Drop what is too old to count, and of the rest the first known when that is still too much."""
        old = [key for key, times in self._failures.items() if now - times[-1] > constants.NODE_FAILURES_WINDOW_S]
        for key in old or list(self._failures)[: FAILURE_MEMORY_MAX // 2]:
            del self._failures[key]

    def recent_failures(self, node_id: str, version: _Version, now: float) -> int:
        times = self._failures.get((node_id, version))
        if times is None:
            return 0
        # A time that is ahead was written before the clock was set back.
        while times and not -constants.CLOCK_SKEW_S_MAX <= now - times[0] <= constants.NODE_FAILURES_WINDOW_S:
            times.popleft()
        if not times:
            del self._failures[node_id, version]
        return len(times)


def has_failed(task: Task) -> bool:
    return task.status.state in (TASK_STATE_FAILED, TASK_STATE_REJECTED)


class Round:
    """One round of scheduling: the nodes as they will be when its decisions are committed."""

    def __init__(self, nodes: NodeSet, needs_of: NeedsOf, now: float) -> None:
        self._nodes = nodes
        self._needs_of = needs_of
        self._copies: dict[str, NodeInfo] = {}
        self.now = now

    def infos(self) -> Iterator[NodeInfo]:
        for node_id, info in self._nodes.infos.items():
            yield self._copies.get(node_id, info)

    def info(self, node_id: str) -> NodeInfo | None:
        return self._copies.get(node_id) or self._nodes.infos.get(node_id)

    def failures(self, info: NodeInfo, version: _Version) -> int:
        """Recent failures there, as far as they count: fewer than the threshold are none."""
        count = self._nodes.recent_failures(info.node.id, version, self.now)
        return count if count >= constants.NODE_FAILURES_MAX else 0

    def change_task(self, new: Task) -> None:
        """A task was changed in the same transaction, before this round."""
        if not new.node_id:
            return
        info = self._writable(new.node_id)
        if info is None:
            return
        if occupies_node(new):
            info.put(new, self._needs_of(new))
        else:
            info.drop(new.id)

    def place(self, task: Task, needs: Needs, node_id: str) -> tuple[NodeInfo, list[GenericResource]]:
        info = self._writable(node_id)
        assert info is not None
        return info, info.place(task, needs)

    def _writable(self, node_id: str) -> NodeInfo | None:
        copy = self._copies.get(node_id)
        if copy is None:
            info = self._nodes.infos.get(node_id)
            if info is None:
                return None
            copy = self._copies[node_id] = info.copy()
        return copy
