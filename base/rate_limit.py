"""How much each of many may ask for: a bucket each, full at first, refilled at a steady rate."""

from __future__ import annotations

_KEYS_MAX = 4096


class RateLimit:
    """Buckets by key (an address, a node ID). The caller has the clock."""

    def __init__(self, burst: int, rate_s: float) -> None:
        """
        Args:
            burst: what a full bucket holds.
            rate_s: what comes in a second.
        """
        self._burst, self._rate_s = burst, rate_s
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: str, now_s: float, *, weight: int = 1) -> bool:
        """Whether ``key`` may have ``weight`` at ``now_s`` (seconds, monotonic); if so, it has.

        What is more than a bucket holds is had from a full one, and paid for afterwards.
        """
        level = self._level(key, now_s)
        if level < min(weight, self._burst):
            return False
        if key not in self._buckets and len(self._buckets) >= _KEYS_MAX:
            self._forget_fullest(now_s)
        self._buckets[key] = (level - weight, now_s)
        return True

    def _forget_fullest(self, now_s: float) -> None:
        """Half of so many are told apart no longer: those who lack least, as they have a full bucket anew."""
        emptiest = sorted(self._buckets, key=lambda key: self._level(key, now_s))[: _KEYS_MAX // 2]
        self._buckets = {key: self._buckets[key] for key in emptiest}

    def _level(self, key: str, now_s: float) -> float:
        level, since_s = self._buckets.get(key, (float(self._burst), now_s))
        return min(self._burst, level + (now_s - since_s) * self._rate_s)
