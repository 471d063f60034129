"""Deadlines of nodes (features A3.01 to A3.04)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from manager.constants import HEARTBEAT_PERIOD_S
from manager.dispatcher.dispatcher import HEARTBEAT, request_of
from manager.dispatcher.heartbeat import HeartbeatBook, told_period_s
from proto.dispatcher_pb2 import SessionRequest


@given(sample=st.floats(0, 1))
def test_the_period_differs_by_at_most_a_tenth(sample: float) -> None:
    assert 4.5 <= told_period_s(5.0, sample) <= 5.5
    assert 4.5 <= told_period_s(0.0, sample) <= 5.5


def test_three_periods_of_silence_are_death() -> None:
    book = HeartbeatBook()
    book.register("n1", 0.0, period_s=5.0)
    book.beat("n1", 4.0)
    assert book.due(18.9) == []
    assert book.due(19.0) == ["n1"]
    assert book.due(100.0) == []
    assert book.deadline() is None


def test_a_grant_lengthens_and_never_shortens() -> None:
    book = HeartbeatBook()
    book.register("n1", 0.0, period_s=5.0)
    book.grant("n1", 10.0)
    assert book.due(14.9) == []
    book.grant("n1", 20.0)
    book.grant("n2", 20.0)  # not watched
    assert book.due(19.9) == []
    assert book.due(20.0) == ["n1"]


def test_a_new_leader_waits_longer_and_a_session_ends_that() -> None:
    book = HeartbeatBook()
    book.expect("n1", 0.0, within_s=30.0)
    book.expect("n2", 0.0, within_s=30.0)
    book.register("n1", 29.0, period_s=5.0)
    assert book.due(30.0) == ["n2"]
    assert book.due(44.0) == ["n1"]


def test_only_three_registrations_in_eight_seconds() -> None:
    book = HeartbeatBook()
    assert [book.admit("n1", at) for at in (0.0, 1.0, 2.0, 3.0, 7.9)] == [True, True, True, False, False]
    assert book.admit("n2", 3.0)
    assert book.admit("n1", 8.0)
    assert not book.admit("n1", 8.5)


def test_a_removed_node_is_never_due() -> None:
    book = HeartbeatBook()
    book.register("n1", 0.0, period_s=5.0)
    book.forget("n1")
    assert book.deadline() is None
    assert book.due(1000.0) == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["register", "beat", "grant", "expect", "release", "forget"]),
            st.sampled_from("abc"),
            st.floats(0, 3),
        ),
        max_size=40,
    )
)
def test_nobody_dies_early_and_nobody_is_forgotten(steps: list[tuple[str, str, float]]) -> None:
    """Against the plain rule: one deadline a node, moved by each event."""
    book, now = HeartbeatBook(), 0.0
    deadlines, periods = dict[str, float](), dict[str, float]()
    for what, node_id, delay_s in steps:
        now += delay_s
        dead = book.due(now)
        assert set(dead) == {node for node, deadline_s in deadlines.items() if deadline_s <= now}
        for node in dead:
            del deadlines[node]
        period_s = periods.get(node_id, HEARTBEAT_PERIOD_S)
        match what:
            case "register":
                book.register(node_id, now, period_s=1.0)
                deadlines[node_id], periods[node_id] = now + 3.0, 1.0
            case "beat":
                book.beat(node_id, now)
                if node_id in deadlines:
                    deadlines[node_id] = now + 3.0 * period_s
            case "grant":
                book.grant(node_id, now + 4.0)
                if node_id in deadlines:
                    deadlines[node_id] = max(deadlines[node_id], now + 4.0)
            case "release":
                book.release(node_id)
                deadlines.pop(node_id, None)
            case "expect":
                book.expect(node_id, now, within_s=3.0)
                deadlines[node_id] = now + 3.0
            case _:
                book.forget(node_id)
                deadlines.pop(node_id, None)
                periods.pop(node_id, None)
        early = book.deadline()
        assert (early is None) == (not deadlines)
        assert early is None or early <= min(deadlines.values())


def test_every_message_that_says_nothing_is_one_object() -> None:
    """A thousand agents send two hundred a second."""
    assert request_of(SessionRequest().SerializeToString()) is HEARTBEAT is request_of(b"")
    described = SessionRequest(addr="192.0.2.1")
    assert request_of(described.SerializeToString()) == described
    assert SessionRequest() == HEARTBEAT
