"""Blocking work in a thread that has ended when its caller has."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import TypeVar

from base.tasks import wait_to_end

T = TypeVar("T")


REFUSED = "can't start new thread"
"""What Python's RuntimeError says then; it has no type of its own."""


class AbortedError(Exception):
    """Raised inside a thread whose caller was cancelled."""


async def run_abortable(work: Callable[[threading.Event], T]) -> T:
    """Run ``work(abort)`` in a thread; when the caller is cancelled, set ``abort`` and wait for the thread's end.

    ``asyncio.to_thread`` alone would leave the thread writing into a directory that the caller already removes.

    Raises:
        OSError: EAGAIN where the system gives this process no thread; ``work`` was not begun, and is not.
    """
    abort = threading.Event()
    outcome: Future[T] = Future()

    def run() -> None:
        if outcome.set_running_or_notify_cancel():
            try:
                outcome.set_result(work(abort))
            except BaseException as error:  # the caller's, whatever it is
                outcome.set_exception(error)

    try:
        asyncio.get_running_loop().run_in_executor(None, copy_context().run, run)
    except RuntimeError as error:
        # The executor has queued it all the same, for whichever of its threads is free next.
        if str(error) != REFUSED:
            raise
        if outcome.cancel():
            raise OSError(errno.EAGAIN, f"{REFUSED} for what is written or read") from error
    future = asyncio.wrap_future(outcome)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        abort.set()
        await wait_to_end(future)
        raise
