"""A seeded run: a group forms, clients work, everything goes wrong, everything heals; then the accounts are checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count

import msgspec

from manager.consensus.port import ConsensusError, NodeID, NotLeaderError
from manager.consensus.settings import SnapshotPolicy
from tests.linearizability import UNKNOWN, Operation, check
from tests.simulation.disk import Fault
from tests.simulation.world import SimNode, Violation, World

KEYS = ("x", "y", "z")
CONVERGENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did, so that a test can tell that it tested something."""

    acknowledged: int
    unknown: int
    reads: int
    crashes: int
    terms: int
    snapshots: int
    virtual_s: float


class Client:
    """Calls one operation after the other and writes the history."""

    def __init__(self, scenario: Scenario, name: str) -> None:
        self._scenario, self._name = scenario, name
        self._world, self._rng = scenario.world, scenario.world.rng
        self._hint: NodeID | None = None
        self._next()

    def _next(self) -> None:
        self._world.at(self._rng.uniform(0.005, 0.15), self._call)

    def _call(self) -> None:
        if self._scenario.quiet:
            return
        key = self._rng.choice(KEYS)
        if self._rng.random() < 0.35:
            self._read(key)
            return
        unique = next(self._scenario.numbers)
        if self._rng.random() < 0.8:
            call: tuple[object, ...] = ("write", unique)
        else:
            call = ("cas", self._rng.randint(1, unique), unique)
        command_id = unique.to_bytes(16, "big")
        data = msgspec.msgpack.encode([unique, key, *call])
        self._attempt(key, call, command_id, data, self._world.now, tries=3)

    def _attempt(
        self, key: str, call: tuple[object, ...], command_id: bytes, data: bytes, invoked: float, tries: int
    ) -> None:
        node = self._pick()
        finished = False

        def done(result: object) -> None:
            nonlocal finished
            if finished:
                return
            finished = True
            if isinstance(result, NotLeaderError):
                self._hint = result.leader_id
                if tries == 3:  # nothing was proposed anywhere: the operation did not happen
                    self._next()
                else:
                    self._unknown(key, call, command_id, data, invoked, tries)
            elif isinstance(result, ConsensusError):
                self._unknown(key, call, command_id, data, invoked, tries)
            else:
                self._scenario.record(key, Operation(self._name, invoked, self._world.now, call, result))
                self._scenario.acknowledged.add(int.from_bytes(command_id, "big"))
                self._next()

        self._world.at(2.0, lambda: done(ConsensusError("timeout")))
        node.propose(command_id, data, done)

    def _unknown(
        self, key: str, call: tuple[object, ...], command_id: bytes, data: bytes, invoked: float, tries: int
    ) -> None:
        """Sometimes ask again under the same ID: applied twice, the state machine would object."""
        self._hint = None
        if tries > 1 and not self._scenario.quiet and self._rng.random() < 0.7:
            delay = self._rng.uniform(0.05, 0.5)
            self._world.at(delay, lambda: self._attempt(key, call, command_id, data, invoked, tries - 1))
            return
        self._scenario.record(key, Operation(self._name, invoked, self._world.now, call, UNKNOWN))
        self._next()

    def _read(self, key: str) -> None:
        node, invoked, finished = self._pick(), self._world.now, False

        def done(error: ConsensusError | None) -> None:
            nonlocal finished
            if finished:
                return
            finished = True
            if error is None:
                value = node.machine.values.get(key)
                self._scenario.record(key, Operation(self._name, invoked, self._world.now, ("read",), value))
            self._next()

        core = node.core
        if core is None or not core.is_leading():
            done(NotLeaderError(None))
            return
        self._world.at(2.0, lambda: done(ConsensusError("timeout")))
        node.request(core.open_barrier, done)

    def _pick(self) -> SimNode:
        if self._hint is not None and self._hint in self._world.nodes and self._rng.random() < 0.9:
            return self._world.nodes[self._hint]
        leading = [node for node in self._world.live() if node.core is not None and node.core.is_leading()]
        if leading and self._rng.random() < 0.8:
            return self._rng.choice(leading)
        return self._rng.choice(list(self._world.nodes.values()))


