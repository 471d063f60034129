"""What silence means (features A3.01, A3.02): every doubt is a look, and what it finds decides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.constants import HEARTBEAT_GRACE_FACTOR
from manager.dispatcher.heartbeat import HeartbeatBook
from manager.dispatcher.suspicion import KNOWN_FOR_S, LOOK_AGAIN_S, NOTICE_PERIODS, Findings, Look, Suspicions

PERIOD_S, GRACE_S = 5.0, 16.5
EIGHT = [f"n{number}" for number in range(1, 9)]
FULL_S = HEARTBEAT_GRACE_FACTOR * PERIOD_S


def watching(*node_ids: str, known: bool = True) -> Suspicions:
    """Nodes with sessions since time 0, whose hosts are known to answer, or not to."""
    suspicions = Suspicions(HeartbeatBook())
    for node_id in node_ids:
        suspicions.register(node_id, 0.0, period_s=PERIOD_S)
        for _ in range(2):
            suspicions.learned(node_id, 0.0, answers=known)
    return suspicions


def only_look(suspicions: Suspicions, now: float) -> Look:
    found = suspicions.tick(now)
    assert found.dead == []
    (look,) = found.looks
    return look


def close(suspicions: Suspicions, node_id: str, now: float) -> None:
    suspicions.closed(node_id, now, grace_s=GRACE_S)


def go_quiet(suspicions: Suspicions, node_id: str, now: float) -> None:
    suspicions.quiet(node_id, now)


@pytest.mark.parametrize("doubt", [close, go_quiet])
def test_a_known_host_that_is_silent_is_dead_when_the_look_ends(
    doubt: Callable[[Suspicions, str, float], None],
) -> None:
    suspicions = watching("n1", "n2", "n3")
    doubt(suspicions, "n1", 1.0)
    look = only_look(suspicions, 1.0)
    assert look.node_id == "n1"
    assert suspicions.tick(2.9) == Findings()
    suspicions.silent(look, 3.0)
    assert suspicions.tick(3.0).dead == ["n1"]
    assert suspicions.tick(1000.0).dead == ["n2", "n3"]


def test_a_missed_heartbeat_is_a_doubt() -> None:
    suspicions = watching("n1", "n2", "n3")
    for node_id in ("n2", "n3"):
        suspicions.beat(node_id, 4.0)
    assert suspicions.tick(NOTICE_PERIODS * PERIOD_S - 0.1) == Findings()
    look = only_look(suspicions, NOTICE_PERIODS * PERIOD_S)
    suspicions.silent(look, 8.0)
    assert suspicions.tick(8.0).dead == ["n1"]


def test_a_host_that_answers_has_the_full_grace_after_its_session() -> None:
    suspicions = watching("n1")
    close(suspicions, "n1", 1.0)
    now = 1.0
    while now < 1.0 + GRACE_S - 0.1:
        for look in suspicions.tick(now).looks:
            suspicions.answered(look, now)
        now += 0.1
    assert suspicions.tick(1.0 + GRACE_S).dead == ["n1"]


def test_a_host_that_dies_within_its_grace_is_dead_then() -> None:
    suspicions = watching("n1", "n2", "n3")
    close(suspicions, "n1", 1.0)
    suspicions.answered(only_look(suspicions, 1.0), 1.0)
    assert suspicions.tick(1.0 + LOOK_AGAIN_S - 0.1) == Findings()
    again = only_look(suspicions, 1.0 + LOOK_AGAIN_S)
    suspicions.silent(again, 5.0)
    assert suspicions.tick(5.0).dead == ["n1"]


def test_answers_move_no_deadline_of_a_daemon_that_stands_still() -> None:
    suspicions = watching("n1")
    now, dead_s = 0.0, 0.0
    while not dead_s:
        found = suspicions.tick(now)
        for look in found.looks:
            suspicions.answered(look, now)
        dead_s = now if found.dead else 0.0
        now += 0.1
    assert FULL_S <= dead_s <= FULL_S + 0.2


def test_silence_of_a_host_that_never_answered_means_nothing() -> None:
    suspicions = watching("n1", "n2", "n3", known=False)
    close(suspicions, "n1", 1.0)
    for now in (1.0, 5.0, 9.0, 13.0):
        for node_id in ("n2", "n3"):
            suspicions.beat(node_id, now)
        suspicions.silent(only_look(suspicions, now), now + 2.0)
    assert suspicions.tick(1.0 + GRACE_S - 0.1).dead == []
    assert suspicions.tick(1.0 + GRACE_S).dead == ["n1"]


def test_what_was_known_long_ago_is_not_known() -> None:
    suspicions = watching("n1", "n2", "n3")
    later = KNOWN_FOR_S + 1.0
    for node_id in ("n1", "n2", "n3"):
        suspicions.beat(node_id, 14.0)
        suspicions.register(node_id, later, period_s=PERIOD_S)
    close(suspicions, "n1", later)
    suspicions.silent(only_look(suspicions, later), later + 2.0)
    assert suspicions.tick(later + 2.0).dead == []


def test_one_answer_that_did_not_come_in_time_of_peace_forgets_nothing() -> None:
    suspicions = watching("n1", "n2", "n3")
    suspicions.learned("n1", 1.0, answers=False)  # it lost its power just now
    suspicions.quiet("n1", 2.0)
    suspicions.silent(only_look(suspicions, 2.0), 4.0)
    assert suspicions.tick(4.0).dead == ["n1"]


def test_a_session_that_broke_in_silence_gives_no_new_grace() -> None:
    suspicions = watching("n1", known=False)
    suspicions.quiet("n1", 1.0)
    close(suspicions, "n1", 14.0)
    assert suspicions.tick(FULL_S).dead == ["n1"]


def test_a_connection_that_is_heard_again_ends_the_doubt_and_a_new_session_does() -> None:
    suspicions = watching("n1", "n2", "n3")
    suspicions.quiet("n1", 1.0)
    look = only_look(suspicions, 1.0)
    suspicions.heard("n1")
    suspicions.silent(look, 3.0)
    assert suspicions.tick(3.0) == Findings()
    close(suspicions, "n1", 3.0)
    suspicions.heard("n1")  # said of the connection before
    look = only_look(suspicions, 3.0)
    suspicions.silent(look, 5.0)
    suspicions.register("n1", 5.0, period_s=PERIOD_S)
    assert suspicions.tick(5.0) == Findings()


def test_an_old_look_says_nothing_about_a_new_doubt() -> None:
    suspicions = watching("n1", "n2", "n3")
    suspicions.quiet("n1", 1.0)
    old = only_look(suspicions, 1.0)
    suspicions.heard("n1")
    suspicions.quiet("n1", 2.5)
    suspicions.silent(old, 3.0)
    new = only_look(suspicions, 3.0)
    assert new != old
    suspicions.silent(new, 5.0)
    assert suspicions.tick(5.0).dead == ["n1"]


def test_a_host_that_another_manager_reaches_is_not_dead() -> None:
    suspicions = watching("n1", "n2", "n3")
    close(suspicions, "n1", 1.0)
    look = only_look(suspicions, 1.0)
    suspicions.elsewhere(look, answered=True)
    suspicions.silent(look, 3.0)
    assert suspicions.tick(3.0).dead == []
    again = only_look(suspicions, 3.0 + LOOK_AGAIN_S)
    suspicions.silent(again, 7.0)
    assert suspicions.tick(7.0).dead == []
    suspicions.elsewhere(again, answered=False)  # nor the other any more
    assert suspicions.tick(7.0).dead == ["n1"]


def test_a_quarter_of_all_silent_at_once_are_dead_only_if_another_manager_says_so() -> None:
    suspicions = watching(*EIGHT)
    for node_id in ("n1", "n2"):
        suspicions.quiet(node_id, 1.0)
    looks = suspicions.tick(1.0).looks
    for look in looks:
        suspicions.silent(look, 3.0)
    assert suspicions.tick(3.0).dead == []
    suspicions.elsewhere(looks[0], answered=False)
    assert suspicions.tick(3.0).dead == ["n1"]
    for node_id in EIGHT[2:]:
        suspicions.beat(node_id, 14.0)
    assert suspicions.tick(FULL_S).dead == ["n2"]  # nobody was there to ask: the grace holds


def test_less_than_a_quarter_silent_are_dead_hosts() -> None:
    suspicions = watching(*EIGHT, "n9")
    for node_id in ("n1", "n2"):
        suspicions.quiet(node_id, 1.0)
    for look in suspicions.tick(1.0).looks:
        suspicions.silent(look, 3.0)
    assert suspicions.tick(3.0).dead == ["n1", "n2"]


def test_the_silence_of_the_second_is_seen_before_the_first_is_judged() -> None:
    suspicions = watching(*EIGHT)
    suspicions.quiet("n1", 1.0)
    look = only_look(suspicions, 1.0)
    suspicions.quiet("n2", 2.0)
    suspicions.silent(look, 3.0)
    assert suspicions.tick(3.0).dead == []


def test_a_manager_that_is_cut_off_spares_who_others_reach_once_and_gives_the_lead_away() -> None:
    suspicions = watching("n1", "n2")
    now, dead = 1.0, dict[str, float]()
    for node_id in ("n1", "n2"):
        suspicions.quiet(node_id, 1.0)
    cut_off = False
    while len(dead) < 2:
        found = suspicions.tick(now)
        cut_off = cut_off or found.is_cut_off
        dead.update(dict.fromkeys(found.dead, now))
        for look in found.looks:
            suspicions.silent(look, now)
            suspicions.elsewhere(look, answered=True)
        now += 0.5
    assert cut_off
    assert all(2 * FULL_S <= at_s <= 2 * FULL_S + 1.0 for at_s in dead.values())


def test_the_host_of_an_old_leader_is_looked_at_and_others_have_the_longer_grace() -> None:
    suspicions = Suspicions(HeartbeatBook())
    for node_id in ("leader", "w1", "w2"):
        suspicions.expect(node_id, 0.0, within_s=30.0, period_s=PERIOD_S)
    suspicions.lost("leader", 1.5)
    suspicions.silent(only_look(suspicions, 1.5), 3.5)
    assert suspicions.tick(3.5).dead == ["leader"]
    assert suspicions.tick(29.9) == Findings()
    assert suspicions.tick(30.0).dead == ["w1", "w2"]


def test_a_look_that_could_not_be_made_is_made_again_and_proves_nothing() -> None:
    suspicions = watching("n1", "n2", "n3")
    suspicions.quiet("n1", 1.0)
    suspicions.failed(only_look(suspicions, 1.0), 3.0)
    suspicions.silent(only_look(suspicions, 5.0), 7.0)
    assert suspicions.tick(7.0).dead == ["n1"]


def test_a_host_that_answers_no_more_while_it_is_well_is_not_known() -> None:
    suspicions = watching("n1", "n2", "n3")
    for _ in range(2):  # somebody has set up a firewall
        suspicions.learned("n1", 1.0, answers=False)
    close(suspicions, "n1", 2.0)
    suspicions.silent(only_look(suspicions, 2.0), 4.0)
    assert suspicions.tick(4.0).dead == []
    for node_id in ("n2", "n3"):
        suspicions.beat(node_id, 2.0 + GRACE_S)
    assert suspicions.tick(2.0 + GRACE_S).dead == ["n1"]


def test_two_answers_that_did_not_come_with_one_between_forget_nothing() -> None:
    suspicions = watching("n1", "n2", "n3")
    for answers in (False, True, False):
        suspicions.learned("n1", 1.0, answers=answers)
    close(suspicions, "n1", 2.0)
    suspicions.silent(only_look(suspicions, 2.0), 4.0)
    assert suspicions.tick(4.0).dead == ["n1"]


def test_who_is_expected_anew_is_in_no_doubt() -> None:
    suspicions = watching("n1", "n2", "n3")
    suspicions.quiet("n1", 1.0)
    look = only_look(suspicions, 1.0)
    suspicions.expect("n1", 2.0, within_s=30.0)
    suspicions.silent(look, 3.0)
    assert suspicions.tick(3.0) == Findings()


def test_hosts_that_answered_and_fall_silent_together_are_many_as_well() -> None:
    suspicions = watching(*EIGHT)
    for node_id in ("n1", "n2"):
        suspicions.quiet(node_id, 1.0)
    for look in suspicions.tick(1.0).looks:
        suspicions.answered(look, 1.0)
    first, second = suspicions.tick(1.0 + LOOK_AGAIN_S).looks
    suspicions.silent(first, 5.0)
    suspicions.silent(second, 5.0)
    assert suspicions.tick(5.0).dead == ["n1"]  # of the second was not known yet that it is silent, too


def test_whose_doubt_has_ended_is_not_counted_as_silent() -> None:
    suspicions = watching(*EIGHT)
    suspicions.quiet("n1", 1.0)
    suspicions.tick(1.0)
    suspicions.heard("n1")
    suspicions.quiet("n2", 2.0)
    suspicions.silent(only_look(suspicions, 2.0), 4.0)
    assert suspicions.tick(4.0).dead == ["n2"]


def test_who_is_found_dead_as_its_time_is_up_is_told_of_once() -> None:
    suspicions = watching("n1")
    close(suspicions, "n1", 1.0)
    look = only_look(suspicions, 1.0)
    suspicions.silent(look, 1.0 + GRACE_S)
    assert suspicions.tick(1.0 + GRACE_S).dead == ["n1"]


def test_an_answer_elsewhere_that_comes_before_the_verdict_saves() -> None:
    suspicions = watching("n1", "n2", "n3")
    close(suspicions, "n1", 1.0)
    look = only_look(suspicions, 1.0)
    suspicions.silent(look, 3.0)
    suspicions.elsewhere(look, answered=True)
    assert suspicions.tick(3.0).dead == []


def test_a_manager_is_cut_off_for_as_long_as_many_are_reached_by_others_alone() -> None:
    suspicions = watching(*EIGHT)
    for node_id in ("n1", "n2"):
        suspicions.quiet(node_id, 1.0)
    for look in suspicions.tick(1.0).looks:
        suspicions.elsewhere(look, answered=True)
        suspicions.silent(look, 3.0)
    assert suspicions.tick(3.0).is_cut_off
    suspicions.heard("n2")
    assert not suspicions.tick(3.0).is_cut_off


def test_silence_elsewhere_alone_kills_nobody() -> None:
    suspicions = watching("n1", "n2", "n3")
    close(suspicions, "n1", 1.0)
    look = only_look(suspicions, 1.0)
    suspicions.elsewhere(look, answered=False)  # the look from here has not ended
    assert suspicions.tick(1.0).dead == []
    suspicions.answered(look, 2.0)
    suspicions.elsewhere(look, answered=False)
    assert suspicions.tick(2.0).dead == []


def test_silence_that_nobody_else_contradicts_is_no_reason_to_give_the_lead_away() -> None:
    suspicions = watching(*EIGHT)
    for node_id in ("n1", "n2", "n3", "n4"):
        suspicions.quiet(node_id, 1.0)
    looks = suspicions.tick(1.0).looks
    for look in looks:
        suspicions.silent(look, 3.0)
    assert not suspicions.tick(3.0).is_cut_off
    suspicions.elsewhere(looks[0], answered=True)
    assert not suspicions.tick(3.0).is_cut_off
    suspicions.elsewhere(looks[1], answered=True)
    assert suspicions.tick(3.0).is_cut_off
    suspicions.answered(looks[1], 4.0)
    assert not suspicions.tick(4.0).is_cut_off


def test_a_manager_that_is_cut_off_spares_nobody_whom_others_do_not_reach() -> None:
    suspicions = watching("n1", "n2")
    for node_id in ("unheard", "unreached"):
        suspicions.expect(node_id, 0.0, within_s=10.0)
    for node_id in ("n1", "n2", "unreached"):
        suspicions.quiet(node_id, 9.0)
    for look in suspicions.tick(9.0).looks:
        suspicions.silent(look, 10.0)
        suspicions.elsewhere(look, answered=look.node_id != "unreached")
    found = suspicions.tick(10.0)
    assert found.is_cut_off
    assert sorted(found.dead) == ["unheard", "unreached"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["register", "beat", "closed", "quiet", "heard", "lost", "learned", "forget", "bytes_came"]),
        st.sampled_from("abcd"),
        st.floats(0, 4),
        st.sampled_from(["answered", "silent", "failed", "none"]),
        st.sampled_from([None, True, False]),
    ),
    max_size=60,
)


@given(steps=STEPS, answers=st.booleans())
def test_nobody_is_dead_early_without_proof_and_nobody_lives_without_a_word(
    steps: list[tuple[str, str, float, str, bool | None]], answers: bool
) -> None:
    """Against plain rules: within three periods of its last word only a look that was met with silence kills a node;
    twice that later nobody is watched whatever the looks find."""
    suspicions, now = Suspicions(HeartbeatBook()), 0.0
    word_s, ever_answered, silent_since = dict[str, float](), set[str](), dict[str, float]()
    for what, node_id, delay_s, outcome, elsewhere in steps:
        now += delay_s
        watched = word_s.keys()
        match what:
            case "register":
                suspicions.register(node_id, now, period_s=1.0)
                word_s[node_id] = now
                silent_since.pop(node_id, None)
            case "beat":
                suspicions.beat(node_id, now)
                if node_id in watched:
                    word_s[node_id] = now
                    silent_since.pop(node_id, None)
            case "closed":
                suspicions.closed(node_id, now, grace_s=3.0)
            case "quiet":
                suspicions.quiet(node_id, now)
            case "heard":
                suspicions.heard(node_id)
            case "lost":
                suspicions.lost(node_id, now)
                ever_answered.add(node_id)
            case "learned":
                suspicions.learned(node_id, now, answers=answers)
                if answers:
                    ever_answered.add(node_id)
            case "bytes_came":
                suspicions.bytes_came(node_id, now - delay_s)
                if node_id in watched:
                    word_s[node_id] = max(word_s[node_id], now - delay_s)
            case _:
                suspicions.forget(node_id)
                word_s.pop(node_id, None)
                silent_since.pop(node_id, None)
        found = suspicions.tick(now)
        for look in found.looks:
            assert look.node_id in watched
            if outcome == "answered":
                suspicions.answered(look, now)
                ever_answered.add(look.node_id)
                silent_since.pop(look.node_id, None)
            elif outcome == "silent":
                suspicions.silent(look, now)
                silent_since.setdefault(look.node_id, now)
            elif outcome == "failed":
                suspicions.failed(look, now)
            if elsewhere is not None:
                suspicions.elsewhere(look, answered=elsewhere)
        for dead in found.dead:
            if now - word_s.pop(dead) < 3.0:
                assert dead in ever_answered
                assert dead in silent_since
        first_s = suspicions.deadline()
        assert (first_s is None) == (not word_s)
    end_s = now + 6.0 + 3.0
    left = set(word_s)
    while now <= end_s:
        now += 0.5
        found = suspicions.tick(now)
        left -= set(found.dead)
        for look in found.looks:
            suspicions.answered(look, now)
    assert not left
