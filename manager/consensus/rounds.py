"""Majorities that pysyncobj does not count: pre-votes, read barriers. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from manager.consensus.configuration import majority
from manager.consensus.port import NodeID

T = TypeVar("T")


@dataclass(slots=True)
class PreVoteRound:
    """Would a majority vote for this member? Only then may it raise its term (Raft thesis, 9.6).

    ``won`` lasts until the next ``start`` or ``cancel``.
    """

    attempt: int = 0
    won: bool = False
    _term: int = 0
    _granted: set[NodeID] = field(default_factory=set)

    def start(self, term: int, self_id: NodeID, voters: frozenset[NodeID]) -> bool:
        """Open a round for ``term``; true if this member is a majority by itself."""
        self.attempt += 1
        self._term = term
        self._granted = {self_id}
        self.won = len(voters) == 1
        return self.won

    def grant(self, voter: NodeID, attempt: int, current_term: int, voters: frozenset[NodeID]) -> bool:
        """Count a reply; true if it makes the majority."""
        if attempt != self.attempt or current_term + 1 != self._term or voter not in voters or self.won:
            return False
        self._granted.add(voter)
        self.won = len(self._granted & voters) >= majority(len(voters))
        return self.won

    def cancel(self) -> None:
        self.won = False
        self._term = 0


@dataclass(slots=True)
class _Waiting(Generic[T]):
    seq: int
    index: int
    token: T


class ReadBarriers(Generic[T]):
    """Reads that wait for proof that this leader still led after they arrived (Raft, section 8).

    Every AppendEntries message carries a rising number that its reply returns; a barrier that opened
    when the next number was ``seq`` is proven by replies to ``seq`` or later from a majority.
    """

    def __init__(self) -> None:
        self._waiting: list[_Waiting[T]] = []
        self._acknowledged: dict[NodeID, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def open(self, seq: int, index: int, token: T) -> None:
        """``index``: the commit index when the read arrived."""
        self._waiting.append(_Waiting(seq, index, token))

    def acknowledge(self, node_id: NodeID, seq: int) -> None:
        self._acknowledged[node_id] = max(seq, self._acknowledged.get(node_id, 0))

    def take_proven(self, self_id: NodeID, voters: frozenset[NodeID], applied: int) -> list[T]:
        """Barriers that are proven and whose index is applied, oldest first."""
        if not self._waiting:
            return []
        seqs = sorted((self._acknowledged.get(voter, 0) for voter in voters if voter != self_id), reverse=True)
        needed = majority(len(voters)) - 1
        proven = float("inf") if needed == 0 else seqs[needed - 1]
        done = [waiting.token for waiting in self._waiting if waiting.seq <= proven and waiting.index <= applied]
        self._waiting = [w for w in self._waiting if not (w.seq <= proven and w.index <= applied)]
        return done

    def forget(self, token: T) -> None:
        """Nobody waits for it any more."""
        self._waiting = [waiting for waiting in self._waiting if waiting.token != token]

    def clear(self) -> list[T]:
        """Leadership ended: all that wait, unproven."""
        tokens = [waiting.token for waiting in self._waiting]
        self._waiting.clear()
        self._acknowledged.clear()
        return tokens
