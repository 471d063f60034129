"""How long to wait before the next try: longer after each failure, up to a bound, spread so that many do not try at once."""

from __future__ import annotations


class Backoff:
    """The delays of one thing that is tried again and again. No clock and no randomness: the caller waits and draws."""

    def __init__(
        self, first_s: float, max_s: float, *, factor: float = 2.0, jitter: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        """
        Args:
            first_s: the first delay, seconds.
            max_s: the longest, jitter included.
            factor: what the next delay is longer by.
            jitter: what a delay is multiplied with at the samples 0 and 1. It does not add up: the next delay follows
                from the plain one.
        """
        self._first_s, self._max_s, self._factor, self._jitter = first_s, max_s, factor, jitter
        self._plain_s = min(first_s, max_s)

    def next_s(self, sample: float = 0.0) -> float:
        """Seconds to wait before the next try.

        Args:
            sample: uniform in 0..1, for those with jitter.
        """
        low, high = self._jitter
        delay_s = min(self._plain_s * (low + (high - low) * sample), self._max_s)
        self._plain_s = min(self._plain_s * self._factor, self._max_s)
        return delay_s

    def reset(self) -> None:
        """It went well: the next trouble begins with short delays again."""
        self._plain_s = min(self._first_s, self._max_s)
