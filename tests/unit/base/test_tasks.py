"""Owned tasks are kept, heard when they fail, and have ended when their owner has."""

from __future__ import annotations

import asyncio
import gc

import pytest
from structlog.testing import capture_logs

from base.tasks import OwnedTasks, cancel_and_wait, unless


class Ended:
    """Work that goes on until it is cancelled, takes ``late`` turns of the loop to end, and says that it did."""

    def __init__(self, late: int = 0, error: Exception | None = None) -> None:
        self.late, self.error, self.ended = late, error, False

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(self.late):
                await asyncio.sleep(0)
            self.ended = True
            if self.error is not None:
                raise self.error


async def fail(text: str) -> None:
    raise ValueError(text)


async def test_a_task_is_kept_while_it_runs_and_let_go_when_it_ends() -> None:
    tasks, go = OwnedTasks(), asyncio.Event()
    done: list[str] = []

    async def work() -> None:
        await go.wait()
        done.append("work")

    tasks.spawn(work(), name="some work")
    await asyncio.sleep(0)
    gc.collect()  # the loop itself holds tasks weakly
    assert len(tasks) == 1
    go.set()
    assert await tasks.wait()
    assert (done, len(tasks)) == (["work"], 0)


async def test_a_failure_is_logged_once_with_the_name_of_the_task() -> None:
    tasks = OwnedTasks()
    with capture_logs() as logs:
        task = tasks.spawn(fail("broken"), name="the weak one")
        await tasks.wait()
        with pytest.raises(ValueError, match="broken"):
            await task
    assert [(line["event"], line["task"], line["reason"]) for line in logs] == [
        ("task.failed", "the weak one", "broken")
    ]


async def test_a_failure_goes_to_the_owner_that_asks_for_it() -> None:
    failures: list[tuple[str, str]] = []
    tasks = OwnedTasks(lambda name, error: failures.append((name, str(error))))
    with capture_logs() as logs:
        tasks.spawn(fail("broken"), name="the weak one")
        tasks.spawn(Ended().run(), name="cancelled")
        await asyncio.sleep(0)
        await tasks.close()
    assert (failures, logs) == ([("the weak one", "broken")], [])


async def test_a_failure_of_an_awaited_task_is_for_those_who_await_it() -> None:
    tasks = OwnedTasks()
    with capture_logs() as logs:
        shared = tasks.spawn(fail("broken"), name="shared", awaited=True)
        for _ in range(2):
            with pytest.raises(ValueError, match="broken"):
                await asyncio.shield(shared)
    assert [line["log_level"] for line in logs] == ["debug"]


async def test_closing_cancels_and_waits_for_the_end() -> None:
    tasks, works = OwnedTasks(), [Ended(late=late) for late in range(4)]
    for work in works:
        tasks.spawn(work.run(), name="work")
    await asyncio.sleep(0)
    await tasks.close()
    assert all(work.ended for work in works)
    assert len(tasks) == 0


async def test_closing_gives_what_is_under_way_its_grace() -> None:
    tasks, slow = OwnedTasks(), Ended()
    done: list[str] = []

    async def quick() -> None:
        await asyncio.sleep(0.01)
        done.append("quick")

    tasks.spawn(quick(), name="quick")
    tasks.spawn(slow.run(), name="slow")
    with capture_logs() as logs:
        await tasks.close(grace_s=0.1)
    assert (done, slow.ended) == (["quick"], True)
    assert [(line["event"], line["task"]) for line in logs] == [("task.cancelled", "slow")]


async def test_closing_ends_what_is_spawned_while_it_waits() -> None:
    tasks, last = OwnedTasks(), Ended()

    async def with_a_last_step() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            tasks.spawn(last.run(), name="last step")
            await asyncio.sleep(0)

    tasks.spawn(with_a_last_step(), name="work")
    await asyncio.sleep(0)
    await tasks.close()
    assert last.ended
    assert len(tasks) == 0


async def test_waiting_ends_with_its_time() -> None:
    tasks = OwnedTasks()
    tasks.spawn(Ended().run(), name="work")
    assert not await tasks.wait(timeout_s=0.01)
    assert len(tasks) == 1
    await tasks.close()
    assert await tasks.wait(timeout_s=0.0)


async def test_work_that_must_end_goes_on_without_its_caller() -> None:
    tasks, go = OwnedTasks(), asyncio.Event()
    done: list[str] = []

    async def work() -> str:
        await go.wait()
        done.append("work")
        return "result"

    caller = asyncio.get_running_loop().create_task(tasks.run_to_end(work(), name="work"))
    await asyncio.sleep(0)
    await cancel_and_wait(caller)
    assert (caller.cancelled(), done, len(tasks)) == (True, [], 1)
    go.set()
    await tasks.wait()
    assert done == ["work"]
    assert await tasks.run_to_end(work(), name="again") == "result"


async def test_a_failure_of_work_that_must_end_is_its_callers() -> None:
    tasks = OwnedTasks()
    with capture_logs() as logs:
        with pytest.raises(ValueError, match="broken"):
            await tasks.run_to_end(fail("broken"), name="work")
        await tasks.close()
    assert [(line["log_level"], line["task"]) for line in logs] == [("debug", "work")]


async def test_a_failure_that_nobody_waits_for_any_more_is_not_reported_by_asyncio() -> None:
    loop, tasks, go = asyncio.get_running_loop(), OwnedTasks(), asyncio.Event()
    reported: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _loop, context: reported.append(context))

    async def work() -> None:
        await go.wait()
        raise ValueError("broken")

    caller = loop.create_task(tasks.run_to_end(work(), name="work"))
    await asyncio.sleep(0)
    await cancel_and_wait(caller)
    go.set()
    await tasks.wait()
    gc.collect()
    assert reported == []


async def test_cancelling_waits_even_when_the_caller_is_cancelled_meanwhile() -> None:
    loop = asyncio.get_running_loop()
    work = Ended(late=5, error=ValueError("on the way out"))
    task = loop.create_task(work.run())
    await asyncio.sleep(0)
    caller = loop.create_task(cancel_and_wait(task))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.ended


async def test_cancelling_what_has_ended_is_nothing() -> None:
    task = asyncio.get_running_loop().create_task(asyncio.sleep(0))
    await task
    await cancel_and_wait(task)
    await cancel_and_wait()
    assert not task.cancelled()


async def test_an_event_cuts_work_short() -> None:
    event, work = asyncio.Event(), Ended(late=3)
    asyncio.get_running_loop().call_later(0.01, event.set)
    await unless(event, work.run())
    assert work.ended


async def test_work_that_is_not_cut_short_gives_its_result_or_error() -> None:
    async def work() -> int:
        return 7

    assert await unless(asyncio.Event(), work()) == 7
    with pytest.raises(ValueError, match="broken"):
        await unless(asyncio.Event(), fail("broken"))


@pytest.mark.parametrize("when", ["after it", "in the same moment"])
async def test_what_work_raises_as_its_caller_is_cancelled_is_not_reported_as_lost(when: str) -> None:
    """A call that is cancelled ends with an error of its own, which nobody waits for any more."""
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))

    async def cancelled() -> None:
        fails = asyncio.Event()

        async def fail_when_told() -> None:
            await fails.wait()
            raise ValueError("broken")

        work = Ended(late=3, error=ValueError("cancelled")).run() if when == "after it" else fail_when_told()
        caller = asyncio.ensure_future(unless(asyncio.Event(), work))
        for _ in range(3):
            await asyncio.sleep(0)
        if when != "after it":
            fails.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait({caller})

    await cancelled()
    gc.collect()
    assert reported == []
