"""Blocking work in a thread that has ended when its caller has."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from base.tasks import wait_to_end

T = TypeVar("T")


class AbortedError(Exception):
    """Raised inside a thread whose caller was cancelled."""


async def run_abortable(work: Callable[[threading.Event], T]) -> T:
    """Run ``work(abort)`` in a thread; when the caller is cancelled, set ``abort`` and wait for the thread's end.

    ``asyncio.to_thread`` alone would leave the thread writing into a directory that the caller already removes.
    """
    abort = threading.Event()
    future = asyncio.ensure_future(asyncio.to_thread(work, abort))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        abort.set()
        await wait_to_end(future)
        raise
