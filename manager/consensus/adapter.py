"""The adapter around pysyncobj 0.3.17: one Raft member as a passive object, without threads, sockets or timers.

``RaftCore`` is driven from outside: ``receive`` a message, ``propose``, then ``pump``; it answers with messages
(through ``Link``) and ``outputs``, and says when it wants to be pumped next. The thread in ``raft.py`` and the
simulation drive the same object.

What stays the library's: terms and votes, the election, the commit rule, heartbeats, appending to and cutting
of the log, stepping down without a quorum. What the adapter replaces, because it is unsafe or missing there
(finding numbers of the dependency notes in parentheses):

- pickle in every form (6), the command queue, the chunk path (10), sending, which floods a slow peer and
  resends what is in flight, and compaction, which loses the log behind a snapshot: methods overridden below;
- every message passes the guard on its way in (1, 2, 3) and a sync of the journal on its way out (5);
- pre-vote and leader stickiness (4), membership with learners (11), check-quorum (12), read barriers.

The library's private methods are ordinary attributes called ``_SyncObj__name``, so a subclass can override
them; ``tests/unit/consensus/test_pysyncobj_pin.py`` checks that each exists. The version is pinned exactly.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from pysyncobj import syncobj
from pysyncobj.config import SyncObjConf
from pysyncobj.node import Node
from pysyncobj.syncobj import SyncObj

from manager.consensus import wire
from manager.consensus.compaction import LogGrowth, is_due, log_start
from manager.consensus.configuration import Configuration, ConfigurationLog
from manager.consensus.journal import Journal, LogEntry
from manager.consensus.library import Bridge, NoPoller, Peer
from manager.consensus.outputs import MEMBERSHIP, REGULAR, Apply, Output, Rejected, Restore, TakeSnapshot
from manager.consensus.port import NodeID, NotLeaderError
from manager.consensus.replication import SnapshotSender
from manager.consensus.settings import SnapshotPolicy, Timing
from manager.consensus.snapshots import SnapshotHead, SnapshotStore

log = structlog.get_logger(__name__)

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2

TICK_COMMAND_BYTES_MAX = 2 * 1024 * 1024
BATCH_SIZE_BYTES = 256 * 1024
UNAPPLIED_ENTRIES_MAX = 16_384
UNAPPLIED_BYTES_MAX = 32 * 1024 * 1024


class Link(Protocol):
    """The way to the peers, seen from the core."""

    def send(self, peer: NodeID, message: wire.Message) -> None:
        """Send or drop; ordered and without duplicates while a connection lasts."""

    def has_room(self, peer: NodeID) -> bool:
        """False while what was sent before has not left yet."""

    def flush(self) -> None:
        """Let what was sent so far leave now."""

    def configure(self, configuration: Configuration, leader_id: NodeID | None) -> None:
        """Connect to these members, and no longer to others, except that a stream to ``leader_id`` stays.

        A member that lags passes through configurations that the leader which sends them was not in.
        """


@dataclass(frozen=True, slots=True)
class Parts:
    """What a member is put together from.

    Attributes:
        journal: recovered and not empty (see ``recovery.py``).
        configurations: what ``journal`` and snapshots say about the membership.
        applied: index of the snapshot the state machine was restored from, or 1.
        rng: for election timeouts.
    """

    node_id: NodeID
    journal: Journal
    store: SnapshotStore
    configurations: ConfigurationLog
    applied: int
    link: Link
    timing: Timing
    policy: SnapshotPolicy
    rng: random.Random


class Adapter(SyncObj):
    """One member. Every method is called on one thread.

    Raises:
        Exception: from any method, if the journal fails or an invariant is broken. The member must then
            be abandoned: nothing it would have sent has left.
    """

    def __init__(self, parts: Parts) -> None:
        journal, timing, applied = parts.journal, parts.timing, parts.applied
        self.node_id, self.journal, self.store = parts.node_id, journal, parts.store
        self.configurations, self.timing, self.policy = parts.configurations, timing, parts.policy
        self.outputs: deque[Output] = deque()
        self.heard: dict[NodeID, float] = {}
        self.transfer_to: NodeID | None = None
        self.belonged = False  # was in a committed configuration
        self._link, self._rng = parts.link, parts.rng
        self._peers: dict[NodeID, Peer] = {}
        self._node = self.peer(self.node_id)
        self._outgoing: list[tuple[NodeID, wire.Message]] = []
        self._commands: deque[tuple[bytes, bytes]] = deque()
        self._sender = SnapshotSender(self.store)
        self._seq = 0
        self._reset_floor: dict[Node, int] = {}
        self._muted = False
        self._vote_granted = False
        self._forced_campaign = False
        self._announced_commit = 0
        self._unapplied_entries = self._unapplied_bytes = 0
        self._snapshot_running = False
        self._snapshot_index = applied
        self._since_snapshot = self._in_running = LogGrowth()
        self._snapshot_failed: LogGrowth | None = None
        self._bridge = Bridge(self.library_sends)
        conf = SyncObjConf(
            autoTick=False,
            journalFile=journal,
            fullDumpFile=None,
            useFork=False,
            dynamicMembershipChange=False,
            commandsWaitLeader=False,
            raftMinTimeout=timing.election_timeout_s_min,
            raftMaxTimeout=timing.election_timeout_s_max,
            appendEntriesPeriod=timing.heartbeat_period_s,
            leaderFallbackTimeout=timing.check_quorum_s,
            connectionTimeout=timing.election_timeout_s_max,
        )
        super().__init__(self._node, [], conf, transport=self._bridge)
        self._poller = NoPoller()
        self._SyncObj__raftLastApplied = max(1, applied)
        self._SyncObj__raftCommitIndex = min(max(journal.commit_index, applied, 1), journal.last_index)
        journal.on_append = self._entry_appended
        journal.on_cut = self._entries_cut
        journal.on_commit = self._committed
        self._configure()

    # Driving

    def peer(self, node_id: NodeID) -> Peer:
        """The library's node of this ID."""
        return self._peers.get(node_id) or self._peers.setdefault(node_id, Peer(node_id))

    def now(self) -> float:
        return syncobj.monotonicTime()

    def flush(self) -> None:
        """Let waiting messages out, each after what it stands for is durable.

        A leader's entries promise nothing, so they may leave before its own sync and the followers' disks
        work at the same time as its own (Raft thesis, 10.2.1); its own copy counts after the sync only
        (``_committed``), and its term must be durable before. Everything else waits for the sync.
        """
        if not self._outgoing:
            return
        outgoing, self._outgoing = self._outgoing, []
        if self.journal.vote_dirty:
            self.journal.sync()
        for peer, message in outgoing:
            if isinstance(message, wire.Append):
                self._link.send(peer, message)
        self._link.flush()
        self.journal.sync()
        for peer, message in outgoing:
            if not isinstance(message, wire.Append):
                self._link.send(peer, message)
        self._link.flush()

    def _committed(self) -> None:
        """The commit index rose. On a leader its own copy was counted, so it has to be durable now."""
        if self.is_leading():
            self.journal.sync()

    def propose(self, command_id: bytes, data: bytes) -> None:
        """Append at the next ``pump``; the outcome is an output."""
        self._commands.append((command_id, data))

    def last_seq(self) -> int:
        """Number of the last message sent to a follower."""
        return self._seq

    def has_commands(self) -> bool:
        """Proposals wait that could be appended now."""
        return bool(self._commands) and self.transfer_to is None

    def consumed(self, entries: int, size_bytes: int) -> None:
        """The owner applied so many entries of so many bytes; as many more may be handed over."""
        self._unapplied_entries -= entries
        self._unapplied_bytes -= size_bytes

    def is_stalled(self) -> bool:
        """More is committed than the owner has room for."""
        return self._SyncObj__raftCommitIndex > self._SyncObj__raftLastApplied

    def take_outputs(self) -> list[Output]:
        taken = list(self.outputs)
        self.outputs.clear()
        return taken

    # What is the case

    def term(self) -> int:
        return self._SyncObj__raftCurrentTerm

    def is_leading(self) -> bool:
        return self._SyncObj__raftState == LEADER

    def is_voter(self) -> bool:
        return self.node_id in self.configurations.current.voters and not self.journal.superseded_by

    def leader_id(self) -> NodeID | None:
        leader = self._SyncObj__raftLeader
        return None if leader is None else NodeID(leader.id)

    def commit_index(self) -> int:
        return self._SyncObj__raftCommitIndex

    def handed_index(self) -> int:
        """Last index that is in the outputs."""
        return self._SyncObj__raftLastApplied

    def match_index(self, node_id: NodeID) -> int:
        return self._SyncObj__raftMatchIndex.get(self.peer(node_id), 0)

    # In place of the library's own methods

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802  # the library's name
        low, high = self.timing.election_timeout_s_min, self.timing.election_timeout_s_max
        return low + (high - low) * self._rng.random()

    def _checkCommandsToApply(self) -> None:  # noqa: N802  # the library's name
        """Append what was proposed; a member that does not lead refuses instead of forwarding."""
        size = 0
        while self._commands and size < TICK_COMMAND_BYTES_MAX:
            command_id, data = self._commands[0]
            if not self.is_leading():
                self.outputs.append(Rejected(command_id, NotLeaderError(self.leader_id())))
            elif self.transfer_to is not None:
                break  # until the transfer ended one way or the other
            else:
                self.append(b"".join((REGULAR, command_id, data)))
                size += len(data)
            self._commands.popleft()

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802  # the library's name
        """Hand over what is committed, once it is durable here, as long as the owner keeps up."""
        applied, committed = self._SyncObj__raftLastApplied, self._SyncObj__raftCommitIndex
        if committed <= applied or self._unapplied_entries >= UNAPPLIED_ENTRIES_MAX:
            return False
        if self._unapplied_bytes >= UNAPPLIED_BYTES_MAX:
            return False
        self.journal.sync()  # nothing is applied that this member could still lose
        entries = self.journal.slice(applied + 1, min(committed, applied + UNAPPLIED_ENTRIES_MAX))
        self._SyncObj__raftLastApplied += len(entries)
        self._unapplied_entries += len(entries)
        size_bytes = sum(len(entry[0]) for entry in entries)
        self._unapplied_bytes += size_bytes
        self._since_snapshot = self._since_snapshot.and_more(len(entries), size_bytes)
        self.outputs.append(Apply(entries))
        return False

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802  # the library's name
        """To every connected peer what it lacks and has room for, or a heartbeat."""
        self._SyncObj__newAppendEntriesTime = self.now() + self.timing.heartbeat_period_s
        self._announced_commit = self._SyncObj__raftCommitIndex
        for node in sorted(self._SyncObj__otherNodes | self._SyncObj__readonlyNodes, key=lambda n: n.id):
            if node not in self._SyncObj__connectedNodes:
                continue
            self._send_batch(node)
            while self._lacks_entries(node) and self._link.has_room(NodeID(node.id)):
                self._send_batch(node)

    def _send_batch(self, node: Node) -> None:
        peer, next_index = NodeID(node.id), self._SyncObj__raftNextIndex[node]
        self._seq += 1
        if next_index <= self.journal.first_index:
            piece = self._sender.next_piece(peer, self.term(), self._seq)
            if piece.last:
                self._SyncObj__raftNextIndex[node] = piece.index + 1
            self._post(peer, piece)
            return
        self._sender.cancel(peer)
        prev_term = self.journal.term_at(next_index - 1)
        assert prev_term is not None
        entries: list[tuple[int, bytes]] = []
        size = 0
        for command, _, term in self.journal.slice(
            next_index, min(self.journal.last_index, next_index + wire.ENTRIES_MAX - 1)
        ):
            if entries and size + len(command) > BATCH_SIZE_BYTES:
                break
            entries.append((term, command))
            size += len(command)
        self._SyncObj__raftNextIndex[node] = next_index + len(entries)
        commit = self._SyncObj__raftCommitIndex
        self._post(peer, wire.Append(self.term(), self._seq, commit, next_index - 1, prev_term, entries))

    def _lacks_entries(self, node: Node) -> bool:
        return self._SyncObj__raftNextIndex[node] <= self.journal.last_index

    def backlog(self) -> bool:
        """Some peer lacks entries and could be sent some now."""
        return any(
            self._lacks_entries(node) and self._link.has_room(NodeID(node.id))
            for node in self._SyncObj__otherNodes | self._SyncObj__readonlyNodes
            if node in self._SyncObj__connectedNodes
        )

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802  # the library's name
        since, failed, state_bytes = self._since_snapshot, self._snapshot_failed, self.store.newest_bytes
        if not self._snapshot_running and is_due(self.policy, since, state_bytes=state_bytes, failed=failed):
            self.request_snapshot()

    # Snapshots and configuration

    def request_snapshot(self) -> None:
        """Take a snapshot of everything handed over so far, unless one is being taken or nothing is new."""
        applied = self._SyncObj__raftLastApplied
        term = self.journal.term_at(applied)
        if self._snapshot_running or applied == self._snapshot_index or term is None:
            return
        self._snapshot_running = True
        self._in_running = self._since_snapshot
        self.outputs.append(TakeSnapshot(applied, term, self.configurations.at(applied)))

    def snapshot_written(self, index: int, error: Exception | None) -> None:
        """The snapshot asked for is durable, or could not be written (then the log grows on, and it is tried later)."""
        self._snapshot_running = False
        if error is not None:
            log.warning("snapshot.failed", node_id=self.node_id, index=index, error=str(error))
            self._snapshot_failed = self._since_snapshot
            return
        self._snapshot_index = max(index, self._snapshot_index)
        self._since_snapshot = self._since_snapshot.without(self._in_running)
        self._snapshot_failed = None
        self.journal.sync()
        self.journal.compact(self._log_start())
        self.configurations.compact(self._snapshot_index)
        self.store.clean(keep=1 + self.policy.keep_old)

    def snapshot_installed(self, head: SnapshotHead) -> None:
        """A leader's snapshot is durable in the store: the log begins behind it."""
        self.journal.reset(head.index, head.term)
        self.configurations.reset(head.configuration, head.index)
        self._SyncObj__raftLastApplied = head.index
        self._SyncObj__raftCommitIndex = head.index
        self._snapshot_index = head.index
        self._since_snapshot = self._in_running = LogGrowth()
        self._snapshot_failed = None
        self.outputs.append(Restore(head.index))
        self._configure()
        self.store.clean(keep=1 + self.policy.keep_old)

    def _log_start(self) -> int:
        journal, sender = self.journal, self._sender
        needed = [
            sender.index_for(NodeID(node.id)) or self._SyncObj__raftMatchIndex.get(node, 0)
            for node in self._SyncObj__otherNodes | self._SyncObj__readonlyNodes
            if self.is_leading() and node in self._SyncObj__connectedNodes
        ]
        return log_start(
            self.policy,
            self._snapshot_index,
            needed=min(needed, default=self._snapshot_index) + 1,
            state_bytes=self.store.newest_bytes,
            entry_bytes=journal.entry_bytes,
        )

    def append(self, command: bytes) -> int:
        """Append an entry of this term (leader only); returns its index."""
        index = self.journal.last_index + 1
        self.journal.add(command, index, self.term())
        return index

    def _entry_appended(self, entry: LogEntry) -> None:
        configurations = self.configurations
        was_history = configurations.is_history
        if entry[0][:1] == MEMBERSHIP:
            # One change at a time: the configuration that is followed by another was committed.
            self.belonged = self.belonged or configurations.current.find(self.node_id) is not None
            configurations.add(entry[1], Configuration.decode(entry[0][1:]))
        elif not was_history:
            configurations.end = entry[1]
            return
        configurations.end = entry[1]
        if not configurations.is_history:
            self._configure()

    def _entries_cut(self, index: int) -> None:
        self.configurations.end = index - 1
        if index <= self.configurations.current_index:
            self.configurations.cut(index)
            self._configure()

    def _configure(self) -> None:
        """Tell library and link who belongs to the group now."""
        configuration = self.configurations.current
        voters = {self.peer(node_id) for node_id in configuration.voters - {self.node_id}}
        learners = {self.peer(node_id) for node_id in configuration.learners - {self.node_id}}
        known = self._SyncObj__otherNodes | self._SyncObj__readonlyNodes
        for node in known - voters - learners:
            self._SyncObj__raftNextIndex.pop(node, None)
            self._SyncObj__raftMatchIndex.pop(node, None)
            self._sender.cancel(NodeID(node.id))
        for node in (voters | learners) - known:
            self._SyncObj__raftNextIndex[node] = self.journal.last_index + 1
            self._SyncObj__raftMatchIndex[node] = 0
        for node in voters - self._SyncObj__otherNodes:
            self._SyncObj__lastResponseTime[node] = self.now()
        self._SyncObj__otherNodes = {*voters}
        self._SyncObj__readonlyNodes = {*learners}
        self._link.configure(configuration, self.leader_id())

    # Messages out

    def _post(self, peer: NodeID, message: wire.Message) -> None:
        self._outgoing.append((peer, message))

    def library_sends(self, peer: NodeID, message: dict[str, Any]) -> None:
        """The library's messages (dicts of anything, hence Any) in our words; its answers to AppendEntries are the guard's to give."""
        match message["type"]:
            case "request_vote":
                last_index, last_term = message["last_log_index"], message["last_log_term"]
                self._post(peer, wire.Vote(message["term"], last_index, last_term, self._forced_campaign))
            case "response_vote":
                self._vote_granted = True
                self._post(peer, wire.VoteReply(message["term"], True))
            case "next_node_idx" if self._muted:
                pass
            case other:
                raise AssertionError(f"pysyncobj sends {other}")
