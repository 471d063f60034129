"""Whether the raft thread stands still while the rest of the process runs: it is in a call that a disk does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LOOK_S = 0.25
"""How often the owner's loop looks."""


class Standstill:
    """Used on the owner's loop only. Counts looks and no time: a process that was paused as a whole takes one look then.

    Args:
        turns: the thread's count of its turns.
        limit_s: so long without a turn is a standstill.
        told: hears of its begin and its end.
    """

    def __init__(self, turns: Callable[[], int], *, limit_s: float, told: Callable[[bool], None]) -> None:
        self._turns, self._told = turns, told
        self._looks_max = max(2, round(limit_s / LOOK_S))
        self._turn, self._looks = -1, 0
        self._timer: asyncio.TimerHandle | None = None
        self.is_on = False

    def watch(self) -> None:
        """Look from now on."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def end(self) -> None:
        """Look no more: where nobody relies on the thread, it may stand."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._turn, self._looks, self.is_on = -1, 0, False

    def _look(self) -> None:
        turn = self._turns()
        self._looks = self._looks + 1 if turn == self._turn else 0
        self._turn = turn
        self._timer = None
        self.watch()
        if self.is_on != (self._looks >= self._looks_max):
            self.is_on = not self.is_on
            self._told(self.is_on)
