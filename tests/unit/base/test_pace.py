"""Turns of work that comes in a stream."""

from __future__ import annotations

import asyncio

from base.pace import Pace

PERIOD_S = 0.05


async def test_the_first_turn_waits_for_nothing_and_the_next_for_the_period() -> None:
    loop, pace = asyncio.get_running_loop(), Pace(PERIOD_S)
    assert pace.left_s() <= 0
    began_s = loop.time()
    first = asyncio.create_task(pace.turn())  # noqa: TID251 - it has to end without anything being waited for
    await asyncio.sleep(0)
    assert first.done()
    assert 0 < pace.left_s() <= PERIOD_S
    await pace.turn()
    assert loop.time() - began_s >= PERIOD_S


async def test_a_turn_that_began_by_itself_counts() -> None:
    pace = Pace(PERIOD_S)
    pace.begin()
    assert pace.left_s() > 0
