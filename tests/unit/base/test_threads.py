"""Threads end before their caller does."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from base.threads import AbortedError, run_abortable
from proto.objects_pb2 import Task
from worker.agent.contents import Contents
from worker.agent.persistence import AssignmentFile


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


class Refusing(ThreadPoolExecutor):
    """The system gives it no thread; as Python's, it keeps what it was given all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.queued: list[Callable[[], object]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # Any: as the class has it
        self.queued.append(lambda: fn(*args, **kwargs))
        raise RuntimeError("can't start new thread")


async def test_without_a_thread_nothing_is_done_now_or_later() -> None:
    done = list[str]()
    refusing = Refusing()
    asyncio.get_running_loop().set_default_executor(refusing)
    with pytest.raises(OSError, match="can't start new thread") as refused:
        await run_abortable(lambda _abort: done.append("written"))
    assert refused.value.errno == errno.EAGAIN
    for work in refusing.queued:
        work()
    assert not done


async def test_assignments_that_find_no_thread_are_written_later(tmp_path: Path) -> None:
    """As on a full disk: the agent goes on."""
    asyncio.get_running_loop().set_default_executor(Refusing())
    file = AssignmentFile(tmp_path, "n1")
    file.replace(Contents(Task(id="t1", node_id="n1")))
    assert not await file.flush()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
    assert await file.flush()
    assert list(tmp_path.iterdir())


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
