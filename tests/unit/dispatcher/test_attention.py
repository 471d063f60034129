"""A manager's own slowness is no silence of its agents (A3.01)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.dispatcher import attention
from manager.dispatcher.attention import BEHIND_S, LATE_S_MAX, TICK_S, Attention
from manager.dispatcher.heartbeat import HeartbeatBook
from manager.dispatcher.looking import LOOK_S, Answer
from manager.dispatcher.session import AgentSession
from manager.dispatcher.suspicion import NOTICE_PERIODS, Findings, Suspicions
from manager.dispatcher.watching import Lookout, LookTarget, NodeWatch
from tests.waiting import until


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_loop_that_turns_loses_no_time() -> None:
    clock = Clock()
    heard = Attention(clock)
    for _ in range(100):
        assert heard.tick() == 0.0
        clock.now += TICK_S + LATE_S_MAX / 2
    assert heard.lost_s() == 0.0
    assert not heard.is_behind()


def test_time_stands_still_while_the_loop_does() -> None:
    clock = Clock()
    heard = Attention(clock)
    heard.tick()
    clock.now += 60.0
    assert heard.lost_s() == pytest.approx(60.0 - TICK_S - LATE_S_MAX), "before anybody has noticed"
    assert heard.tick() == pytest.approx(60.0 - TICK_S - LATE_S_MAX)
    assert heard.lost_s() == pytest.approx(60.0 - TICK_S - LATE_S_MAX)
    assert heard.is_behind()
    for _ in range(100):
        clock.now += TICK_S
        heard.tick()
    assert not heard.is_behind()
    assert BEHIND_S < 100 * TICK_S


@given(st.lists(st.floats(0, 30), max_size=50))
def test_the_clock_never_goes_back_and_gains_at_most_its_due_in_a_turn(turns_s: list[float]) -> None:
    clock = Clock()
    heard = Attention(clock)
    heard.tick()
    before = clock.now - heard.lost_s()
    for turn_s in turns_s:
        clock.now += turn_s
        after = clock.now - heard.lost_s()
        assert before - 1e-6 <= after <= before + min(turn_s, TICK_S + LATE_S_MAX) + 1e-6
        heard.tick()
        assert clock.now - heard.lost_s() == pytest.approx(after)
        before = after


def test_bytes_that_came_in_count_from_when_they_did() -> None:
    book = HeartbeatBook()
    suspicions = Suspicions(book)
    suspicions.register("n1", 0.0, period_s=5.0)
    suspicions.bytes_came("n1", 5.0)
    assert suspicions.tick(5.0 + NOTICE_PERIODS * 5.0 - 0.1) == Findings()
    suspicions.bytes_came("n1", 4.0)  # of before: no news
    suspicions.bytes_came("nobody", 4.0)
    assert suspicions.tick(19.9).dead == []
    assert suspicions.tick(20.0).dead == ["n1"]


def test_an_agent_that_hangs_is_dead_on_a_manager_that_is_always_late_too() -> None:
    """gRPC answers pings in its stead, every few seconds."""
    suspicions, dead, now = Suspicions(HeartbeatBook()), list[str](), 0.0
    suspicions.register("n1", 0.0, period_s=5.0)
    suspicions.beat("n1", 1.0)
    while not dead and now < 100.0:
        now += 0.5
        suspicions.bytes_came("n1", now)
        dead = suspicions.tick(now).dead
    assert now == 1.0 + 6 * 5.0


class Watched:
    """A watch over one node, on a loop that is the test's to hold."""

    def __init__(self, period_s: float) -> None:
        self.dead: list[str] = []
        self.session = AgentSession("s", "n1", boot_nonce="a", addr="", period_s=period_s)
        lookout = Lookout(look_at=self._look_at, ask_others=self._ask_others, hand_over=self._hand_over, port=1)
        self.watch = NodeWatch({"n1": self.session}, lookout, on_dead=self._on_dead, monotonic=time.monotonic)
        self.watch.register(self.session, grpc_addr="")

    async def _look_at(self, host: str, port: int, *, within_s: float = LOOK_S) -> Answer:
        return Answer.UNABLE

    async def _ask_others(self, hosts: Sequence[LookTarget]) -> dict[str, bool]:
        return {}

    async def _hand_over(self) -> None:
        pass

    async def _on_dead(self, dead: Sequence[str]) -> None:
        self.dead += dead


async def test_nobody_dies_of_a_step_that_holds_the_loop() -> None:
    """Three periods pass in it, and a beat is read behind it, as gRPC would hand it over."""
    watched, period_s = Watched(period_s=0.3), 0.3
    async with asyncio.TaskGroup() as group:
        running = group.create_task(watched.watch.run())
        for _ in range(3):
            time.sleep(4 * period_s)  # noqa: ASYNC251 - holds the loop: that is what is tried
            for _ in range(4):  # turns until what came in is read
                await asyncio.sleep(0)
            watched.watch.beat(watched.session)
            await asyncio.sleep(0.05)
        assert watched.dead == []
        await until(lambda: watched.dead == ["n1"])  # and who says nothing does die
        running.cancel()


async def test_a_loop_that_is_late_again_and_again_declares_nobody_dead_of_it() -> None:
    watched, period_s = Watched(period_s=0.5), 0.5
    async with asyncio.TaskGroup() as group:
        running = group.create_task(watched.watch.run())
        began = time.monotonic()
        while time.monotonic() < began + 4 * period_s:  # nothing is read in all that time
            time.sleep(0.4)  # noqa: ASYNC251
            await asyncio.sleep(0.001)
        assert watched.dead == []
        running.cancel()


def test_what_is_not_held_against_agents_is_shorter_than_a_period() -> None:
    assert attention.TICK_S + attention.LATE_S_MAX < 0.5
