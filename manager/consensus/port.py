"""The port between the replicated store and the log under it.

Two implementations live behind it and pass one suite (``tests/contract/test_consensus.py``):
``manager.consensus.raft`` (pysyncobj, the real thing) and ``manager.consensus.inprocess`` (one
member, nothing on disk, for tests of what stands on the store).

Threads: consensus runs on a thread and an event loop of its own. Everything in this module is
called from, and calls back on, the *owner's* loop: the one that called ``start``. The state
machine therefore has one owner and needs no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

NodeID = NewType("NodeID", str)

ENTRY_SIZE_BYTES_MAX = 4 * 1024 * 1024
"""Largest entry a proposal may carry; a larger one is refused before it reaches the log."""


class ConsensusError(Exception):
    """Base of everything the log may refuse."""


class NotLeaderError(ConsensusError):
    """This member does not lead; nothing was proposed. ``leader_id`` is who does, if known."""

    def __init__(self, leader_id: NodeID | None) -> None:
        super().__init__(f"not the leader (leader: {leader_id or 'unknown'})")
        self.leader_id = leader_id


class ProposalUnknownError(ConsensusError):
    """Leadership was lost, or time ran out, while the entry was on its way: it may or may not be applied later.

    A caller that can read its write back (object versions, unique IDs) may retry.
    """


class NoQuorumError(ConsensusError):
    """A read barrier or a membership change was not confirmed by a majority in time."""


class MembershipError(ConsensusError):
    """The change was refused: it would lose the quorum, another one is under way, or the member is unknown."""


class EntryTooLargeError(ConsensusError):
    """The entry is larger than ``ENTRY_SIZE_BYTES_MAX``; nothing was proposed."""


class CorruptStateError(ConsensusError):
    """Journal or snapshot on disk is damaged where a crash cannot explain it; the member refuses to start."""


class IncompleteStateError(ConsensusError):
    """The member was still being sent the group's state: what it has is not to be made a cluster of."""


class StateLockedError(ConsensusError):
    """Another process holds the state folder."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A committed entry.

    Attributes:
        index: position in the log, strictly rising; not every index carries an entry (no-ops, membership).
        data: what ``propose`` was given, byte for byte.
    """

    index: int
    data: bytes


class StateMachine(Protocol):
    """What the log drives. All but ``load`` are called on the owner's loop and must be deterministic and quick."""

    def apply(self, entries: Sequence[Entry]) -> Sequence[object]:
        """Apply a batch in order; one result an entry, handed to the proposer if it is on this member.

        A result that is an exception instance is raised to the proposer; an exception *raised* here is a
        broken invariant and ends the member.
        """

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """An immutable view of the state right now.

        Returns:
            A function that serialises the view in chunks; it runs on another thread, later.
        """

    def load(self, chunks: Iterable[bytes], index: int) -> Callable[[], None]:
        """Read a snapshot that was taken after the entry at ``index`` was applied.

        Called on another thread, so it leaves the state alone; nothing is applied meanwhile.

        Returns:
            A function that replaces the whole state; it is called on the owner's loop.
        """


@dataclass(frozen=True, slots=True)
class Member:
    """One manager in the Raft configuration.

    Attributes:
        node_id: identity; the CN of its certificate.
        address: ``host:port`` of its 2377 listener, a fact that can change.
        learner: replicates without a vote until caught up.
    """

    node_id: NodeID
    address: str
    learner: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """What a member that begins with an empty log is told by the leader before anything else.

    Attributes:
        group_id: the Raft group that it belongs to from now on, whatever the log says that it is sent.
        term, leader_id: who led, confirmed by a majority: no leader of an earlier term is listened to.
        index: what was committed then. Until the log reaches it, it is history and nothing in it is acted on.
    """

    group_id: str
    term: int
    leader_id: NodeID
    index: int


@dataclass(frozen=True, slots=True)
class LeaderState:
    """Who leads, as this member knows it.

    Attributes:
        term: current term.
        leader_id: the leader of ``term`` or None.
        is_leader: this member leads *and* has applied every entry of earlier terms, so that decisions
            may be taken from its state.
    """

    term: int
    leader_id: NodeID | None
    is_leader: bool


class Consensus(Protocol):
    """A replicated log with one state machine per member."""

    @property
    def node_id(self) -> NodeID: ...

    @property
    def leader(self) -> LeaderState: ...

    @property
    def members(self) -> Sequence[Member]:
        """The configuration in force, by node ID."""

    @property
    def group_id(self) -> str:
        """Of the Raft group: another after a new cluster was forced; "" for a member that was not admitted yet."""

    @property
    def superseded(self) -> str:
        """Why nothing can be changed here any more: a new cluster was forced from this one. "" as a rule."""

    @property
    def reachable(self) -> frozenset[NodeID]:
        """Members heard from within about one election timeout, this one included."""

    @property
    def instances(self) -> Mapping[NodeID, str]:
        """Which process of each other member is connected: told by the member, another one for each of its starts."""

    @property
    def applied_index(self) -> int: ...

    def on_leader_change(self, callback: Callable[[LeaderState], None]) -> None:
        """Call ``callback`` on the owner's loop after every change of ``leader``."""

    def on_failure(self, callback: Callable[[BaseException], None]) -> None:
        """Call ``callback`` once when the member can go on no longer (disk full, journal error, broken invariant)."""

    async def start(self, machine: StateMachine) -> None:
        """Recover snapshot and journal into ``machine``, then take part.

        Raises:
            CorruptStateError, StateLockedError.
        """

    async def stop(self, *, transfer: bool = True) -> None:
        """Leave the group of running members; a leader first hands leadership over if ``transfer``."""

    async def propose(self, data: bytes, *, timeout_s: float = 20.0, command_id: bytes | None = None) -> object:
        """Append ``data``; return what ``StateMachine.apply`` returned for it on this member.

        Args:
            command_id: 16 bytes. A command whose outcome is unknown may be proposed again under its ID, here
                or on another member, and is applied at most once (as long as fewer than 4096 others were
                applied in between); the result is then that of its first application.

        Raises:
            NotLeaderError, ProposalUnknownError, EntryTooLargeError, or the exception the state machine returned.
        """

    async def read_barrier(self, *, timeout_s: float = 20.0) -> int:
        """Wait until this member's state holds every write acknowledged before the call (leader only).

        Returns:
            The applied index, at or after the barrier.

        Raises:
            NotLeaderError, NoQuorumError.
        """

    async def admission(self, *, timeout_s: float = 20.0) -> Admission:
        """What a new member has to be told (leader only). Raises: NotLeaderError, NoQuorumError."""

    async def admit(self, admission: Admission) -> None:
        """Take it from the leader: a member without a group hears nobody before. One that has a group keeps it."""

    async def add_member(self, member: Member, *, timeout_s: float = 20.0) -> None:
        """Add ``member`` as a learner, and make it a voter once it has caught up. Idempotent.

        It must have been admitted. Returns once it votes. Raises: NotLeaderError, MembershipError, NoQuorumError.
        """

    async def remove_member(self, node_id: NodeID, *, timeout_s: float = 20.0) -> None:
        """Remove a member. The leader removes itself by transferring leadership first (then NotLeaderError).

        Raises: NotLeaderError, MembershipError (quorum would be lost), NoQuorumError.
        """

    async def transfer_leadership(self, to: NodeID | None = None, *, timeout_s: float = 5.0) -> None:
        """Hand leadership to ``to``, or to the most caught-up voter."""

    def update_address(self, node_id: NodeID, address: str) -> None:
        """A member was seen at another address; reconnect there (identity is the certificate)."""
