"""How much of the time this manager could hear its agents. No I/O: the clock is the caller's.

One event loop serves everything. While a step of it takes long, while the process is paused, swapped out or gets no
processor, what agents sent lies unread: then silence is this manager's, and no time of theirs. So heartbeats are
measured with a clock that stands still meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

TICK_S = 0.1
"""How often the loop shows that it turns."""

LATE_S_MAX = 0.1
"""A tick may be so late: a message takes a few turns of the loop to be read, far less than a period."""

STALL_S = 1.0
"""A tick that is later than that is worth a line: the process stood still, or a step took long."""

BEHIND_S = 5.0
"""For so long after it was late a manager does not trust its ears alone (``is_behind``)."""


class Attention:
    """``tick`` it from the loop every ``TICK_S``; ``lost_s`` is what heartbeats are not measured with."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """
        Args:
            monotonic: seconds.
        """
        self._monotonic = monotonic
        self._lost_s = 0.0
        self._late_s = float("-inf")
        self._due_s: float | None = None

    def tick(self) -> float:
        """The loop turns. Returns by how much it was late, beyond what it may be; 0.0 as a rule."""
        now = self._monotonic()
        late_s = 0.0 if self._due_s is None else max(0.0, now - self._due_s)
        if late_s:
            self._lost_s += late_s
            self._late_s = now
        self._due_s = now + TICK_S + LATE_S_MAX
        return late_s

    def lost_s(self) -> float:
        """Seconds since the first tick in which nothing could be heard, up to now."""
        if self._due_s is None:
            return 0.0
        return self._lost_s + max(0.0, self._monotonic() - self._due_s)

    def is_behind(self) -> bool:
        """Whether it was late a moment ago: agents may have said what is not read yet."""
        return self._monotonic() - self._late_s < BEHIND_S
