"""Fault x step: a short fixed run with writes, a snapshot, a compaction and a restart; one fault at the n-th disk operation."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from manager.consensus.port import ConsensusError, NodeID
from manager.consensus.settings import SnapshotPolicy
from tests.simulation.disk import Fault
from tests.simulation.world import SimNode, Violation, World

FAULT_KINDS = ("crash-before", "crash-after", "full")
WRITES = 24


class _Run:
    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.acknowledged: list[int] = []
        policy = SnapshotPolicy(interval_entries=6, trailing_entries=2)
        for number in range(3):
            node_id = NodeID(f"n{number}")
            self.world.nodes[node_id] = SimNode(self.world, node_id, policy)

    def form(self) -> None:
        nodes = list(self.world.nodes.values())
        nodes[0].start(found=True)
        self.wait(lambda: self.world.leader() is not None, "no first leader")
        for node in nodes[1:]:
            node.start()
            node.enter()
            self.wait(lambda node=node: self._votes(node), f"{node.node_id} not promoted")  # type: ignore[misc]

    def _votes(self, node: SimNode) -> bool:
        leader = self.world.leader()
        return (
            leader is not None and leader.core is not None and node.node_id in leader.core.configurations.current.voters
        )

    def leader(self) -> SimNode:
        """The leader, once there is one; whoever is down is restarted meanwhile."""
        for _ in range(40):
            if self.world.run(0.5, lambda: self.world.leader() is not None):
                leader = self.world.leader()
                assert leader is not None
                return leader
            self.restart()
        raise Violation("no leader")

    def restart(self) -> None:
        for node in self.world.nodes.values():
            if node.core is None:
                node.start()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        if not self.world.run(20.0, condition):
            raise Violation(what)

    def write(self, number: int) -> None:
        """Propose until acknowledged, under one command ID; restarts whoever is down."""
        done = False

        def told(result: object) -> None:
            nonlocal done
            done = done or not isinstance(result, ConsensusError)

        data = msgspec.msgpack.encode([number, "key", "write", number])
        while not done:
            self.leader().propose(number.to_bytes(16, "big"), data, told)
            self.world.run(0.5, lambda: done)
            self.restart()
        self.acknowledged.append(number)


def run_sweep_step(kind: str, target: str, step: int) -> bool:
    """Run with one fault; true if it was hit. Raises Violation."""
    run = _Run(step)
    run.form()
    leader = run.leader()
    followers = [node for node in run.world.nodes.values() if node is not leader]
    victims = {"leader": [leader], "follower": followers[:1], "all": [leader, *followers]}[target]
    for victim in victims:
        victim.disk.fault = Fault(step, kind)
    for number in range(1, WRITES + 1):
        run.write(number)
    hit = any(victim.disk.fault is None for victim in victims)
    for node in run.world.nodes.values():  # power loss everywhere: what was acknowledged is on the disks
        node.crash()
    run.restart()
    run.write(WRITES + 1)
    nodes = list(run.world.nodes.values())
    run.wait(lambda: all(set(run.acknowledged) <= node.machine.seen for node in nodes), "an acknowledged write is lost")
    return hit
