"""A whole Raft group in one process on virtual time: clock, network, members, and what must never be the case."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import msgspec
from pysyncobj import syncobj

from manager.consensus import wire
from manager.consensus.adapter import Parts
from manager.consensus.changes import MembershipChanges
from manager.consensus.commands import Applier
from manager.consensus.configuration import Configuration
from manager.consensus.core import RaftCore
from manager.consensus.outputs import Apply, Deposed, Done, Output, Ready, Rejected, Restore, TakeSnapshot
from manager.consensus.port import (
    Admission,
    ConsensusError,
    Entry,
    Member,
    NodeID,
    NotLeaderError,
    ProposalUnknownError,
)
from manager.consensus.recovery import OpenedState, found_group, open_state
from manager.consensus.sealed import KeyRing
from manager.consensus.settings import SnapshotPolicy, Timing
from manager.consensus.snapshots import SnapshotHead
from tests.simulation.disk import Crash, SimDisk

FOLDER = Path("/state")
KEYS = KeyRing(b"s" * 32)
TIMING = Timing()
SILENCE_S = 2 * TIMING.election_timeout_s_max


class Violation(AssertionError):  # noqa: N818  # it is a finding, not an error of the program
    """Something happened that Raft promises never happens."""


class Store:
    """The state machine: registers, and which command set them. Refuses to see a command twice."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.seen: set[int] = set()

    def apply(self, entries: Sequence[Entry]) -> Sequence[object]:
        results: list[object] = []
        for entry in entries:
            unique, key, kind, *arguments = msgspec.msgpack.decode(entry.data)
            if unique in self.seen:
                raise Violation(f"command {unique} was applied twice")
            self.seen.add(unique)
            if kind == "write":
                self.values[key] = arguments[0]
                results.append(None)
            else:
                done = self.values.get(key) == arguments[0]
                if done:
                    self.values[key] = arguments[1]
                results.append(done)
        return results

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        view = msgspec.msgpack.encode((sorted(self.values.items()), sorted(self.seen)))
        return lambda: iter([view[start : start + 200] for start in range(0, len(view), 200)])

    def load(self, chunks: Iterable[bytes], index: int) -> Callable[[], None]:
        values, seen = msgspec.msgpack.decode(b"".join(chunks))

        def install() -> None:
            self.values, self.seen = dict(values), set(seen)

        return install


class World:
    """Clock, events, network. All randomness comes from ``rng``."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.trace: list[str] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self.nodes: dict[NodeID, SimNode] = {}
        self.network = Network(self)
        self.committed: dict[int, tuple[bytes, int]] = {}
        self.leaders: dict[int, NodeID] = {}
        self.votes: dict[tuple[NodeID, int], NodeID] = {}
        syncobj.monotonicTime = lambda: self.now

    def note(self, text: str) -> None:
        self.trace.append(f"{self.now - 100:8.3f} {text}")

    def at(self, delay_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._numbers), event))

    def run(self, duration_s: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Run events; true as soon as ``until`` holds, false when time is up."""
        end = self.now + duration_s
        while self._events and self._events[0][0] <= end:
            self.now, _, event = heapq.heappop(self._events)
            event()
            if until():
                return True
        self.now = end
        return until()

    def live(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.core is not None]

    def leader(self) -> SimNode | None:
        leading = [node for node in self.live() if node.core is not None and node.core.is_ready()]
        return max(leading, key=lambda node: node.term(), default=None)

    def check_committed(self, node_id: NodeID, entries: Iterable[tuple[bytes, int, int]]) -> None:
        """State machine safety (Raft, 5.4.3): nobody applies another entry at the same index."""
        for command, index, term in entries:
            known = self.committed.setdefault(index, (command, term))
            if known != (command, term):
                raise Violation(f"{node_id} applies {index} of term {term}, others applied term {known[1]}")

    def check_leader(self, node: SimNode) -> None:
        """Election safety (Raft, 5.2): at most one leader a term."""
        if node.core is not None and node.core.is_leading():
            known = self.leaders.setdefault(node.core.term(), node.node_id)
            if known != node.node_id:
                raise Violation(f"{known} and {node.node_id} both lead term {node.core.term()}")

    def check_vote(self, voter: NodeID, candidate: NodeID, message: wire.Message) -> None:
        """One vote a term (Raft, 5.2), whatever crashes in between."""
        if isinstance(message, wire.VoteReply) and message.granted:
            known = self.votes.setdefault((voter, message.term), candidate)
            if known != candidate:
                raise Violation(f"{voter} voted for {known} and {candidate} in term {message.term}")