class Scenario:
    """One run. ``run`` raises Violation or returns a report."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.world = World(seed)
        self.rng = self.world.rng
        self.numbers = count(1)
        self.quiet = False
        self.acknowledged: set[int] = set()
        self._history: dict[str, list[Operation]] = {key: [] for key in KEYS}
        self._crashes = 0
        self._removed: set[NodeID] = set()
        self._policy = SnapshotPolicy(
            interval_entries=self.rng.choice((5, 12, 40, 10_000)),
            trailing_entries=self.rng.choice((0, 1, 5, 20)),
            log_bytes_min=self.rng.choice((0, 4_000, 20_000)),
        )

    def record(self, key: str, operation: Operation) -> None:
        self._history[key].append(operation)

    def run(self, *, chaos_s: float = 10.0) -> Report:
        try:
            self._form(self.rng.choice((1, 3, 3, 3, 3, 4, 5)))
            self.world.network.unordered = self.rng.random() < 0.2
            self.world.network.loss = self.rng.choice((0.0, 0.0, 0.001, 0.01))
            if self.rng.random() < 0.2:
                self.world.network.delay_s = (0.001, 0.15)
            for number in range(4):
                Client(self, f"client-{number}")
            self._chaos(chaos_s)
            self._heal()
            self._account()
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"{type(error).__name__}: {error}") from error
        stores = [len(node.state.store.indexes()) for node in self.world.live() if node.state is not None]
        operations = [operation for history in self._history.values() for operation in history]
        return Report(
            acknowledged=len(self.acknowledged),
            unknown=sum(operation.output is UNKNOWN for operation in operations),
            reads=sum(operation.input == ("read",) for operation in operations),
            crashes=self._crashes,
            terms=max(self.world.leaders),
            snapshots=sum(stores),
            virtual_s=self.world.now - 100,
        )

    # Membership

    def _new_node(self) -> SimNode:
        node_id = NodeID(f"n{len(self.world.nodes)}")
        node = self.world.nodes[node_id] = SimNode(self.world, node_id, self._policy)
        return node

    def _form(self, size: int) -> None:
        self._new_node().start(found=True)
        if not self.world.run(5.0, lambda: self.world.leader() is not None):
            raise Violation("a group of one has no leader")
        for _ in range(size - 1):
            node = self._new_node()
            node.start()
            node.enter()
            if not self.world.run(10.0, lambda node=node: self._votes(node)):  # type: ignore[misc]
                raise Violation(f"{node.node_id} was not promoted")

    def _votes(self, node: SimNode) -> bool:
        leader = self.world.leader()
        return (
            leader is not None and leader.core is not None and node.node_id in leader.core.configurations.current.voters
        )

    def _remove(self, node: SimNode) -> None:
        leader = self.world.leader()
        if leader is None or leader.changes is None or leader is node:
            return

        def done(error: ConsensusError | None) -> None:
            self.world.note(f"removal of {node.node_id}: {error or 'done'}")
            if error is None:
                self._removed.add(node.node_id)

        leader.request(partial(leader.changes.remove, node_id=node.node_id), done)

    # Faults

    def _chaos(self, duration_s: float) -> None:
        end = self.world.now + duration_s
        faults: list[tuple[float, Callable[[SimNode], None]]] = [
            (3, self._fault_disk),
            (2, self._fault_crash),
            (1, self._fault_kill),
            (3, self._fault_partition),
            (2, self._fault_isolate_leader),
            (2, self._fault_close),
            (2, self._fault_pause),
            (1, self._fault_transfer),
            (1, self._fault_membership),
            (2, self._fault_begin_anew),
            (1, self._fault_all),
            (4, self._repair),
        ]
        weights = [weight for weight, _ in faults]
        while self.world.now < end:
            self.world.run(self.rng.uniform(0.05, 1.2))
            _, fault = self.rng.choices(faults, weights)[0]
            fault(self.rng.choice(list(self.world.nodes.values())))

    def _fault_disk(self, node: SimNode) -> None:
        kind = self.rng.choice(("crash-before", "crash-after", "crash-after", "full"))
        node.disk.fault = Fault(self.rng.randint(1, 25), kind)
        self.world.note(f"{node.node_id} {kind} in {node.disk.fault.step} operations")

    def _fault_crash(self, node: SimNode) -> None:
        if node.core is not None:
            self._crashes += 1
            node.crash()

    def _fault_kill(self, node: SimNode) -> None:
        if node.core is not None:
            self._crashes += 1
            node.crash(power=False)

    def _fault_all(self, node: SimNode) -> None:
        """Power is lost everywhere at once."""
        for each in self.world.live():
            self._crashes += 1
            each.crash()

    def _fault_partition(self, node: SimNode) -> None:
        nodes = list(self.world.nodes)
        side = self.rng.sample(nodes, self.rng.randint(0, len(nodes) // 2))
        self.world.note(f"partition {sorted(side)}")
        for one in side:
            for other in nodes:
                if other not in side:
                    self.world.network.cut(one, other)

    def _fault_isolate_leader(self, node: SimNode) -> None:
        leader = self.world.leader()
        if leader is not None:
            self.world.note(f"isolate leader {leader.node_id}")
            for other in list(self.world.nodes):
                if other != leader.node_id:
                    self.world.network.cut(leader.node_id, other)

    def _fault_close(self, node: SimNode) -> None:
        for other in list(self.world.nodes):
            if other != node.node_id and self.rng.random() < 0.5:
                self.world.network.close(node.node_id, other)

    def _fault_pause(self, node: SimNode) -> None:
        node.paused_until = self.world.now + self.rng.uniform(0.1, 3.0)
        self.world.note(f"{node.node_id} stalls for {node.paused_until - self.world.now:.1f} s")

    def _fault_transfer(self, node: SimNode) -> None:
        leader = self.world.leader()
        if leader is not None and leader.core is not None and self.world.now >= leader.paused_until:
            self.world.note(f"{leader.node_id} transfers leadership")
            leader.core.start_transfer(self.rng.choice((None, node.node_id)), 2.0)
            leader.pump()

    def _fault_membership(self, node: SimNode) -> None:
        if len(self.world.nodes) < 6 and self.rng.random() < 0.6:
            new = self._new_node()
            new.start()
            new.enter()
        else:
            self._remove(node)

    def _fault_begin_anew(self, node: SimNode) -> None:
        """Who was removed comes back as one does that was demoted and promoted: under its ID, with an empty log."""
        if not self._removed:
            self._remove(node)
            return
        for node_id in sorted(self._removed):
            self.world.note(f"{node_id} begins anew")
            self.world.nodes[node_id].lose_everything()
            self.world.nodes[node_id].enter()
        self._removed.clear()

    def _repair(self, node: SimNode) -> None:
        self.world.note("repair")
        self.world.network.heal()
        for each in self.world.nodes.values():
            if each.core is None and self.rng.random() < 0.8:
                each.start()

    # The end

    def _heal(self) -> None:
        self.world.note("heal")
        self.world.network.loss = 0.0
        self.world.network.unordered = False
        self.world.network.delay_s = (0.0005, 0.003)
        self.world.network.heal()
        for node in self.world.nodes.values():
            node.disk.fault = None
            node.paused_until = 0.0
            if node.core is None:
                node.start()
        self.world.run(3.0)
        self.quiet = True
        # One more write must succeed and reach everybody who belongs to the group.
        final = next(self.numbers)
        self._final = final
        if not self.world.run(CONVERGENCE_S, self._converged):
            raise Violation(f"not converged {CONVERGENCE_S} s after everything healed: {self._describe()}")

    def _converged(self) -> bool:
        leader = self.world.leader()
        if leader is None or leader.core is None or self.world.now < leader.paused_until:
            return False
        if self._final not in leader.machine.seen:
            command_id = self._final.to_bytes(16, "big")
            if command_id not in leader._waiting:
                data = msgspec.msgpack.encode([self._final, "end", "write", self._final])
                leader.propose(command_id, data, lambda result: None)
            return False
        members = leader.core.configurations.current
        if members.learners or leader.core.configurations.current_index > leader.core.commit_index():
            return False
        nodes = [self.world.nodes[node_id] for node_id in members.voters]
        return all(
            node.core is not None
            and node.core.journal.last_index == leader.core.journal.last_index
            and node.applier.applied_index == leader.core.journal.last_index
            for node in nodes
        )

    def _account(self) -> None:
        leader = self.world.leader()
        assert leader is not None
        assert leader.core is not None
        nodes = [self.world.nodes[node_id] for node_id in sorted(leader.core.configurations.current.voters)]
        for node in nodes:
            lost = self.acknowledged - node.machine.seen
            if lost:
                raise Violation(f"{node.node_id} lost acknowledged commands {sorted(lost)}")
            if node.machine.values != leader.machine.values or node.machine.seen != leader.machine.seen:
                raise Violation(f"{node.node_id} and {leader.node_id} differ in state")
            self._compare_logs(node, leader)
        for key, history in self._history.items():
            if not check(history):
                raise Violation(f"history of {key} is not linearizable: {history}")

    def _compare_logs(self, one: SimNode, other: SimNode) -> None:
        assert one.core is not None
        assert other.core is not None
        first = max(one.core.journal.first_index, other.core.journal.first_index) + 1
        last = one.core.journal.last_index
        if one.core.journal.slice(first, last) != other.core.journal.slice(first, last):
            raise Violation(f"logs of {one.node_id} and {other.node_id} differ")

    def _describe(self) -> str:
        parts = []
        for node in self.world.nodes.values():
            if node.core is None:
                parts.append(f"{node.node_id} down")
                continue
            core = node.core
            parts.append(
                f"{node.node_id} term {core.term()} leads {core.is_leading()} log {core.journal.first_index}.."
                f"{core.journal.last_index} applied {node.applier.applied_index} follows {core.leader_id()} "
                f"voters {sorted(core.configurations.current.voters)}"
            )
        return "; ".join(parts)


def run_seed(seed: int) -> Report:
    """Run one seed; a violation carries the end of the trace and how to replay it."""
    scenario = Scenario(seed)
    try:
        return scenario.run()
    except Violation as violation:
        trace = "\n".join(scenario.world.trace[-60:])
        raise Violation(f"seed {seed} (SIMULATION_SEED={seed} replays it): {violation}\n{trace}") from violation


__all__ = ["Report", "Scenario", "run_seed"]
