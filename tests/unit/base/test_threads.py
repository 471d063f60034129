"""Threads end before their caller does."""

from __future__ import annotations

import asyncio
import threading

import pytest

from base.threads import AbortedError, run_abortable


async def test_cancelled_thread_is_told_and_awaited() -> None:
    started, ended = threading.Event(), threading.Event()

    def work(abort: threading.Event) -> None:
        started.set()
        abort.wait(30)
        ended.set()
        raise AbortedError

    running = asyncio.ensure_future(run_abortable(work))
    await asyncio.to_thread(started.wait, 30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


async def test_a_caller_that_is_cancelled_twice_waits_all_the_same() -> None:
    started, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work(abort: threading.Event) -> None:
        started.set()
        may_end.wait(30)
        ended.set()

    running = asyncio.ensure_future(run_abortable(work))
    await asyncio.to_thread(started.wait, 30)
    for _ in range(3):
        running.cancel()
        await asyncio.sleep(0)
    assert not running.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


async def test_what_the_thread_returns_or_raises_is_the_callers() -> None:
    assert await run_abortable(lambda abort: abort.is_set()) is False
    with pytest.raises(ZeroDivisionError):
        await run_abortable(lambda _: 1 // 0)