@dataclass(slots=True)
class Channel:
    """A connection between two members; gone when ``epoch`` moved on."""

    epoch: int = 0
    up: bool = False
    cut: bool = False
    clear_at: dict[NodeID, float] = field(default_factory=dict)  # by receiver: nothing overtakes
    heard_s: float = 0.0


class Network:
    """Connections that are ordered while they last; or, with ``unordered``, anything goes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._channels: dict[frozenset[NodeID], Channel] = {}
        self.delay_s = (0.0005, 0.003)
        self.loss = 0.0
        self.unordered = False

    def channel(self, one: NodeID, other: NodeID) -> Channel:
        return self._channels.setdefault(frozenset((one, other)), Channel())

    def send(self, source: NodeID, target: NodeID, message: wire.Message) -> None:
        world, channel = self._world, self.channel(source, target)
        world.check_vote(source, target, message)
        if not channel.up:
            return
        if world.rng.random() < self.loss:
            if not self.unordered:
                self.close(source, target)  # a stream that loses bytes is no stream
            return
        frame = wire.encode_frame(message)
        copies = 2 if self.unordered and world.rng.random() < 0.05 else 1
        for _ in range(copies):
            delay = world.rng.uniform(*self.delay_s)
            if self.unordered:
                delay *= world.rng.choice((1, 1, 1, 20))
            else:
                arrival = max(world.now + delay, channel.clear_at.get(target, 0.0))
                channel.clear_at[target] = arrival
                delay = arrival - world.now
            world.at(delay, lambda epoch=channel.epoch: self._arrive(source, target, epoch, frame))  # type: ignore[misc]

    def _arrive(self, source: NodeID, target: NodeID, epoch: int, frame: bytes) -> None:
        channel, node = self.channel(source, target), self._world.nodes[target]
        if channel.epoch != epoch or not channel.up or node.core is None:
            return
        if channel.cut:  # the bytes wait in the sender's kernel until the cable is back, or the stream is given up
            self._world.at(0.05, lambda: self._arrive(source, target, epoch, frame))
            return
        node.receive(source, wire.decode_body(frame[4:]))

    def cut(self, one: NodeID, other: NodeID) -> None:
        """Take the cable out: both sides notice only by silence."""
        channel = self.channel(one, other)
        channel.cut = True
        epoch = channel.epoch

        def give_up() -> None:
            if channel.cut and channel.epoch == epoch:
                self.close(one, other)

        self._world.at(SILENCE_S * self._world.rng.uniform(0.8, 1.2), give_up)

    def heal(self) -> None:
        for channel in self._channels.values():
            channel.cut = False

    def close(self, one: NodeID, other: NodeID) -> None:
        """The connection ends; what is in flight is lost, each side hears of it a little later."""
        channel = self.channel(one, other)
        if not channel.up:
            return
        channel.up = False
        channel.epoch += 1
        channel.clear_at.clear()
        for here, there in ((one, other), (other, one)):
            self._world.at(self._world.rng.uniform(0, 0.01), lambda a=here, b=there: self._tell_lost(a, b))  # type: ignore[misc]
        self._world.at(self._world.rng.uniform(0.05, 0.3), lambda: self.connect(one, other))

    def _tell_lost(self, here: NodeID, there: NodeID) -> None:
        if not self.channel(here, there).up:
            self._world.nodes[here].disconnected(there)

    def connect(self, one: NodeID, other: NodeID) -> None:
        channel = self.channel(one, other)
        ends = [self._world.nodes.get(one), self._world.nodes.get(other)]
        if channel.up or any(end is None or end.core is None for end in ends):
            return
        if channel.cut:
            self._world.at(self._world.rng.uniform(0.1, 0.5), lambda: self.connect(one, other))
            return
        channel.up = True
        self._world.nodes[one].connected(other)
        self._world.nodes[other].connected(one)


class SimNode:
    """One member: a core on a disk that can crash, an owner that applies a little later."""

    def __init__(self, world: World, node_id: NodeID, policy: SnapshotPolicy) -> None:
        self.world, self.node_id, self.policy = world, node_id, policy
        self.disk = SimDisk()
        self.core: RaftCore | None = None
        self.changes: MembershipChanges | None = None
        self.state: OpenedState | None = None
        self.machine = Store()
        self.applier = Applier(self.machine)
        self.paused_until = 0.0
        self.refused: Exception | None = None
        self._incarnation = 0
        self._outbox: deque[Output] = deque()
        self._outbox_scheduled = False
        self._timer_at = float("inf")
        self._waiting: dict[bytes, Callable[[object], None]] = {}
        self._tokens: dict[int, Callable[[ConsensusError | None], None]] = {}
        self._next_token = count(1)

    def term(self) -> int:
        return self.core.term() if self.core is not None else 0

    # Link

    def send(self, peer: NodeID, message: wire.Message) -> None:
        self.world.network.send(self.node_id, peer, message)

    def has_room(self, peer: NodeID) -> bool:
        return True

    def flush(self) -> None:
        pass

    def configure(self, configuration: Configuration, leader_id: NodeID | None) -> None:
        def connect() -> None:
            for member in configuration.members:
                if member.node_id != self.node_id and member.node_id in self.world.nodes:
                    self.world.network.connect(self.node_id, member.node_id)

        self.world.at(0.0, connect)

    # Life

    def start(self, *, found: bool = False) -> None:
        """Open the state, crashes included; then take part."""
        try:
            self._open(found=found)
        except Crash:
            self.crash()
        except OSError:
            self.world.note(f"{self.node_id} cannot start: disk full")
            self.crash(power=False)
        if self.core is not None:
            self.world.note(f"{self.node_id} starts, term {self.core.term()}, log to {self.core.journal.last_index}")
            for other in self.world.nodes:
                if other != self.node_id:
                    self.world.network.connect(self.node_id, other)
            self.pump()

    def _open(self, *, found: bool) -> None:
        self._incarnation += 1
        state = self.state = open_state(self.disk, FOLDER, KEYS, self.node_id)
        state.journal._segment_size_bytes = 2048
        if found and state.fresh:
            found_group(state, Member(self.node_id, f"{self.node_id}:2377"))
        self.machine = Store()
        self.applier = Applier(self.machine)
        if state.head is not None:
            head, chunks = state.store.open(state.head.index)
            self.applier.load(head, chunks)()
        core = RaftCore(
            Parts(
                node_id=self.node_id,
                journal=state.journal,
                store=state.store,
                configurations=state.configurations,
                applied=state.head.index if state.head else 1,
                link=self,
                timing=TIMING,
                policy=self.policy,
                rng=random.Random(self.world.rng.random()),
            )
        )
        self.core, self.changes = core, MembershipChanges(core)
        core.on_removed = self._removed

    def enter(self) -> None:
        """As a manager does: ask whoever leads for the admission, until there is one; then ask to be added."""

        def again() -> None:
            self.world.at(self.world.rng.uniform(0.05, 0.3), self.enter)

        leader = self.world.leader()
        if self.core is None or leader is None or leader.core is None or leader.changes is None:
            again()
            return
        if self.core.configurations.current.group_id:
            member = Member(self.node_id, f"{self.node_id}:2377")
            leader.request(partial(leader.changes.add, member=member), lambda error: None)
            return
        asked = leader.core
        term = asked.term()

        def confirmed(error: ConsensusError | None) -> None:
            if error is None and asked.is_leading() and asked.term() == term:
                group_id = asked.configurations.current.group_id
                admission = Admission(group_id, term, asked.node_id, asked.commit_index())
                self.world.at(self.world.rng.uniform(0.001, 0.1), lambda: self._guarded(lambda: self._admit(admission)))
            again()

        leader.request(asked.open_barrier, confirmed)

    def _admit(self, admission: Admission) -> None:
        if self.core is not None:
            self.core.admit(admission)
            self.pump()

    def lose_everything(self) -> None:
        """Its state folder is removed, as that of a manager that was demoted; it begins anew under its ID."""
        if self.core is not None:
            self.crash()
        self.disk = SimDisk()
        self.start()

    def _removed(self) -> None:
        self.world.note(f"{self.node_id} hears that it was removed")

    def crash(self, *, power: bool = True) -> None:
        """The process ends; with ``power``, the disk loses what was not synced."""
        self.world.note(f"{self.node_id} crashes{'' if power else ' (process only)'}")
        self._incarnation += 1
        self.core = self.changes = None
        self._outbox.clear()
        self._outbox_scheduled = False
        self._timer_at = float("inf")
        if power:
            self.disk.lose_power(self.world.rng)
        elif self.state is not None:
            self.state.close()
        self.disk.fault = None
        self.disk._locked = False
        self.state = None
        waiting, self._waiting = self._waiting, {}
        for callback in waiting.values():
            callback(ProposalUnknownError("crash"))
        tokens, self._tokens = self._tokens, {}
        for tell in tokens.values():
            tell(ProposalUnknownError("crash"))
        for other in self.world.nodes:
            if other != self.node_id:
                self.world.network.close(self.node_id, other)

    def _guarded(self, work: Callable[[], None]) -> None:
        if self.world.now < self.paused_until:
            incarnation = self._incarnation

            def later() -> None:
                if incarnation == self._incarnation:
                    self._guarded(work)

            self.world.at(self.paused_until - self.world.now, later)
            return
        try:
            work()
        except Crash:
            self.crash()
        except OSError:
            self.crash(power=False)

    # Inputs

    def receive(self, peer: NodeID, message: wire.Message) -> None:
        def work() -> None:
            if self.core is not None:
                self.core.receive(peer, message)
                self.pump()

        self._guarded(work)

    def connected(self, peer: NodeID) -> None:
        if self.core is not None:
            self.core.connected(peer)
            self.pump()

    def disconnected(self, peer: NodeID) -> None:
        if self.core is not None:
            self.core.disconnected(peer)
            self.pump()

    def propose(self, command_id: bytes, data: bytes, callback: Callable[[object], None]) -> None:
        if self.core is None or not self.core.is_leading():
            callback(NotLeaderError(self.core.leader_id() if self.core else None))
            return
        self._waiting[command_id] = callback
        self.core.propose(command_id, data)
        self.pump()

    def request(self, start: Callable[[int], None], callback: Callable[[ConsensusError | None], None]) -> None:
        """A barrier or membership change; ``start`` is given its token."""
        token = next(self._next_token)
        self._tokens[token] = callback
        start(token)
        self.pump()

    def pump(self) -> None:
        def work() -> None:
            core = self.core
            if core is None:
                return
            core.pump()
            self.world.check_leader(self)
            self._outbox.extend(core.take_outputs())
            if self._outbox and not self._outbox_scheduled:
                self._outbox_scheduled = True
                incarnation = self._incarnation
                self.world.at(self.world.rng.uniform(0, 0.004), lambda: self._process_all(incarnation))
            self._arm(core)

        self._guarded(work)

    def _arm(self, core: RaftCore) -> None:
        deadline = max(core.deadline(), self.world.now + 0.001)
        if deadline >= self._timer_at > self.world.now:
            return
        self._timer_at = deadline
        incarnation = self._incarnation

        def fire() -> None:
            if incarnation == self._incarnation and self._timer_at <= self.world.now:
                self._timer_at = float("inf")
                self.pump()

        self.world.at(deadline - self.world.now, fire)

    # The owner

    def _process_all(self, incarnation: int) -> None:
        if incarnation != self._incarnation:
            return
        self._outbox_scheduled = False

        def work() -> None:
            while self._outbox and self.core is not None:
                self._process(self._outbox.popleft())
            self.pump()

        self._guarded(work)

    def _process(self, output: Output) -> None:
        assert self.core is not None
        match output:
            case Apply(entries):
                self.world.check_committed(self.node_id, entries)
                for outcome in self.applier.apply(entries):
                    callback = self._waiting.pop(outcome.command_id, None)
                    if callback is not None:
                        callback(outcome.result)
                self.core.consumed(len(entries), sum(len(entry[0]) for entry in entries))
            case Deposed():
                waiting, self._waiting = self._waiting, {}
                for callback in waiting.values():
                    callback(ProposalUnknownError("deposed"))
            case Rejected(command_id, error):
                callback = self._waiting.pop(command_id, None)
                if callback is not None:
                    callback(error)
            case Done(token, error):
                tell = self._tokens.pop(token, None)
                if tell is not None:
                    tell(error)
            case Restore(index):
                assert self.state is not None
                newest = self.state.store.indexes()[-1]
                head, chunks = self.state.store.open(index if index in self.state.store.indexes() else newest)
                self.applier.load(head, chunks)()
            case TakeSnapshot(index, term, configuration):
                if self.applier.applied_index < index:
                    raise Violation(f"snapshot marker {index} behind entry {self.applier.applied_index}")
                if self.applier.applied_index > index:
                    self.core.snapshot_written(index, ConsensusError("superseded"))
                    return
                ids, view = self.applier.snapshot()
                head = SnapshotHead(index, term, configuration, ids)
                incarnation = self._incarnation
                self.world.at(self.world.rng.uniform(0.001, 0.2), lambda: self._write(incarnation, head, view))
            case Ready():
                pass

    def _write(self, incarnation: int, head: SnapshotHead, view: Callable[[], Iterator[bytes]]) -> None:
        def work() -> None:
            if incarnation != self._incarnation or self.state is None or self.core is None:
                return
            error: Exception | None = None
            try:
                self.state.store.write(head, view())
            except OSError as caught:
                error = caught
            self.core.snapshot_written(head.index, error)
            self.pump()

        self._guarded(work)
