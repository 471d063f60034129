"""The logs of several tasks as one, the oldest line first.

Each log comes in its own order; the next line is the oldest of the first ones of all logs. With ``follow`` a log that has
nothing more to say for a moment has told its past: it is not waited for any longer, and its lines go out as they come.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from runtime.types import LogLine

T = TypeVar("T")

AHEAD_LINES_MAX = 64
"""Lines read ahead of each log."""

PAST_TOLD_S = 0.2
"""A log that is followed and silent for as long has told its past."""


class _Log:
    """One log while it is read: ``lines`` are those that wait for their turn."""

    def __init__(self) -> None:
        self.lines: deque[LogLine] = deque()
        self.room = asyncio.Semaphore(AHEAD_LINES_MAX)
        self.ended = self.live = False


async def send_merged(
    logs: Sequence[tuple[T, AsyncIterator[LogLine]]], send: Callable[[T, LogLine], Awaitable[None]], *, follow: bool
) -> None:
    """Send the lines of all logs by time; of the same time, in the order of the logs. Returns when all have ended.

    Raises:
        ConnectionError: ``send`` did; the logs are read no further.
    """
    came = asyncio.Event()
    states = [_Log() for _ in logs]

    async def read(state: _Log, lines: AsyncIterator[LogLine]) -> None:
        try:
            async for line in lines:
                await state.room.acquire()
                state.lines.append(line)
                came.set()
        finally:
            state.ended = True
            came.set()

    gone: ConnectionError | None = None
    async with asyncio.TaskGroup() as group:
        readers = [
            group.create_task(read(state, lines), name="logs.read")
            for state, (_, lines) in zip(states, logs, strict=True)
        ]
        try:
            while await _ready(states, came, follow=follow):
                index = min(
                    (index for index, state in enumerate(states) if state.lines),
                    key=lambda index: (states[index].lines[0].timestamp_ns, index),
                )
                line = states[index].lines.popleft()
                states[index].room.release()
                await send(logs[index][0], line)
        except ConnectionError as error:
            gone = error
            for reader in readers:
                reader.cancel()
    if gone is not None:
        raise gone  # outside the group, which would wrap it


async def _ready(states: Sequence[_Log], came: asyncio.Event, *, follow: bool) -> bool:
    """Wait until it is known which line is next; False when there is none any more."""
    while True:
        awaited = [state for state in states if not (state.lines or state.ended or state.live)]
        some = any(state.lines for state in states)
        if not awaited and some:
            return True
        if not some and all(state.ended for state in states):
            return False
        came.clear()
        try:
            async with asyncio.timeout(PAST_TOLD_S if follow and awaited else None):
                await came.wait()
        except TimeoutError:
            for state in awaited:
                state.live = True
