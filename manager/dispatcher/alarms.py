"""Times at which to look at something again, at most one a key. Pure: the clock is the caller's."""

from __future__ import annotations

import heapq


class Alarms:
    """A time that is moved later costs nothing before the earlier one has come: heartbeats do that all day."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        # Of each key its live entry's time, at or before the key's own. Other entries are leftovers.
        self._pushed: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def __contains__(self, key: str) -> bool:
        return key in self._times

    def __len__(self) -> int:
        return len(self._times)

    def get(self, key: str) -> float | None:
        """When the key is due."""
        return self._times.get(key)

    def set(self, key: str, at_s: float) -> None:
        """The key is due then, and not when it was before."""
        self._times[key] = at_s
        if key not in self._pushed or at_s < self._pushed[key]:
            self._push(key, at_s)

    def drop(self, key: str) -> None:
        """The key is not due at all."""
        self._times.pop(key, None)

    def due(self, now: float) -> list[str]:
        """Keys whose time has come, the longest due first; they are forgotten."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            key = self._pop()
            if key is None:
                continue
            at_s = self._times[key]
            if at_s <= now:
                del self._times[key]
                found.append((at_s, key))
            else:
                self._push(key, at_s)
        return [key for _, key in sorted(found)]

    def first_s(self) -> float | None:
        """When to ask ``due`` next, perhaps a little early; None when no key has a time."""
        while self._heap and not self._is_live(*self._heap[0]):
            self._pop()
        return self._heap[0][0] if self._heap else None

    def _is_live(self, at_s: float, key: str) -> bool:
        return key in self._times and self._pushed.get(key) == at_s

    def _push(self, key: str, at_s: float) -> None:
        self._pushed[key] = at_s
        heapq.heappush(self._heap, (at_s, key))

    def _pop(self) -> str | None:
        """Take the earliest entry; its key when it is live."""
        at_s, key = heapq.heappop(self._heap)
        live = self._is_live(at_s, key)
        if self._pushed.get(key) == at_s:
            del self._pushed[key]
        return key if live else None
