"""Placement: tasks without a node in, decisions out.

Tasks of one version of one service are alike, so they are placed together: the nodes that fit are ranked once and
held in a heap, and each task takes the best one, which then goes back with its new rank. N tasks on M nodes cost
O(M + N log M), not O(N x M).

Ranking (features A7.10, A3.11): nodes where this version failed often of late come last, then fewer tasks of the
service, then fewer tasks at all, then the node's ID so that equal inputs give equal answers. Memory and CPU in use
are not considered, and nothing is ever moved.

Spread (A7.03): preferences make a tree, one level each, of the values nodes have; tasks are divided so that the
branches become even, and what does not fit into one goes to the others.

Source: swarmkit ``manager/scheduler/scheduler.go``, ``decision_tree.go``.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from manager.model.constraints import ENGINE_LABEL_PREFIX, NODE_LABEL_PREFIX
from manager.model.needs import Needs
from manager.scheduler.filters import Pipeline
from manager.scheduler.nodes import NodeInfo, Round
from proto.objects_pb2 import Node, Task
from proto.specs_pb2 import GenericResource


@dataclass(frozen=True, slots=True)
class Placed:
    """The task goes to that node."""

    task: Task
    node_id: str
    generic_resources: tuple[GenericResource, ...] = ()


@dataclass(frozen=True, slots=True)
class Unplaced:
    """No node can take the task now; ``err`` is what its status says (A6.06)."""

    task: Task
    err: str


Decision = Placed | Unplaced


def schedule_group(tasks: Sequence[Task], needs: Needs, nodes: Round) -> list[Decision]:
    """Place tasks of one service and one version of its spec.

    Args:
        tasks: without a node, in the order in which they get one.
        needs: what each of them needs.
        nodes: the round; what is placed is accounted there.

    Returns:
        One decision a task, in the order given.
    """
    if not tasks:
        return []
    service_id, version = tasks[0].service_id, (tasks[0].service_id, tasks[0].spec_version)
    pipeline = Pipeline(needs, service_id)
    waiting = _Waiting(list(tasks), needs, nodes, pipeline, version)
    tree = _tree(list(nodes.infos()), _levels(needs.spread), service_id)
    waiting.place_on(tree, len(tasks))
    decisions: list[Decision] = list(waiting.placed)
    left = tasks[len(decisions) :]
    if left:
        reason = pipeline.explain(nodes.infos())
        err = f"no suitable node ({reason})" if reason else "no suitable node"
        decisions.extend(Unplaced(task, err) for task in left)
    return decisions


def schedule_bound(task: Task, needs: Needs, nodes: Round) -> Decision | None:
    """Check a task of a global service against the node it is bound to; None when that node is gone."""
    info = nodes.info(task.node_id)
    if info is None:
        return None
    pipeline = Pipeline(needs, task.service_id)
    if not pipeline.fits(info):
        return Unplaced(task, pipeline.explain([info]))
    _, generic = nodes.place(task, needs, task.node_id)
    return Placed(task, task.node_id, tuple(generic))


# ---------------------------------------------------------------- the tree of preferences


@dataclass
class _Branch:
    """Nodes that have the same values so far. ``tasks``: how many of the service they bear together."""

    tasks: int = 0
    nodes: list[NodeInfo] = field(default_factory=list)
    branches: dict[str, _Branch] = field(default_factory=dict)


def _levels(spread: Sequence[str]) -> list[str]:
    """The descriptors that name a label of node or engine, each once; others say nothing, nor do repetitions."""
    prefixes = (NODE_LABEL_PREFIX, ENGINE_LABEL_PREFIX)
    return [
        each
        for each in dict.fromkeys(spread)
        if any(each.lower().startswith(prefix) and len(each) > len(prefix) for prefix in prefixes)
    ]


def _value(node: Node, descriptor: str) -> str:
    if descriptor.lower().startswith(NODE_LABEL_PREFIX):
        return node.spec.labels.get(descriptor[len(NODE_LABEL_PREFIX) :], "")
    return node.description.engine.labels.get(descriptor[len(ENGINE_LABEL_PREFIX) :], "")


def _tree(infos: list[NodeInfo], levels: Sequence[str], service_id: str) -> _Branch:
    branch = _Branch(tasks=sum(info.active_by_service.get(service_id, 0) for info in infos))
    if not levels:
        branch.nodes = infos
        return branch
    by_value: dict[str, list[NodeInfo]] = {}
    for info in infos:
        by_value.setdefault(_value(info.node, levels[0]), []).append(info)
    branch.branches = {value: _tree(by_value[value], levels[1:], service_id) for value in sorted(by_value)}
    return branch


def _shares(loads: dict[str, int], count: int) -> dict[str, int]:
    """Divide ``count`` tasks so that the least loaded branches become even; those that get none are left out.

    (Swarmkit lets a branch that is over the average push another one over it; here it is taken out of the average.)
    """
    filling = dict(loads)
    while True:
        even, remainder = divmod(sum(filling.values()) + count, len(filling))
        over = [value for value, load in filling.items() if load > even]
        if not over:
            break
        for value in over:
            del filling[value]
    shares = {}
    for value in sorted(filling, key=lambda value: filling[value]):
        extra = 1 if remainder else 0
        remainder -= extra
        if even + extra > filling[value]:
            shares[value] = even + extra - filling[value]
    return shares


# ---------------------------------------------------------------- dealing out


@dataclass
class _Waiting:
    """Tasks that wait to be placed, taken from the front."""

    tasks: list[Task]
    needs: Needs
    round: Round
    pipeline: Pipeline
    version: tuple[str, int]
    placed: list[Placed] = field(default_factory=list)

    def place_on(self, branch: _Branch, count: int) -> int:
        """Place up to ``count`` of the tasks on a branch; returns how many it took."""
        if not branch.branches:
            return self._place_on_nodes(branch.nodes, count)
        taken = 0
        usable = dict(branch.branches)
        while taken < count and usable:
            shares = _shares({value: twig.tasks for value, twig in usable.items()}, count - taken)
            for value, wanted in shares.items():
                got = self.place_on(usable[value], wanted)
                usable[value].tasks += got
                taken += got
                if got < wanted:
                    del usable[value]
        return taken

    def _place_on_nodes(self, infos: list[NodeInfo], count: int) -> int:
        heap = [self._rank(info) for info in infos if self.pipeline.fits(self._current(info))]
        heapq.heapify(heap)
        taken = 0
        while heap and taken < count:
            node_id = heap[0][-1]
            info = self.round.info(node_id)
            if info is None or not self.pipeline.fits(info):
                heapq.heappop(heap)
                continue
            task = self.tasks[len(self.placed)]
            info, generic = self.round.place(task, self.needs, node_id)
            self.placed.append(Placed(task, node_id, tuple(generic)))
            heapq.heapreplace(heap, self._rank(info))
            taken += 1
        return taken

    def _current(self, info: NodeInfo) -> NodeInfo:
        return self.round.info(info.node.id) or info

    def _rank(self, info: NodeInfo) -> tuple[int, int, int, str]:
        info = self._current(info)
        failures = self.round.failures(info, self.version)
        return (failures, info.active_by_service.get(self.version[0], 0), info.active, info.node.id)
