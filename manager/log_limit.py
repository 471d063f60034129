"""Lines that others can cause: one for each cause and minute, so that no peer fills the disk with our log."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

PERIOD_S = 60.0
_KEYS_MAX = 1024


class LogLimit:
    """Says whether a line is due. On one thread."""

    def __init__(self, period_s: float = PERIOD_S, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._period_s, self._monotonic = period_s, monotonic
        self._told: dict[Hashable, tuple[float, int]] = {}

    def due(self, cause: Hashable) -> int | None:
        """Whether to write a line about ``cause`` now.

        Args:
            cause: what a peer cannot make up at will: its address or ID, not the text of its mistake.

        Returns:
            How many lines were left out since the last one; None: leave this one out as well.
        """
        now_s = self._monotonic()
        told_s, left_out = self._told.get(cause, (float("-inf"), 0))
        if now_s - told_s < self._period_s:
            self._told[cause] = (told_s, left_out + 1)
            return None
        if cause not in self._told and len(self._told) >= _KEYS_MAX:
            self._told = {key: told for key, told in self._told.items() if now_s - told[0] < self._period_s}
            if len(self._told) >= _KEYS_MAX:
                return None  # so many causes at once are a flood, which the others tell of
        self._told[cause] = (now_s, 0)
        return left_out
