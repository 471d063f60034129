"""Shared work and streams into threads: who waits, who is cancelled, what ends when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from runtime.images.work import BytePipe, Listener, SharedWork, run_with_stream


async def test_new_caller_waits_for_the_end_of_cancelled_work() -> None:
    shared: SharedWork[str] = SharedWork()
    log: list[str] = []
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow(publish: Listener) -> str:
        log.append("begin")
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()
            log.append("cleaned")
        return "never"

    async def quick(publish: Listener) -> str:
        log.append("again")
        return "done"

    first = asyncio.ensure_future(shared.run("k", slow))
    await begun.wait()
    first.cancel()
    await asyncio.sleep(0)
    second = asyncio.ensure_future(shared.run("k", quick))
    await asyncio.sleep(0)
    assert log == ["begin"]
    may_end.set()
    assert await second == "done"
    assert log == ["begin", "cleaned", "again"]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_failure_reaches_every_caller_and_is_not_kept() -> None:
    shared: SharedWork[None] = SharedWork()

    async def fail(publish: Listener) -> None:
        publish(("Downloading", 1, 2))
        await asyncio.sleep(0)
        raise ValueError("no")

    seen: list[object] = []
    results = await asyncio.gather(
        *(shared.run("k", fail, listener=seen.append) for _ in range(3)), return_exceptions=True
    )
    assert [str(result) for result in results] == ["no"] * 3
    assert len(seen) == 3

    async def succeed(publish: Listener) -> None:
        return None

    await shared.run("k", succeed)


async def test_stream_reaches_the_thread_whole_and_its_failure_too() -> None:
    async def source(count: int) -> AsyncIterator[bytes]:
        for number in range(count):
            yield bytes([number % 256]) * 100_000
        if count == 3:
            raise ConnectionResetError("client went away")

    def read_all(pipe: BytePipe) -> int:
        total = 0
        while data := pipe.read(70_000):
            total += len(data)
        return total

    assert await run_with_stream(source(100), read_all) == 10_000_000
    with pytest.raises(ConnectionResetError):
        await run_with_stream(source(3), read_all)
    assert await run_with_stream(source(100), lambda pipe: len(pipe.read(10))) == 10
