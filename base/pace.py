"""Work that comes in a stream is done together, a turn at a time; what comes alone is done at once."""

from __future__ import annotations

import asyncio


class Pace:
    """``turn`` before each piece of work, by one task."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._next_s = float("-inf")

    async def turn(self) -> None:
        """Return at once when the last turn was a period ago, else then: what comes until then belongs to this turn."""
        if (left_s := self.left_s()) > 0:
            await asyncio.sleep(left_s)
        self.begin()

    def left_s(self) -> float:
        """How long until a period has passed since the last turn; not above 0: it has."""
        return self._next_s - asyncio.get_running_loop().time()

    def begin(self) -> None:
        """A turn begins now."""
        self._next_s = asyncio.get_running_loop().time() + self._period_s
