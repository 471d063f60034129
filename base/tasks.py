"""Background tasks with an owner: named, kept until they end, heard when they fail, ended with what they serve.

A bare ``create_task`` gives a task that nobody holds (the loop keeps a weak reference only), whose exception nobody
sees before the garbage collector does, and that outlives its purpose. Where the tasks of one piece of code begin and
end together, ``asyncio.TaskGroup`` is the better tool; this is for those that come and go while their owner lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

from base.backoff import Backoff

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Any, in ``Task[Any]`` and ``Coroutine[Any, Any, T]``: what a task of a mixed set returns is its caller's, what a
# coroutine yields and is sent is the loop's.


def log_failure(name: str, error: BaseException) -> None:
    """What becomes of a failure that nobody waits for, unless the owner says otherwise."""
    log.error("task.failed", task=name, reason=str(error), exc_info=error)


class OwnedTasks:
    """The background tasks of one owner, on one event loop.

    The owner calls ``close`` when it ends. A task that is spawned later runs all the same, as the last steps of what is
    being closed may need one; ``close`` has then to be called again.
    """

    def __init__(self, on_failure: Callable[[str, BaseException], None] = log_failure) -> None:
        """
        Args:
            on_failure: given the name of a spawned task and what it raised, once a task, as soon as it has ended.
                Being cancelled is no failure.
        """
        self._tasks: set[asyncio.Task[Any]] = set()
        self._on_failure = on_failure

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str, awaited: bool = False) -> asyncio.Task[T]:
        """Start ``work``. The task may be awaited, shielded or cancelled.

        Args:
            awaited: a failure is for those who await the task, and nobody's when they have all gone; otherwise it is
                told to ``on_failure``, whoever awaits it.
        """
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._note if awaited else self._tell)
        return task

    async def run_to_end(self, work: Coroutine[Any, Any, T], *, name: str) -> T:
        """Do ``work``, which goes on when the caller is cancelled: half of it would be nobody's.

        Returns and raises what ``work`` does; what it raises after the caller has gone is nobody's.
        """
        return await asyncio.shield(self.spawn(work, name=name, awaited=True))

    async def wait(self, *, timeout_s: float | None = None) -> bool:
        """Wait until none is under way, those spawned meanwhile included. False: the time was over before."""
        loop = asyncio.get_running_loop()
        deadline_s = None if timeout_s is None else loop.time() + timeout_s
        while self._tasks:
            left_s = None if deadline_s is None else deadline_s - loop.time()
            if left_s is not None and left_s <= 0:
                return False
            await asyncio.wait(self._tasks, timeout=left_s)
        return True

    async def close(self, *, grace_s: float = 0.0) -> None:
        """Wait ``grace_s`` seconds for what is under way, cancel the rest, and return when all have ended.

        Not to be called by one of the tasks themselves, which it would wait for.
        """
        if grace_s:
            await self.wait(timeout_s=grace_s)
            for task in self._tasks:
                log.warning("task.cancelled", task=task.get_name(), waited_s=grace_s)
        while self._tasks:
            await cancel_and_wait(*self._tasks)

    def _tell(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(task.get_name(), error)

    def _note(self, task: asyncio.Task[Any]) -> None:
        """Looked at, so that asyncio does not report it when those who awaited it are gone."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("task.raised", task=task.get_name(), reason=str(error))


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and return when all have ended, even if the caller is cancelled meanwhile (its turn comes then).

    What they raise on the way is dropped: who cancels them has no use for it.
    """
    for task in tasks:
        task.cancel()
    await wait_to_end(*tasks)


async def wait_to_end(*tasks: asyncio.Future[Any]) -> None:
    """Return when all have ended, even if the caller is cancelled meanwhile (its turn comes then).

    What they raise is left with them, and is not reported by asyncio when nobody asks for it.
    """
    pending, interrupted = set(tasks), False
    while pending:
        try:
            _, pending = await asyncio.wait(pending)
        except asyncio.CancelledError:
            interrupted = True
            pending = {task for task in pending if not task.done()}
    for task in tasks:
        if not task.cancelled():
            task.exception()  # so that asyncio does not report it as never retrieved
    if interrupted:
        raise asyncio.CancelledError


async def try_again(attempt: Callable[[], Coroutine[Any, Any, bool]], backoff: Backoff) -> None:
    """Call ``attempt``, which failed before, after growing pauses until it says that it is done."""
    while True:
        await asyncio.sleep(backoff.next_s())
        if await attempt():
            return


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Do ``work``, but cancel it when ``event`` is set first (or is set already); None then.

    Returns when the work has ended either way. What it raises is raised, also while it is being cancelled.
    """
    loop = asyncio.get_running_loop()
    working = loop.create_task(work, name="work that may be cut short")
    cut = loop.create_task(event.wait(), name="cut short")
    try:
        await asyncio.wait({working, cut}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        cut.cancel()
        if not working.done():
            await cancel_and_wait(working)
        elif not working.cancelled():
            working.exception()  # as in ``cancel_and_wait``, if the caller was cancelled in this moment
    return None if working.cancelled() else working.result()
