"""Readers share quorum rounds, and no reader rides on a round that began before it came."""

from __future__ import annotations

import asyncio
import gc

import pytest

from manager.consensus.inprocess import InProcessConsensus
from manager.consensus.port import NoQuorumError
from manager.control.barrier import ReadBarrier


class SlowRounds(InProcessConsensus):
    """A log whose quorum rounds end when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[asyncio.Future[int]] = []

    async def read_barrier(self, *, timeout_s: float = 20.0) -> int:
        self.rounds.append(asyncio.get_running_loop().create_future())
        return await self.rounds[-1]


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_readers_that_come_during_a_round_share_the_next() -> None:
    consensus = SlowRounds()
    barrier = ReadBarrier(consensus)
    first = asyncio.ensure_future(barrier.wait(timeout_s=1))
    await turns()
    late = [asyncio.ensure_future(barrier.wait(timeout_s=1)) for _ in range(100)]
    await turns()
    assert len(consensus.rounds) == 1
    consensus.rounds[0].set_result(1)
    await turns()
    assert first.done()
    assert not any(waiter.done() for waiter in late)
    assert len(consensus.rounds) == 2
    later = asyncio.ensure_future(barrier.wait(timeout_s=1))
    await turns()
    consensus.rounds[1].set_result(2)
    await asyncio.gather(*late)
    await turns()
    assert not later.done()
    consensus.rounds[2].set_result(3)
    await later


async def test_a_reader_that_gives_up_does_not_end_the_round_of_others() -> None:
    consensus = SlowRounds()
    barrier = ReadBarrier(consensus)
    gone, stays = (asyncio.ensure_future(barrier.wait(timeout_s=1)) for _ in range(2))
    await turns()
    gone.cancel()
    await turns()
    consensus.rounds[0].set_result(1)
    if len(consensus.rounds) > 1:
        consensus.rounds[1].set_result(1)
    await turns()
    if not stays.done():
        consensus.rounds[-1].set_result(1)
    await stays
    assert gone.cancelled()


async def test_a_round_that_fails_fails_for_its_readers_alone() -> None:
    consensus = SlowRounds()
    barrier = ReadBarrier(consensus)
    first = asyncio.ensure_future(barrier.wait(timeout_s=1))
    await turns()
    second = asyncio.ensure_future(barrier.wait(timeout_s=1))
    await turns()
    consensus.rounds[0].set_exception(NoQuorumError("no majority"))
    with pytest.raises(NoQuorumError):
        await first
    await turns()
    consensus.rounds[1].set_result(2)
    await second
    third = asyncio.ensure_future(barrier.wait(timeout_s=1))
    await turns()
    assert len(consensus.rounds) == 3
    consensus.rounds[2].set_result(3)
    await third


async def test_a_round_that_fails_without_readers_is_nobodys_failure() -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["message"]))
    consensus = SlowRounds()
    barrier = ReadBarrier(consensus)
    readers = [asyncio.ensure_future(barrier.wait(timeout_s=1)) for _ in range(2)]
    await turns()
    readers.append(asyncio.ensure_future(barrier.wait(timeout_s=1)))
    await turns()
    for reader in readers:
        reader.cancel()
    await turns()
    for number in range(2):
        consensus.rounds[number].set_exception(NoQuorumError("not confirmed"))
        await turns()
    consensus.rounds.clear()
    del barrier, readers, reader
    gc.collect()
    await turns()
    assert reported == []
