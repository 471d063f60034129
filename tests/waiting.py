"""Waiting for what a test can only look at, with a deadline that a slow machine reaches too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 60.0
HOSTS_DEADLINE_S = 120.0


async def until(condition: Callable[[], object], what: str = "a condition", *, deadline_s: float = DEADLINE_S) -> None:
    """Look every few milliseconds, while the event loop goes on. Raises: TimeoutError, which says what was waited for."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {deadline_s:g} s: {what}")
        await asyncio.sleep(0.002)


def wait_until(
    condition: Callable[[], T], what: str, *, deadline_s: float = HOSTS_DEADLINE_S, step_s: float = 0.02
) -> T:
    """Call ``condition`` until it returns something true, and return that; an exception counts as not yet.

    Raises: TimeoutError, which says what was waited for, and the last value or exception.
    """
    end = time.monotonic() + deadline_s
    last: object = None
    while time.monotonic() < end:
        try:
            value = condition()
        except Exception as error:
            last = error
        else:
            if value:
                return value
            last = value
        time.sleep(step_s)
    raise TimeoutError(f"not within {deadline_s:g} s: {what} (last: {last!r})")
