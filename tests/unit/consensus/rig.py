"""One Raft core by hand: its messages are captured, its clock is moved, its disk is in memory."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TypeVar

from pysyncobj import syncobj

from manager.consensus import wire
from manager.consensus.adapter import Parts
from manager.consensus.changes import MembershipChanges
from manager.consensus.configuration import Configuration
from manager.consensus.core import RaftCore
from manager.consensus.outputs import MEMBERSHIP, NO_OP, REGULAR, Apply
from manager.consensus.port import Member, NodeID
from manager.consensus.recovery import open_state
from manager.consensus.sealed import KeyRing
from manager.consensus.settings import SnapshotPolicy, Timing
from tests.simulation.disk import SimDisk

M = TypeVar("M", bound=wire.Message)
A, B, C, D, E = (NodeID(name) for name in "abcde")
FOLDER = Path("/state")
KEYS = KeyRing(b"r" * 32)
COMMAND_ID = b"0123456789abcdef"


def configuration(*voters: NodeID, learners: tuple[NodeID, ...] = ()) -> Configuration:
    members = [Member(v, f"{v}:2377") for v in voters] + [Member(n, f"{n}:2377", learner=True) for n in learners]
    return Configuration("group", tuple(sorted(members, key=lambda member: member.node_id)))


def command(data: bytes) -> bytes:
    return REGULAR + COMMAND_ID + data


class Rig:
    """Member ``a`` of a group of voters.

    Args:
        terms: of the entries from index 3 on (1 is the common start, 2 the configuration, both of term 0).
        term, voted_for: on disk.
    """

    def __init__(
        self,
        *voters: NodeID,
        terms: tuple[int, ...] = (),
        term: int = 0,
        voted_for: NodeID | None = None,
        policy: SnapshotPolicy | None = None,
    ) -> None:
        self.now = 1000.0
        syncobj.monotonicTime = lambda: self.now
        self.disk, self.timing = SimDisk(), Timing()
        self.policy = policy or SnapshotPolicy()
        self.sent: list[tuple[NodeID, wire.Message]] = []
        self.durable_at_send: list[bool] = []
        state = open_state(self.disk, FOLDER, KEYS, A)
        state.journal.add(MEMBERSHIP + configuration(*(voters or (A, B, C))).encode(), 2, 0)
        for offset, entry_term in enumerate(terms):
            state.journal.add(command(b"old %d" % offset), 3 + offset, entry_term)
        if term:
            state.journal.setCurrentTerm(term, voted_for)
        state.journal.sync()
        state.close()
        self.open()

    def open(self) -> None:
        self.state = open_state(self.disk, FOLDER, KEYS, A)
        self.core = RaftCore(
            Parts(
                node_id=A,
                journal=self.state.journal,
                store=self.state.store,
                configurations=self.state.configurations,
                applied=self.state.head.index if self.state.head else 1,
                link=self,
                timing=self.timing,
                policy=self.policy,
                rng=random.Random(1),
            )
        )
        self.changes = MembershipChanges(self.core)

    def begin_anew(self) -> None:
        """With an empty folder, as a manager that was demoted and promoted."""
        self.state.close()
        self.disk = SimDisk()
        self.open()

    def restart(self, *, power: bool = True) -> None:
        """Crash and come back; with ``power``, what was not synced may be lost."""
        if power:
            self.disk.lose_power(random.Random(3))
        else:
            self.state.close()
        self.open()

    # adapter.Link

    def send(self, peer: NodeID, message: wire.Message) -> None:
        self.sent.append((peer, message))
        self.durable_at_send.append(not self.core.journal.dirty)

    def has_room(self, peer: NodeID) -> bool:
        return True

    def flush(self) -> None:
        pass

    def configure(self, configuration: Configuration, leader_id: NodeID | None) -> None:
        pass

    # Driving

    def connect(self, *peers: NodeID) -> None:
        for peer in peers:
            self.core.connected(peer)

    def receive(self, peer: NodeID, message: wire.Message) -> None:
        self.core.receive(peer, message)
        self.core.pump()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.core.pump()

    def take(self, kind: type[M], peer: NodeID | None = None) -> list[M]:
        """Messages of a kind sent since the last ``clear``, to ``peer`` or anybody."""
        return [m for to, m in self.sent if isinstance(m, kind) and (peer is None or to == peer)]

    def last(self, kind: type[M], peer: NodeID | None = None) -> M:
        return self.take(kind, peer)[-1]

    def clear(self) -> None:
        self.sent.clear()
        self.durable_at_send.clear()

    def campaign(self) -> None:
        """Time out and win the pre-vote, but no vote yet."""
        self.advance(self.timing.election_timeout_s_max + 0.1)
        ask = self.last(wire.PreVote)
        for peer, message in list(self.sent):
            if message is ask or isinstance(message, wire.PreVote):
                self.receive(peer, wire.PreVoteReply(self.core.term(), message.attempt, True, False))

    def lead(self) -> None:
        """Become leader with the vote of everybody connected; the no-op is not acknowledged yet."""
        self.campaign()
        for peer, message in list(self.sent):
            if isinstance(message, wire.Vote):
                self.receive(peer, wire.VoteReply(message.term, True))
        assert self.core.is_leading()

    def acknowledge(self, peer: NodeID, index: int | None = None) -> None:
        """``peer`` confirms everything up to ``index`` (default: the log's end)."""
        index = self.core.journal.last_index if index is None else index
        self.receive(peer, wire.AppendReply(self.core.term(), self.core.last_seq(), index + 1, True, False))

    def applied(self) -> list[tuple[bytes, int, int]]:
        """Entries handed to the owner so far."""
        return [entry for output in self.core.outputs if isinstance(output, Apply) for entry in output.entries]

    def log(self) -> list[tuple[int, int]]:
        """(index, term) of what the journal holds."""
        return [(index, term) for _, index, term in self.core.journal[:]]


def append(
    term: int, prev: tuple[int, int], *terms: int, commit: int = 1, seq: int = 1, data: bytes = b"new"
) -> wire.Append:
    """An AppendEntries message; ``prev`` is (index, term)."""
    entries = [(entry_term, command(data)) for entry_term in terms]
    return wire.Append(term, seq, commit, prev[0], prev[1], entries)


__all__ = ["MEMBERSHIP", "NO_OP", "A", "B", "C", "D", "E", "Rig", "append", "command", "configuration"]
