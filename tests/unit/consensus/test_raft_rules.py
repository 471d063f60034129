"""The rules of the Raft paper, one by one, against the adapter.

Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm (extended version)": sections 5.1 to
5.4, 6, 7 and 8. Pre-vote, transfer and parallel disk writes follow Ongaro's thesis (9.6, 3.10, 10.2.1).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from manager.consensus import wire
from manager.consensus.guard import LogDivergedError
from manager.consensus.outputs import Deposed, Done, Ready, Restore, TakeSnapshot
from manager.consensus.port import Admission, Member, MembershipError, NotLeaderError
from manager.consensus.settings import SnapshotPolicy
from manager.consensus.snapshots import SnapshotHead, encode_head
from tests.unit.consensus.rig import MEMBERSHIP, A, B, C, D, E, Rig, append, command, configuration

DEFAULT = (A, B, C)


def leader(*voters: str, **arguments: object) -> Rig:
    rig = Rig(*(voters or DEFAULT), **arguments)  # type: ignore[arg-type]  # passed on as they are
    rig.connect(*(v for v in (voters or DEFAULT) if v != A))  # type: ignore[arg-type]
    rig.lead()
    return rig


# 5.1 Raft basics


def test_5_1_a_higher_term_in_a_message_is_adopted() -> None:
    rig = Rig(term=3)
    rig.receive(B, append(7, (2, 0)))
    assert rig.core.term() == 7
    assert rig.core.leader_id() == B


def test_5_1_a_leader_that_hears_of_a_higher_term_steps_down() -> None:
    rig = leader()
    rig.receive(B, wire.AppendReply(9, 1, 3, False, False))
    assert not rig.core.is_leading()
    assert rig.core.term() == 9
    assert any(isinstance(output, Deposed) for output in rig.core.outputs)


def test_5_1_a_message_of_a_stale_term_is_refused_and_answered_with_the_term() -> None:
    rig = Rig(term=5)
    rig.receive(B, append(4, (2, 0), 4))
    assert rig.log() == [(1, 0), (2, 0)]
    reply = rig.last(wire.AppendReply, B)
    assert (reply.term, reply.success) == (5, False)
    assert rig.core.leader_id() is None


def test_5_1_acknowledgements_of_an_earlier_term_do_not_count() -> None:
    """pysyncobj finding 3: the library would commit entries that exist nowhere else."""
    rig = leader()
    rig.core.propose(b"0" * 16, b"x")
    rig.core.pump()
    end = rig.core.journal.last_index
    rig.receive(B, wire.AppendReply(rig.core.term() - 1, rig.core.last_seq(), end + 1, True, False))
    assert rig.core.commit_index() == 1


# 5.2 Leader election


def test_5_2_a_follower_that_hears_nothing_asks_for_pre_votes_without_raising_its_term() -> None:
    rig = Rig(term=2)
    rig.connect(B, C)
    rig.advance(2.0)
    assert {message.term for message in rig.take(wire.PreVote)} == {3}
    assert rig.core.term() == 2
    assert not rig.take(wire.Vote)


def test_5_2_heartbeats_prevent_elections() -> None:
    rig = Rig()
    rig.connect(B, C)
    for seq in range(1, 40):
        rig.receive(B, append(1, (2, 0), seq=seq))
        rig.advance(0.1)
    assert not rig.take(wire.PreVote)


def test_5_2_a_candidate_votes_for_itself_durably_before_it_asks() -> None:
    rig = Rig()
    rig.connect(B, C)
    rig.campaign()
    assert [m.term for m in rig.take(wire.Vote)] == [1, 1]
    assert all(rig.durable_at_send)
    rig.restart()
    assert rig.core.term() == 1
    rig.receive(B, wire.Vote(1, 99, 99, False))
    assert not rig.last(wire.VoteReply, B).granted


def test_5_2_one_vote_a_term_first_come_first_served() -> None:
    rig = Rig()
    rig.receive(B, wire.Vote(4, 2, 0, False))
    rig.receive(C, wire.Vote(4, 2, 0, False))
    assert rig.last(wire.VoteReply, B).granted
    assert not rig.last(wire.VoteReply, C).granted


def test_5_2_a_vote_survives_a_power_loss() -> None:
    rig = Rig()
    rig.receive(B, wire.Vote(4, 2, 0, False))
    assert rig.last(wire.VoteReply, B).granted
    assert all(rig.durable_at_send)
    rig.restart()
    rig.receive(C, wire.Vote(4, 2, 0, False))
    assert not rig.last(wire.VoteReply, C).granted


def test_5_2_a_majority_of_different_voters_makes_a_leader() -> None:
    rig = Rig(A, B, C, D, E)
    rig.connect(B, C, D, E)
    rig.campaign()
    rig.receive(B, wire.VoteReply(1, True))
    rig.receive(B, wire.VoteReply(1, True))  # the library counts answers, not voters
    assert not rig.core.is_leading()
    rig.receive(C, wire.VoteReply(1, True))
    assert rig.core.is_leading()


def test_5_2_votes_of_strangers_and_of_other_terms_do_not_count() -> None:
    rig = Rig()
    rig.connect(B, C)
    rig.campaign()
    rig.receive(E, wire.VoteReply(1, True))
    rig.receive(B, wire.VoteReply(0, True))
    assert not rig.core.is_leading()


def test_5_2_a_candidate_follows_the_leader_of_its_term() -> None:
    rig = Rig()
    rig.connect(B, C)
    rig.campaign()
    rig.receive(C, append(1, (2, 0), 1))
    assert rig.core.leader_id() == C
    assert rig.last(wire.AppendReply, C).success


def test_5_2_two_leaders_of_one_term_are_a_protocol_error() -> None:
    rig = leader()
    with pytest.raises(wire.ProtocolError, match="claims to lead"):
        rig.core.receive(B, append(rig.core.term(), (2, 0)))


def test_5_2_election_timeouts_are_spread() -> None:
    rig = Rig()
    timeouts = [rig.core._SyncObj__generateRaftTimeout() for _ in range(50)]
    assert all(0.6 <= timeout <= 1.1 for timeout in timeouts)
    assert len(set(timeouts)) > 40


def test_9_6_a_member_that_hears_its_leader_refuses_pre_votes_and_votes() -> None:
    """pysyncobj finding 4: a vote request of term 50 with an empty log would depose a healthy leader."""
    rig = Rig()
    rig.connect(B, C)
    rig.receive(B, append(1, (2, 0)))
    rig.receive(C, wire.PreVote(50, 1, 99, 49))
    assert not rig.last(wire.PreVoteReply, C).granted
    rig.receive(C, wire.Vote(50, 99, 49, False))
    assert not rig.last(wire.VoteReply, C).granted
    assert rig.core.term() == 1
    assert rig.core.leader_id() == B


def test_9_6_a_leader_refuses_too() -> None:
    rig = leader()
    rig.receive(C, wire.Vote(50, 99, 49, False))
    assert rig.core.is_leading()


def test_9_6_a_pre_vote_needs_a_log_as_complete_as_ours() -> None:
    rig = Rig(terms=(1, 2), term=2)
    rig.receive(B, wire.PreVote(3, 1, 9, 1))
    assert not rig.last(wire.PreVoteReply, B).granted
    rig.receive(B, wire.PreVote(3, 2, 4, 2))
    assert rig.last(wire.PreVoteReply, B).granted
    assert rig.core.term() == 2


def test_9_6_a_candidate_behind_in_terms_learns_the_term_from_the_refusal() -> None:
    rig = Rig(term=2)
    rig.connect(B, C)
    rig.advance(2.0)
    rig.receive(B, wire.PreVoteReply(8, rig.last(wire.PreVote).attempt, False, False))
    assert rig.core.term() == 8


def test_6_4_a_leader_without_a_majority_steps_down_after_about_an_election_timeout() -> None:
    """Thesis 6.2, check-quorum; pysyncobj finding 12: the library would wait 30 s."""
    rig = leader()
    rig.acknowledge(B)
    rig.advance(0.5)
    assert rig.core.is_leading()
    rig.advance(rig.timing.check_quorum_s)
    assert not rig.core.is_leading()


# 5.3 Log replication


def test_5_3_an_entry_commits_once_a_majority_stores_it() -> None:
    rig = leader(A, B, C, D, E)
    rig.core.propose(b"0" * 16, b"x")
    rig.core.pump()
    rig.acknowledge(B)
    assert rig.core.commit_index() == 1
    rig.acknowledge(C)
    assert rig.core.commit_index() == rig.core.journal.last_index
    assert rig.applied()[-1][0].endswith(b"x")


def test_5_3_the_leaders_own_copy_is_durable_before_it_counts() -> None:
    rig = leader()
    rig.core.propose(b"0" * 16, b"x")
    rig.core.pump()
    end = rig.core.journal.last_index
    rig.acknowledge(B)
    rig.restart()
    assert rig.core.journal.last_index == end


def test_10_2_1_entries_leave_before_the_leaders_own_sync_but_never_before_its_term_is_durable() -> None:
    rig = leader()
    rig.acknowledge(B)
    rig.clear()
    rig.core.propose(b"0" * 16, b"x")
    rig.core.pump()
    assert any(not durable for durable in rig.durable_at_send)
    assert not rig.core.journal.dirty

    alone = Rig(A)
    alone.core.pump()
    assert alone.core.is_leading()
    alone.acknowledge(B)
    alone.changes.add(1, Member(B, "b:2377"))
    alone.connect(B)
    alone.core.pump()
    assert alone.take(wire.Append, B)
    alone.restart()
    assert alone.core.term() == 1


def test_5_3_a_follower_acknowledges_only_what_is_durable() -> None:
    rig = Rig()
    rig.receive(B, append(1, (2, 0), 1, 1))
    reply = rig.last(wire.AppendReply, B)
    assert (reply.success, reply.next_index) == (True, 5)
    assert all(rig.durable_at_send)
    rig.restart()
    assert rig.log() == [(1, 0), (2, 0), (3, 1), (4, 1)]


def test_5_3_a_gap_is_refused_with_where_to_go_on() -> None:
    rig = Rig()
    rig.receive(B, append(1, (10, 1), 1))
    reply = rig.last(wire.AppendReply, B)
    assert (reply.success, reply.reset, reply.next_index) == (False, True, 3)


def test_5_3_a_conflicting_entry_and_all_after_it_are_deleted() -> None:
    rig = Rig(terms=(1, 1, 2, 2), term=2)
    rig.receive(B, append(3, (4, 1), 3))
    assert rig.log() == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 3)]
    assert rig.last(wire.AppendReply, B).next_index == 6


def test_5_3_a_conflict_at_the_previous_entry_skips_the_whole_term() -> None:
    rig = Rig(terms=(1, 2, 2, 2), term=2)
    rig.receive(B, append(3, (6, 3), 3))
    reply = rig.last(wire.AppendReply, B)
    assert (reply.reset, reply.next_index) == (True, 4)


def test_5_3_an_older_message_removes_nothing() -> None:
    """pysyncobj finding 2: the library cuts behind ``prevLogIdx`` even where nothing conflicts."""
    rig = Rig()
    rig.receive(B, append(1, (2, 0), 1, 1, 1, seq=2))
    rig.receive(B, append(1, (2, 0), 1, seq=1))
    rig.receive(B, append(1, (2, 0), seq=3))
    assert rig.log()[-1] == (5, 1)
    assert rig.last(wire.AppendReply, B).success


def test_5_3_the_commit_index_covers_only_what_the_message_proves() -> None:
    """A tail that the leader has not confirmed must not be committed by its commit index."""
    rig = Rig(terms=(1, 1, 1), term=1)
    rig.receive(B, append(2, (3, 1), commit=5))
    assert rig.core.commit_index() == 3
    assert [index for _, index, _ in rig.applied()] == [2, 3]


def test_5_3_replacing_a_committed_entry_ends_the_member() -> None:
    rig = Rig(terms=(1, 1), term=1)
    rig.receive(B, append(1, (4, 1), commit=4))
    with pytest.raises(LogDivergedError):
        rig.core.receive(C, append(2, (3, 1), 2))


def test_5_3_who_is_no_member_ends_none_by_contradicting_what_is_committed() -> None:
    rig = Rig(terms=(1, 1), term=1)
    rig.receive(B, append(1, (4, 1), commit=4))
    with pytest.raises(wire.ProtocolError, match="d is no member"):
        rig.receive(D, append(2, (3, 1), 2))
    assert rig.log()[-1] == (4, 1)


def test_5_3_a_leader_never_deletes_its_own_entries() -> None:
    rig = leader(terms=(1, 1), term=1)
    assert rig.log()[:4] == [(1, 0), (2, 0), (3, 1), (4, 1)]


def test_5_3_a_follower_far_behind_is_brought_up_after_one_reset() -> None:
    """pysyncobj finding 1: answers to pipelined batches overwrote the back-off, and it never caught up."""
    rig = leader(terms=(1,) * 20, term=1)
    rig.clear()
    for seq in range(1, rig.core.last_seq() + 1):
        rig.receive(B, wire.AppendReply(rig.core.term(), seq, 3, False, True))
    rig.advance(0.2)
    sent = [message for message in rig.take(wire.Append, B) if message.entries]
    assert sent[0].prev_index == 2
    assert len(sent) == 1
    rig.receive(B, wire.AppendReply(rig.core.term(), 1, 3, False, True))  # stale: from before the reset
    rig.advance(0.2)
    assert [message.prev_index for message in rig.take(wire.Append, B) if message.entries] == [2]


def test_5_3_acknowledgements_do_not_resend_what_is_in_flight() -> None:
    rig = leader()
    for number in range(3):
        rig.core.propose(b"%016d" % number, b"x")
        rig.core.pump()
    rig.clear()
    rig.acknowledge(B, 3)
    rig.advance(0.2)
    assert all(not message.entries for message in rig.take(wire.Append, B))


def test_5_3_an_acknowledgement_beyond_the_log_is_a_protocol_error() -> None:
    rig = leader()
    with pytest.raises(wire.ProtocolError):
        rig.core.receive(B, wire.AppendReply(rig.core.term(), 1, 1000, True, False))


def test_5_3_what_was_acknowledged_on_a_stream_of_before_counts_no_more() -> None:
    """Its disk may have been lost meanwhile: the fifth of five would make a majority with a copy that is nowhere."""
    rig = leader(A, B, C, D, E)
    rig.core.propose(b"0" * 16, b"x")
    rig.core.pump()
    rig.acknowledge(B)
    rig.core.disconnected(B)
    rig.connect(B)
    rig.acknowledge(C)
    rig.core.pump()
    assert rig.core.commit_index() == 1
    rig.acknowledge(B)
    rig.core.pump()
    assert rig.core.commit_index() == rig.core.journal.last_index


# 5.4 Safety


def test_5_4_1_a_vote_needs_a_log_as_complete_as_ours() -> None:
    rig = Rig(terms=(1, 2), term=2)
    rig.receive(B, wire.Vote(3, 9, 1, False))
    assert not rig.last(wire.VoteReply, B).granted
    rig.receive(C, wire.Vote(3, 4, 2, False))
    assert rig.last(wire.VoteReply, C).granted


def test_5_4_2_entries_of_earlier_terms_commit_only_with_one_of_this_term() -> None:
    """Figure 8."""
    rig = leader(terms=(1, 1), term=1)
    rig.acknowledge(B, 4)
    rig.acknowledge(C, 4)
    assert rig.core.commit_index() == 1
    rig.acknowledge(B, 5)
    assert rig.core.commit_index() == 5


def test_5_4_3_decisions_start_only_behind_the_entries_of_earlier_terms() -> None:
    rig = leader(terms=(1, 1), term=1)
    assert not any(isinstance(output, Ready) for output in rig.core.outputs)
    rig.acknowledge(B)
    kinds = [type(output).__name__ for output in rig.core.outputs]
    assert kinds.index("Ready") > kinds.index("Apply")


# 6 Cluster membership changes


def test_6_a_configuration_is_in_force_when_it_is_in_the_log() -> None:
    rig = Rig()
    message = wire.Append(1, 1, 1, 2, 0, [(1, MEMBERSHIP + configuration(A, B, C, D).encode())])
    rig.receive(B, message)
    assert rig.core.configurations.current.voters == {A, B, C, D}
    rig.restart()
    assert rig.core.configurations.current.voters == {A, B, C, D}


def test_6_a_configuration_that_is_cut_off_is_no_longer_in_force() -> None:
    rig = Rig()
    rig.receive(B, wire.Append(1, 1, 1, 2, 0, [(1, MEMBERSHIP + configuration(A, B, C, D).encode())]))
    rig.receive(C, append(2, (2, 0), 2))
    assert rig.core.configurations.current.voters == {A, B, C}
    assert D not in {node.id for node in rig.core._SyncObj__otherNodes}


def test_6_one_change_at_a_time_and_none_before_the_no_op() -> None:
    rig = leader()
    rig.changes.add(1, Member(D, "d:2377"))
    rig.changes.add(2, Member(E, "e:2377"))
    rig.core.pump()
    assert len(rig.core.configurations.current.members) == 3
    rig.acknowledge(B)
    assert rig.core.configurations.current.learners == {D}
    rig.core.pump()
    assert rig.core.configurations.current.learners == {D}
    rig.acknowledge(B)
    assert rig.core.configurations.current.learners == {D, E}


def test_6_a_learner_counts_in_no_majority_and_does_not_campaign() -> None:
    rig = leader()
    rig.acknowledge(B)
    rig.changes.add(1, Member(D, "d:2377"))
    rig.core.pump()
    rig.connect(D)
    before = rig.core.commit_index()
    rig.acknowledge(D)
    assert rig.core.commit_index() == before

    learner = Rig(B, C)
    learner.connect(B, C)
    learner.advance(5.0)
    assert not learner.take(wire.PreVote)


def test_6_a_learner_votes_once_it_has_caught_up() -> None:
    rig = leader()
    rig.acknowledge(B)
    rig.acknowledge(C)
    rig.changes.add(1, Member(D, "d:2377"))
    rig.core.pump()
    rig.acknowledge(B)
    rig.connect(D)
    rig.acknowledge(D, rig.core.journal.last_index - 1)  # not the configuration that adds it
    rig.core.pump()
    assert rig.core.configurations.current.learners == {D}
    rig.acknowledge(D)
    rig.core.pump()
    assert rig.core.configurations.current.voters == {A, B, C, D}
    rig.acknowledge(B)
    rig.acknowledge(C)
    assert Done(1) in rig.core.outputs


def test_6_a_removal_ends_the_addition_that_waits_and_neither_undoes_the_other() -> None:
    rig = leader()
    rig.acknowledge(B)
    rig.changes.add(1, Member(D, "d:2377"))
    rig.core.pump()
    rig.acknowledge(B)
    assert rig.core.configurations.current.learners == {D}
    rig.changes.remove(2, D)
    rig.changes.add(3, Member(D, "d:2377"))  # asked for after the removal, so it comes after it
    before = rig.core.journal.last_index
    for _ in range(10):
        rig.core.pump()
        rig.acknowledge(B)
    assert rig.core.configurations.current.learners == {D}
    assert rig.core.journal.last_index == before + 2
    done = {output.token: output.error for output in rig.core.outputs if isinstance(output, Done)}
    assert str(done.pop(1)) == f"{D} is being removed"
    assert done == {2: None}


def test_6_a_removal_that_loses_the_quorum_is_refused() -> None:
    rig = leader()
    rig.acknowledge(B)
    rig.core.disconnected(C)
    rig.changes.remove(1, B)
    rig.core.pump()
    done = [output for output in rig.core.outputs if isinstance(output, Done)]
    assert isinstance(done[0].error, MembershipError)
    assert "would lose the quorum" in str(done[0].error)
    rig.clear()
    rig.changes.remove(2, C)
    rig.core.pump()
    assert rig.core.configurations.current.voters == {A, B}


def test_6_a_removed_member_is_told_and_disrupts_nobody() -> None:
    rig = leader()
    rig.acknowledge(B)
    rig.changes.remove(1, C)
    rig.core.pump()
    rig.acknowledge(B)
    rig.receive(C, wire.PreVote(9, 1, 99, 9))
    reply = rig.last(wire.PreVoteReply, C)
    assert (reply.granted, reply.removed) == (False, True)
    assert rig.core.is_leading()


def test_6_a_learner_that_was_removed_asks_and_is_told() -> None:
    rig = Rig(B, C)
    for index, change in ((2, configuration(B, C, learners=(A,))), (3, configuration(B, C))):
        rig.receive(B, wire.Append(1, index, index, index, min(1, index - 2), [(1, MEMBERSHIP + change.encode())]))
    rig.advance(3.0)
    ask = rig.last(wire.PreVote, B)
    removed: list[bool] = []
    rig.core.on_removed = lambda: removed.append(True)
    rig.receive(B, wire.PreVoteReply(1, ask.attempt, True, False))
    rig.advance(3.0)
    assert not rig.take(wire.Vote)
    rig.receive(B, wire.PreVoteReply(1, ask.attempt, False, True))
    assert removed


def test_5_1_the_refusal_of_an_earlier_term_proves_nothing_to_who_leads_now() -> None:
    rig = Rig(terms=(1, 1), term=5)
    rig.receive(B, append(4, (2, 0)))
    reply = rig.last(wire.AppendReply, B)
    ruler = leader()
    ruler.receive(B, wire.AppendReply(ruler.core.term(), reply.seq, reply.next_index, reply.success, reply.reset))
    ruler.receive(B, wire.AppendReply(ruler.core.term(), 1, 99, False, True))  # a longer log than the leader's
    ruler.receive(C, wire.AppendReply(ruler.core.term(), 1, 0, False, True))
    ruler.advance(0.2)
    assert ruler.core.is_leading()
    assert ruler.core.commit_index() == 1


def test_6_requests_end_when_leadership_does() -> None:
    rig = leader()
    rig.changes.add(7, Member(D, "d:2377"))
    rig.receive(B, wire.AppendReply(9, 1, 3, False, False))
    done = [output for output in rig.core.outputs if isinstance(output, Done)]
    assert isinstance(done[0].error, NotLeaderError)


def test_3_10_a_transfer_waits_until_the_target_has_everything_and_holds_proposals() -> None:
    rig = leader()
    rig.acknowledge(B)
    rig.acknowledge(C, 2)
    rig.core.start_transfer(C, 5.0)
    rig.core.propose(b"0" * 16, b"x")
    rig.core.pump()
    assert not rig.take(wire.TimeoutNow)
    rig.acknowledge(C)
    assert rig.take(wire.TimeoutNow, C)
    assert not rig.applied()[-1][0].endswith(b"x")
    rig.advance(0.3)
    rig.acknowledge(B)
    rig.acknowledge(C)
    rig.now += 5.0
    rig.core.receive(B, wire.AppendReply(rig.core.term(), rig.core.last_seq(), 4, True, False))
    rig.core.pump()  # nobody took over: the leader goes on
    assert rig.core.journal[-1][0].endswith(b"x")


def test_3_10_the_target_campaigns_at_once_and_is_voted_for_in_spite_of_the_leader() -> None:
    rig = Rig()
    rig.connect(B, C)
    rig.receive(B, append(1, (2, 0)))
    rig.receive(B, wire.TimeoutNow(1))
    assert [message.transfer for message in rig.take(wire.Vote)] == [True, True]
    voter = Rig()
    voter.connect(B, C)
    voter.receive(B, append(1, (2, 0)))
    voter.receive(C, wire.Vote(2, 2, 0, True))
    assert voter.last(wire.VoteReply, C).granted


# 7 Log compaction


def snapshot_piece(
    term: int, index: int, entry_term: int, *, number: int = 0, last: bool = True
) -> wire.InstallSnapshot:
    head = SnapshotHead(index, entry_term, configuration(A, B, C), ())
    return wire.InstallSnapshot(
        term, 1, index, number, encode_head(head) if number == 0 else b"", b"state", False, last
    )


def test_7_a_snapshot_replaces_a_log_that_does_not_reach_it() -> None:
    rig = Rig(terms=(1,), term=1)
    rig.receive(B, snapshot_piece(3, 50, 2, last=False))
    assert not rig.last(wire.AppendReply, B).success
    rig.receive(B, snapshot_piece(3, 50, 2, number=1))
    assert rig.last(wire.AppendReply, B).next_index == 51
    assert rig.log() == [(50, 2)]
    assert Restore(50) in rig.core.outputs
    assert all(rig.durable_at_send)
    rig.receive(B, append(3, (50, 2), 3, commit=51))
    assert rig.core.commit_index() == 51
    rig.restart()
    assert rig.state.head is not None
    assert rig.state.head.index == 50
    assert rig.log() == [(50, 2), (51, 3)]


def test_7_a_snapshot_of_what_is_committed_here_removes_nothing() -> None:
    rig = Rig(terms=(1, 1, 1), term=1)
    rig.receive(B, append(1, (5, 1), commit=5))
    rig.receive(B, snapshot_piece(1, 4, 1))
    assert rig.log()[-1] == (5, 1)
    reply = rig.last(wire.AppendReply, B)
    assert (reply.success, reply.next_index) == (True, 5)


def test_7_pieces_that_do_not_fit_start_it_over() -> None:
    rig = Rig()
    rig.receive(B, snapshot_piece(3, 50, 2, last=False))
    rig.receive(B, snapshot_piece(3, 60, 2, number=1))
    assert rig.last(wire.AppendReply, B).reset
    assert rig.state.store.indexes() == []


def test_7_a_leader_sends_its_snapshot_to_who_is_behind_the_logs_start() -> None:
    rig = leader(policy=SnapshotPolicy(interval_entries=5, trailing_entries=1))
    rig.core.disconnected(C)
    for number in range(6):
        rig.core.propose(b"%016d" % number, b"x")
    rig.core.pump()
    rig.acknowledge(B)
    marker = next(output for output in rig.core.outputs if isinstance(output, TakeSnapshot))
    rig.state.store.write(SnapshotHead(marker.index, marker.term, marker.configuration, ()), [b"one", b"two"])
    rig.core.snapshot_written(marker.index, None)
    assert rig.core.journal.first_index == marker.index - 1
    rig.connect(C)
    rig.receive(C, wire.AppendReply(rig.core.term(), rig.core.last_seq(), 3, False, True))
    rig.advance(0.2)
    pieces = rig.take(wire.InstallSnapshot, C)
    assert [piece.data for piece in pieces] == [b"one", b"two"]
    assert pieces[-1].last
    assert pieces[0].index == marker.index


def take_snapshots(rig: Rig) -> list[TakeSnapshot]:
    """What the core asked for since the last call, each written at once."""
    markers = [output for output in rig.core.take_outputs() if isinstance(output, TakeSnapshot)]
    for marker in markers:
        rig.state.store.write(SnapshotHead(marker.index, marker.term, marker.configuration, ()), [b"state"])
        rig.core.snapshot_written(marker.index, None)
    return markers


def propose(rig: Rig, entries: int, size_bytes: int) -> None:
    for number in range(entries):
        rig.core.propose(b"%016d" % number, bytes(size_bytes))
        rig.core.pump()
        rig.acknowledge(B)


def test_7_a_snapshot_is_due_by_the_weight_of_the_log_and_keeps_no_more_of_it() -> None:
    rig = leader(policy=SnapshotPolicy(log_bytes_min=100_000))
    propose(rig, 3, 30_000)
    assert take_snapshots(rig) == []
    propose(rig, 1, 30_000)
    (snapshot,) = take_snapshots(rig)
    behind = rig.core.journal.slice(rig.core.journal.first_index + 1, snapshot.index)
    assert len(behind) == 3  # though C, which is connected, has acknowledged none of them
    propose(rig, 3, 30_000)
    assert take_snapshots(rig) == []  # what was kept behind it is no reason for another one


def test_7_a_restart_counts_what_it_replays() -> None:
    rig = Rig(A, policy=SnapshotPolicy(interval_entries=10))
    rig.core.pump()
    for number in range(7):
        rig.core.propose(b"%016d" % number, b"x")
    rig.core.pump()
    assert take_snapshots(rig) == []
    rig.restart(power=False)
    rig.core.pump()
    rig.core.propose(b"%016d" % 9, b"x")
    rig.core.pump()
    assert len(take_snapshots(rig)) == 1


def test_7_a_member_that_is_sent_a_snapshot_finds_the_entries_behind_it() -> None:
    """Another snapshot while the first is on its way does not send the member back to the beginning."""
    rig = leader(policy=SnapshotPolicy(interval_entries=5, trailing_entries=0))
    rig.core.disconnected(C)
    propose(rig, 6, 10)
    first = take_snapshots(rig)[0]
    rig.connect(C)
    rig.receive(C, wire.AppendReply(rig.core.term(), rig.core.last_seq(), 3, False, True))
    rig.advance(0.2)
    assert rig.last(wire.InstallSnapshot, C).index == first.index
    propose(rig, 12, 10)
    assert take_snapshots(rig)
    assert rig.core.journal.first_index <= first.index


# 8 Client interaction


def test_8_a_read_barrier_needs_answers_of_a_majority_to_what_was_sent_after_it() -> None:
    rig = leader(A, B, C, D, E)
    for peer in (B, C, D, E):
        rig.acknowledge(peer)
    before = rig.core.last_seq()
    rig.core.open_barrier(1)
    rig.core.pump()
    for peer in (B, C, D, E):  # late answers to earlier messages prove nothing
        rig.receive(peer, wire.AppendReply(rig.core.term(), before, 4, True, False))
    assert Done(1) not in rig.core.outputs
    rig.acknowledge(B)
    assert Done(1) not in rig.core.outputs
    rig.acknowledge(C)
    assert Done(1) in rig.core.outputs


def test_8_a_new_leader_reads_only_after_its_no_op() -> None:
    rig = leader()
    rig.core.open_barrier(1)
    rig.core.pump()
    rig.acknowledge(B, 2)
    assert Done(1) not in rig.core.outputs
    rig.acknowledge(B)
    assert Done(1) in rig.core.outputs


def test_8_a_deposed_leader_proves_no_read() -> None:
    rig = leader()
    rig.core.open_barrier(1)
    rig.receive(B, wire.AppendReply(9, 1, 3, False, False))
    done = [output for output in rig.core.outputs if isinstance(output, Done)]
    assert isinstance(done[0].error, NotLeaderError)


def test_8_a_follower_refuses_proposals() -> None:
    rig = Rig()
    rig.receive(B, append(1, (2, 0)))
    rig.core.propose(b"0" * 16, b"x")
    rig.core.pump()
    assert "leader: b" in str(rig.core.outputs[-1])
    assert rig.log() == [(1, 0), (2, 0)]


@pytest.mark.parametrize("term", [2**64 - 1, 2**63, 2**33])
@pytest.mark.parametrize(
    "message",
    [
        lambda term: wire.Append(term, 1, 1, 1, 0, []),
        lambda term: wire.AppendReply(term, 1, 1, False, False),
        lambda term: wire.PreVote(term, 1, 1, 0),
        lambda term: wire.PreVoteReply(term, 1, False, False),
        lambda term: wire.Vote(term, 9, 9, True),
        lambda term: wire.VoteReply(term, False),
        lambda term: wire.InstallSnapshot(term, 1, 9, 0, b"", b"", False, True),
        lambda term: wire.TimeoutNow(term),
    ],
)
def test_one_message_does_not_use_up_the_terms(message: Callable[[int], wire.Message], term: int) -> None:
    rig = Rig(term=2)
    rig.connect(B, C)
    with pytest.raises(wire.ProtocolError):
        rig.receive(B, message(term))
    assert rig.core.term() == 2
    rig.campaign()
    assert rig.core.term() == 3


_MEMBERSHIP_OF_NOBODY = MEMBERSHIP + configuration(learners=(A, B, C)).encode()


@pytest.mark.parametrize(
    "message",
    [
        wire.Append(3, 1, 1, 1, 0, [(4, command(b"x"))]),
        wire.Append(3, 1, 1, 1, 4, []),
        wire.Append(3, 1, 1, 2, 0, [(2, command(b"x")), (1, command(b"x"))]),
        wire.Append(3, 1, 1, 2, 0, [(3, _MEMBERSHIP_OF_NOBODY)]),
        snapshot_piece(3, 50, 4),
        wire.InstallSnapshot(3, 1, 50, 0, encode_head(SnapshotHead(50, 3, configuration(), ())), b"", False, True),
    ],
    ids=["later-term", "later-term-before", "terms-fall", "no-voters", "snapshot-of-later-term", "snapshot-of-nobody"],
)
def test_a_log_that_no_leader_can_have_is_refused_before_it_is_kept(message: wire.Message) -> None:
    rig = Rig(term=2)
    rig.connect(B, C)
    with pytest.raises(wire.ProtocolError):
        rig.receive(B, message)
    assert rig.log() == [(1, 0), (2, 0)]
    rig.receive(C, append(3, (2, 0), 3))  # the leader's is taken
    assert rig.log()[-1] == (3, 3)


# A member with an empty log (docs/design/consensus.md, "Membership")


def _history(first: int, last: int, *, term: int = 5) -> wire.Append:
    """Entries of a log in which this member is a voter, since entry 2."""
    named = MEMBERSHIP + configuration(A, B, C).encode()
    entries = [(term, named if index == 2 else command(b"old")) for index in range(first, last + 1)]
    return wire.Append(term, first, last, first - 1, 0 if first == 2 else term, entries)


def _admitted(index: int = 6) -> Rig:
    rig = Rig()
    rig.begin_anew()
    rig.connect(B, C)
    rig.core.admit(Admission("group", 5, B, index))
    return rig


def test_a_member_that_was_not_admitted_hears_nobody() -> None:
    rig = Rig()
    rig.begin_anew()
    rig.connect(B, C)
    rig.receive(B, _history(2, 4))
    rig.receive(C, wire.Vote(9, 99, 9, True))
    rig.receive(C, wire.PreVote(9, 1, 99, 9))
    assert rig.sent == []
    assert rig.log() == [(1, 0)]


@pytest.mark.parametrize("restarted", [False, True])
def test_nothing_in_a_history_is_acted_on(restarted: bool) -> None:
    """It may have acknowledged more, before it lost its log, than it has now: its vote would elect who lacks that."""
    rig = _admitted()
    rig.receive(B, _history(2, 5))
    if restarted:
        rig.restart()
        rig.connect(B, C)
    rig.clear()
    assert not rig.core.is_voter()
    assert rig.core.configurations.current.group_id == "group"
    rig.advance(60.0)
    rig.advance(60.0)
    rig.receive(C, wire.PreVote(9, 1, 99, 9))
    rig.receive(C, wire.Vote(9, 99, 9, True))
    assert not rig.take(wire.PreVote)
    assert not rig.take(wire.Vote)
    assert [reply.granted for reply in rig.take(wire.PreVoteReply)] == [False]
    assert [reply.granted for reply in rig.take(wire.VoteReply)] == [False]


def test_a_member_whose_log_is_as_far_as_at_its_admission_takes_part() -> None:
    rig = _admitted()
    rig.receive(B, _history(2, 5))
    assert rig.core.configurations.current.members == ()
    rig.receive(B, _history(6, 6))
    assert rig.core.configurations.current == configuration(A, B, C)
    assert rig.core.is_voter()


def test_a_leader_of_before_the_admission_is_not_heard_and_has_no_vote() -> None:
    rig = _admitted()
    rig.receive(C, _history(2, 5, term=4))
    assert rig.log() == [(1, 0)]
    assert rig.last(wire.AppendReply, C).term == 5
    rig.receive(B, _history(2, 6))
    rig.receive(C, wire.Vote(5, 99, 5, True))  # the leader of term 5 has its vote
    assert not rig.last(wire.VoteReply, C).granted


def test_a_superseded_member_neither_leads_nor_votes_nor_acknowledges() -> None:
    rig = leader()
    rig.core.supersede("another")
    rig.core.pump()
    assert any(isinstance(output, Deposed) for output in rig.core.outputs)
    for _ in range(2):
        rig.clear()
        rig.advance(60.0)
        rig.receive(B, append(9, (2, 0), 9))
        rig.receive(B, wire.Vote(9, 99, 9, True))
        rig.receive(B, wire.PreVote(9, 1, 99, 9))
        assert rig.sent == []
        rig.restart()
        rig.connect(B, C)


@pytest.mark.parametrize("silent", [True, False])
def test_a_leader_that_was_replaced_for_its_silence_is_not_reachable(silent: bool) -> None:
    """It was heard within an election timeout, so calls to it would be waited for; one that handed over is there."""
    rig = Rig()
    rig.connect(B, C)
    rig.receive(B, append(2, (2, 0), 2))
    rig.advance(rig.timing.election_timeout_s_min * (1.1 if silent else 0.5))
    assert rig.core.reachable() == {A, B, C}
    rig.receive(C, append(3, (3, 2), 3))
    assert rig.core.reachable() == ({A, C} if silent else {A, B, C})
    rig.receive(B, wire.Ping())
    assert rig.core.reachable() == {A, B, C}


def test_who_takes_over_from_a_silent_leader_does_not_count_it_as_reachable() -> None:
    rig = Rig()
    rig.connect(B, C)
    rig.receive(B, append(2, (2, 0), 2))
    rig.advance(rig.timing.election_timeout_s_min)
    rig.core.heard[B] = rig.now  # by its last ping
    rig.campaign()
    vote = rig.last(wire.Vote)
    rig.receive(C, wire.VoteReply(vote.term, True))
    assert rig.core.is_leading()
    assert B not in rig.core.reachable()


def test_messages_of_unknown_kinds_of_entries_are_refused() -> None:
    rig = Rig()
    with pytest.raises(wire.ProtocolError, match="unknown kind"):
        rig.core.receive(B, wire.Append(1, 1, 1, 2, 0, [(1, b"\x03" + msgspec.msgpack.encode(1))]))


def test_command_helper_is_what_the_core_writes() -> None:
    rig = leader()
    rig.core.propose(b"0123456789abcdef", b"x")
    rig.core.pump()
    assert rig.core.journal[-1][0] == command(b"x")
