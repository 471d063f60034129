"""One Raft member: elections, the messages of the peers, leadership. See ``adapter.py`` for how pysyncobj is tied in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from manager.consensus import wire
from manager.consensus.adapter import FOLLOWER, Adapter, Parts
from manager.consensus.configuration import Configuration
from manager.consensus.guard import Extend, Known, LogDivergedError, Missing, check_append
from manager.consensus.outputs import COMMAND_ID_SIZE_BYTES, MEMBERSHIP, NO_OP, REGULAR, Deposed, Done, Ready
from manager.consensus.port import Admission, CorruptStateError, NodeID, NotLeaderError
from manager.consensus.replication import SnapshotReceiver
from manager.consensus.rounds import PreVoteRound, ReadBarriers

log = structlog.get_logger(__name__)

TERM_JUMP_MAX = 2**32
"""A term that is adopted is durable, and told on: one at the end of its 64 bits would be the last of the group."""


class RaftCore(Adapter):
    """A member as a passive object: ``receive``, ``propose``, ``connected``, then ``pump``; outputs in ``outputs``.

    Every method is called on one thread. An exception from ``pump`` (or from ``receive``, other than
    ProtocolError) means that the journal failed or an invariant broke: abandon the member, nothing it would
    have sent has left.
    """

    def __init__(self, parts: Parts) -> None:
        self.heard: dict[NodeID, float] = {}
        self.after_tick: list[Callable[[], None]] = []
        self.on_removed: Callable[[], None] = lambda: None
        self._barriers: ReadBarriers[int] = ReadBarriers()
        self._round = PreVoteRound()
        self._receiver = SnapshotReceiver(parts.store)
        self._voters_counted: set[NodeID] = set()
        self._leader_contact_s = float("-inf")
        self._led_s = float("-inf")
        self._last_leader: NodeID | None = None
        self._leading_term = self._ready_term = 0
        self._transfer_deadline_s = 0.0
        self._transfer_sent = False
        super().__init__(parts)
        self._led_s = self.now()
        if self.configurations.current.voters == {self.node_id}:
            self._SyncObj__raftElectionDeadline = -1.0  # nobody else could lead: no need to wait

    # Driving

    def pump(self) -> None:
        """Do everything that can be done now, then let messages out. Call after any input and at ``deadline``."""
        for _ in range(64):
            last = self.journal.last_index
            self._gate_election()
            self.doTick(0)
            self._expire_election()
            self._drive_transfer()
            for step in self.after_tick:
                step()
            added = self.journal.last_index != last
            if not self.is_leading() or not (added or self.has_commands() or self.backlog()):
                break
            self._SyncObj__newAppendEntriesTime = 0.0  # do not wait for the next period: send what was added
        if self.lease_holds():
            self._led_s = self.now()
        self._note_leadership()
        self._note_commit()
        self.flush()

    def deadline(self) -> float:
        """When to pump again at the latest, on the clock of ``now``."""
        now = self.now()
        if self.is_leading():
            return max(now, self._SyncObj__newAppendEntriesTime)
        if self.is_voter():
            return max(now, self._SyncObj__raftElectionDeadline)
        return now + self.timing.election_timeout_s_max

    def admit(self, admission: Admission) -> None:
        """Belong to this group from now on; durable on return. A member of a group stays in it."""
        if self.configurations.current.group_id:
            return
        self.journal.note_admission(admission.group_id, admission.index)
        if admission.term > self.term():
            # Its leader has this member's vote: should it have voted in this term before its log was removed, it does
            # not do so twice, and a leader of before, who may know nothing of the removal, is not heard.
            self._SyncObj__setCurrentTerm(admission.term, admission.leader_id)
        self.journal.sync()
        self.configurations.admit(admission.group_id, admission.index)
        self._configure()

    def supersede(self, by: str) -> None:
        """A new group was forced from this member's: take no part in the old one any more; durable on return."""
        self.journal.note_superseded(by)
        self.journal.sync()
        self._SyncObj__setState(FOLLOWER)
        self._SyncObj__raftLeader = None

    def is_silent(self) -> bool:
        """Whether it neither hears nor answers: it was not admitted to a group yet, or its group is no more."""
        return not self.configurations.current.group_id or bool(self.journal.superseded_by)

    def forget_barrier(self, token: int) -> None:
        self._barriers.forget(token)

    def open_barrier(self, token: int) -> None:
        """Confirm leadership after this call; ends in ``Done``."""
        self._barriers.open(self._seq + 1, max(self.commit_index(), self._SyncObj__noopIDx or 0), token)
        self._SyncObj__newAppendEntriesTime = 0.0

    def is_ready(self) -> bool:
        """Leads, and its own no-op is committed and handed over."""
        return self.is_leading() and self.handed_index() >= (self._SyncObj__noopIDx or 0)

    def reachable(self) -> frozenset[NodeID]:
        since = self.now() - self.timing.election_timeout_s_max
        peers = {node.id for node in self._SyncObj__connectedNodes}
        return frozenset({self.node_id} | {p for p, heard in self.heard.items() if p in peers and heard >= since})

    def _note_leader(self, leader: NodeID) -> None:
        """One that was replaced because it had gone silent is not counted as heard for what it said before that."""
        old, self._last_leader = self._last_leader, leader
        if old not in (None, leader) and self.now() - self._leader_contact_s >= self.timing.election_timeout_s_min:
            self.heard.pop(old, None)

    def lease_holds(self) -> bool:
        """A leader is alive as far as this member can tell: no reason for an election."""
        if self.is_leading():
            return True
        leader = self._SyncObj__raftLeader
        return (
            leader is not None
            and leader in self._SyncObj__connectedNodes
            and self.now() - self._leader_contact_s < self.timing.election_timeout_s_min
        )

    def leaderless_s(self) -> float:
        """For how long this member has known of no leader that lives."""
        return self.now() - self._led_s

    # Connections

    def connected(self, peer: NodeID) -> None:
        self.heard[peer] = self.now()
        node = self.peer(peer)
        if node in self._SyncObj__raftMatchIndex:
            # It may be another process by now, on a disk that lost what the one before acknowledged.
            self._SyncObj__raftMatchIndex[node] = 0
        self._bridge.connected(node)

    def disconnected(self, peer: NodeID) -> None:
        """A closed connection to the leader is a strong hint of its death: look soon instead of at the timeout."""
        node = self.peer(peer)
        self._bridge.disconnected(node)
        self._sender.cancel(peer)
        if self._SyncObj__raftLeader == node and not self.is_leading():
            soon = self.now() + self.timing.heartbeat_period_s * (0.5 + 3 * self._rng.random())
            self._SyncObj__raftElectionDeadline = min(self._SyncObj__raftElectionDeadline, soon)

    # Messages in

    def receive(self, peer: NodeID, message: wire.Message) -> None:
        """Take in a message of an authenticated manager.

        Raises:
            ProtocolError: no correct member sends this; close the connection.
        """
        if getattr(message, "term", 0) > self.term() + TERM_JUMP_MAX:
            raise wire.ProtocolError(f"{peer} speaks of a term that no elections led to")
        self.heard[peer] = self.now()
        if self.is_silent():
            return
        match message:
            case wire.Append():
                self._receive_append(peer, message)
            case wire.AppendReply():
                self._receive_append_reply(peer, message)
            case wire.PreVote():
                self._receive_pre_vote(peer, message)
            case wire.PreVoteReply():
                self._receive_pre_vote_reply(peer, message)
            case wire.Vote():
                self._receive_vote(peer, message)
            case wire.VoteReply():
                self._receive_vote_reply(peer, message)
            case wire.InstallSnapshot():
                self._receive_snapshot(peer, message)
            case wire.TimeoutNow(term):
                if self.is_voter():
                    self._deliver(peer, {"type": "timeout_now", "term": term})
            case wire.Ping() | wire.Hello():
                pass

    # Any: the library's messages are dicts of anything.
    def _deliver(self, peer: NodeID, message: dict[str, Any]) -> None:
        self._bridge.deliver(self.peer(peer), message)

    def _receive_append(self, peer: NodeID, message: wire.Append) -> None:
        self._check_entries(message)
        if not self._accept_leader(peer, message.term, message.seq):
            return
        match self._checked(peer, message):
            case Missing(cut_from, next_index):
                if cut_from is not None:
                    self._cut(peer, message.term, cut_from)
                self._bookkeeping(peer, message.term, 1)
                self._reply(peer, message.seq, next_index, reset=True)
            case Known(verified, commit_index):
                self._bookkeeping(peer, message.term, commit_index)
                self._reply(peer, message.seq, verified + 1, success=True)
            case Extend(prev_index, prev_term, skip, verified, commit_index):
                entries = [
                    (command, prev_index + 1 + offset, term)
                    for offset, (term, command) in enumerate(message.entries[skip:])
                ]
                self._muted = True
                self._deliver(
                    peer,
                    {
                        "type": "append_entries",
                        "term": message.term,
                        "commit_index": commit_index,
                        "prevLogIdx": prev_index,
                        "prevLogTerm": prev_term,
                        "entries": entries,
                    },
                )
                self._muted = False
                self._reply(peer, message.seq, verified + 1, success=True)

    def _checked(self, peer: NodeID, message: wire.Append) -> Missing | Known | Extend:
        """What the guard says. A contradiction to what is committed ends this member only when a member says it."""
        try:
            return check_append(self.journal, self.commit_index(), message)
        except LogDivergedError as error:
            committed, current = self.configurations.at(self.commit_index()), self.configurations.current
            if committed.find(peer) is None and current.find(peer) is None:
                raise wire.ProtocolError(f"{peer} is no member: {error}") from None
            raise

    @staticmethod
    def _check_entries(message: wire.Append) -> None:
        before = message.prev_term
        for term, command in message.entries:
            if term < before:
                raise wire.ProtocolError(f"entry of term {term} behind one of term {before}")
            before = term
            kind = command[:1]
            if kind == MEMBERSHIP:
                try:
                    voters = Configuration.decode(command[1:]).voters
                except CorruptStateError as error:
                    raise wire.ProtocolError(str(error)) from None
                if not voters:
                    raise wire.ProtocolError("a group without a voter")
            elif kind not in (REGULAR, NO_OP) or (kind == REGULAR and len(command) <= COMMAND_ID_SIZE_BYTES):
                raise wire.ProtocolError("entry of an unknown kind")
        if before > message.term:
            raise wire.ProtocolError(f"entry of term {before} by a leader of term {message.term}")

    def _accept_leader(self, peer: NodeID, term: int, seq: int) -> bool:
        """False (and an answer with our term) if ``peer`` led an earlier term."""
        if term < self.term():
            # Number 0: should the sender lead our term by now, this proves nothing to it.
            self._reply(peer, 0, 1)
            return False
        if term == self.term() and self.is_leading():
            raise wire.ProtocolError(f"{peer} claims to lead term {term}, which this member leads")
        self._note_leader(peer)
        self._leader_contact_s = self.now()
        return True

    def _bookkeeping(self, peer: NodeID, term: int, commit_index: int) -> None:
        """Leader, term, election deadline and commit index, nothing about entries; the library sends no answer."""
        self._deliver(peer, {"type": "append_entries", "term": term, "commit_index": commit_index})

    def _cut(self, peer: NodeID, term: int, index: int) -> None:
        """Let the library cut the log at ``index``: a message that matches just before and brings nothing."""
        prev_term = self.journal.term_at(index - 1)
        message = {"type": "append_entries", "term": term, "commit_index": 1, "entries": []}
        self._muted = True
        self._deliver(peer, {**message, "prevLogIdx": index - 1, "prevLogTerm": prev_term})
        self._muted = False

    def _reply(self, peer: NodeID, seq: int, next_index: int, *, success: bool = False, reset: bool = False) -> None:
        reply = wire.AppendReply(self.term(), seq, next_index, success, reset)
        if success and self._outgoing:
            last_peer, last = self._outgoing[-1]
            if last_peer == peer and isinstance(last, wire.AppendReply) and last.success and last.term == reply.term:
                self._outgoing[-1] = (
                    peer,
                    wire.AppendReply(reply.term, seq, max(next_index, last.next_index), True, False),
                )
                return
        self._outgoing.append((peer, reply))

    def _receive_append_reply(self, peer: NodeID, message: wire.AppendReply) -> None:
        if message.term > self.term():
            self._adopt_term(message.term)
            return
        node = self.peer(peer)
        if message.term < self.term() or not self.is_leading() or node not in self._SyncObj__raftMatchIndex:
            return
        end = self.journal.last_index + 1
        if (message.success and message.next_index > end) or message.seq > self._seq:
            raise wire.ProtocolError(f"acknowledges {message.next_index}, log ends at {end - 1}")
        reset = message.reset and message.seq >= self._reset_floor.get(node, 0)
        before = self._SyncObj__raftNextIndex[node]
        if reset:
            # Answers to what was sent before this point would take us back again and again.
            self._reset_floor[node] = self._seq + 1
        self._deliver(
            peer,
            {
                "type": "next_node_idx",
                "next_node_idx": max(2, min(message.next_index, end)),  # every log holds entry 1
                "reset": reset,
                "success": message.success,
            },
        )
        if not reset:
            # The library goes back to what was acknowledged and would send everything in flight again.
            self._SyncObj__raftNextIndex[node] = max(before, self._SyncObj__raftNextIndex[node])
        self._barriers.acknowledge(peer, message.seq)

    # Elections

    def _gate_election(self) -> None:
        """Hold the library's election back until a majority would vote for this member."""
        now = self.now()
        if self.is_leading():
            return
        if self._SyncObj__raftElectionDeadline >= now:
            self._round.won = False  # a leader was heard in the meantime
            return
        if self.is_voter() and self._SyncObj__transferInProgress:
            self._forced_campaign = True
        elif self.is_voter() and self._round.won:
            self._round.cancel()
        else:
            self._SyncObj__raftElectionDeadline = now + self._SyncObj__generateRaftTimeout()
            if self.is_voter():
                self._start_pre_vote()
            else:
                self._ask_for_membership()
            return
        self._voters_counted = set()

    def _start_pre_vote(self) -> None:
        voters = self.configurations.current.voters
        if self._round.start(self.term() + 1, self.node_id, voters):
            self._SyncObj__raftElectionDeadline = -1.0
            self._gate_election()
            return
        last = self.journal[-1]
        for voter in sorted(voters - {self.node_id}):
            self._post(voter, wire.PreVote(self.term() + 1, self._round.attempt, last[1], last[2]))

    def _ask_for_membership(self) -> None:
        """Once a member, now without a vote and without a leader: a leader's answer tells if it was removed.

        Attempt 0 is no round, so a grant means nothing. One that never was a member yet waits to be added.
        """
        self.belonged = self.belonged or self.configurations.was_member(self.node_id, self.commit_index())
        if self.belonged and not self.is_silent():
            last = self.journal[-1]
            for voter in sorted(self.configurations.current.voters - {self.node_id}):
                self._post(voter, wire.PreVote(self.term() + 1, 0, last[1], last[2]))

    def _expire_election(self) -> None:
        """After a tick: the library campaigned, or could not (nobody connected)."""
        self._forced_campaign = False
        if not self.is_leading() and self._SyncObj__raftElectionDeadline < self.now():
            self._SyncObj__transferInProgress = False
            self._SyncObj__raftElectionDeadline = self.now() + self._SyncObj__generateRaftTimeout()

    def _adopt_term(self, term: int) -> None:
        """A peer knows a later term: whoever led ours leads no longer (Raft, 5.1)."""
        self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__setState(FOLLOWER)
        self._SyncObj__raftLeader = None
        self._SyncObj__raftElectionDeadline = self.now() + self._SyncObj__generateRaftTimeout()

    def _receive_pre_vote(self, peer: NodeID, message: wire.PreVote) -> None:
        last = self.journal[-1]
        current = (message.last_term, message.last_index) >= (last[2], last[1])
        granted = message.term > self.term() and current and not self.lease_holds() and self._may_vote()
        removed = self.is_leading() and self.configurations.at(self.commit_index()).find(peer) is None
        removed = removed and self.configurations.current.find(peer) is None
        self._post(peer, wire.PreVoteReply(self.term(), message.attempt, granted, removed))

    def _may_vote(self) -> bool:
        """Not by a log that is history: it may lack what this member once had and acknowledged."""
        return not self.configurations.is_history

    def _receive_pre_vote_reply(self, peer: NodeID, message: wire.PreVoteReply) -> None:
        if message.removed and message.term >= self.term() and not self.is_leading():
            self.on_removed()
            return
        if message.granted:
            voters = self.configurations.current.voters
            if self._round.grant(peer, message.attempt, self.term(), voters) and not self.is_leading():
                self._SyncObj__raftElectionDeadline = -1.0
        elif message.term > self.term():
            self._adopt_term(message.term)

    def _receive_vote(self, peer: NodeID, message: wire.Vote) -> None:
        self._vote_granted = False
        if self._may_vote() and (message.transfer or not self.lease_holds()):
            was_leading = self.is_leading()
            self._deliver(
                peer,
                {
                    "type": "request_vote",
                    "term": message.term,
                    "last_log_index": message.last_index,
                    "last_log_term": message.last_term,
                },
            )
            if was_leading and not self.is_leading():
                self._SyncObj__raftElectionDeadline = self.now() + self._SyncObj__generateRaftTimeout()
        if not self._vote_granted:
            self._post(peer, wire.VoteReply(self.term(), False))

    def _receive_vote_reply(self, peer: NodeID, message: wire.VoteReply) -> None:
        if message.term > self.term():
            self._adopt_term(message.term)
        elif message.granted and message.term == self.term() and self._counts_first_time(peer):
            self._deliver(peer, {"type": "response_vote", "term": message.term})

    def _counts_first_time(self, peer: NodeID) -> bool:
        """The library counts answers, not voters: each voter's counts once an election."""
        if peer in self._voters_counted or peer not in self.configurations.current.voters:
            return False
        self._voters_counted.add(peer)
        return True

    # Snapshots from the leader

    def _receive_snapshot(self, peer: NodeID, message: wire.InstallSnapshot) -> None:
        if not self._accept_leader(peer, message.term, message.seq):
            return
        self._bookkeeping(peer, message.term, 1)
        if message.index <= self.commit_index():
            # Raft, section 7: what follows it here is kept. Committed, hence equal.
            self._receiver.abandon()
            self._reply(peer, message.seq, message.index + 1, success=True)
            return
        got = self._receiver.receive(peer, message)
        if got is False:
            self._reply(peer, message.seq, self.journal.last_index + 1, reset=True)
        elif got is True:
            self._reply(peer, message.seq, self.journal.last_index + 1)
        else:
            self.snapshot_installed(got)
            self._reply(peer, message.seq, got.index + 1, success=True)

    # Leadership

    def start_transfer(self, to: NodeID | None, timeout_s: float) -> None:
        """Hand leadership to ``to`` or the most caught-up voter; proposals wait meanwhile (Raft thesis, 3.10)."""
        if not self.is_leading() or self.transfer_to is not None:
            return
        candidates = self.configurations.current.voters & self.reachable() - {self.node_id}
        if to is None and candidates:
            to = max(candidates, key=lambda node_id: (self.match_index(node_id), node_id))
        if to is None or to not in candidates:
            return
        self.transfer_to, self._transfer_sent = to, False
        self._transfer_deadline_s = self.now() + timeout_s

    def _drive_transfer(self) -> None:
        if self.transfer_to is None:
            return
        if not self.is_leading() or self.now() >= self._transfer_deadline_s:
            self.transfer_to = None
        elif not self._transfer_sent and self.match_index(self.transfer_to) == self.journal.last_index:
            self._post(self.transfer_to, wire.TimeoutNow(self.term()))
            self._transfer_sent = True

    def _note_leadership(self) -> None:
        """Turn changes of role into outputs, behind what was applied in the old role."""
        term, leading = self.term(), self.is_leading()
        if self._leading_term and (not leading or term != self._leading_term):
            self.outputs.append(Deposed(self._leading_term))
            for token in self._barriers.clear():
                self.outputs.append(Done(token, NotLeaderError(self.leader_id())))
            self._leading_term = 0
            self._reset_floor.clear()
            if not leading:
                self._SyncObj__raftElectionDeadline = max(
                    self._SyncObj__raftElectionDeadline, self.now() + self.timing.election_timeout_s_min
                )
        if not leading:
            return
        self._note_leader(self.node_id)
        self._leading_term = term
        if self._ready_term != term and self.is_ready():
            self._ready_term = term
            self.outputs.append(Ready(term))
        voters = self.configurations.current.voters
        for token in self._barriers.take_proven(self.node_id, voters, self.handed_index()):
            self.outputs.append(Done(token))

    def _note_commit(self) -> None:
        """Followers learn of a commit with the next message; if none is due, soon after."""
        if self.is_leading() and self.commit_index() > self._announced_commit:
            soon = self.now() + self.timing.commit_notice_s
            self._SyncObj__newAppendEntriesTime = min(self._SyncObj__newAppendEntriesTime, soon)
