"""Which nodes are alive: deadlines of heartbeats, without clock or I/O (features A3.01, A3.02, A3.04, X31).

All times are seconds of one monotonic clock, given by the caller.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from manager.constants import (
    HEARTBEAT_GRACE_FACTOR,
    HEARTBEAT_JITTER_S,
    HEARTBEAT_PERIOD_S,
    REGISTRATIONS_IN_WINDOW_MAX,
    REGISTRATIONS_WINDOW_S,
)

PERIOD_JITTER = HEARTBEAT_JITTER_S / HEARTBEAT_PERIOD_S
"""Share of the period by which it differs from session to session, so that a thousand agents do not beat in step."""

GRACE_PERIODS_BROKEN = 1.0
"""After a connection broke (not: was ended by the agent) and no new session came. A killed daemon is back within a
second or two and an agent whose connection broke tries again at once; so a whole period without it means a dead host.
An agent that ends its session in order (a daemon that is stopped to be started again) keeps the full grace."""

GRACE_S_BROKEN_MIN = 3.0
"""The same, for clusters with a short period: what a killed daemon needs to be back on a busy host."""


def told_period_s(period_s: float, sample: float) -> float:
    """The heartbeat period for one session.

    Args:
        period_s: of the cluster's spec; 0 is the default.
        sample: uniform in 0..1, where the jitter comes from.
    """
    period_s = period_s if period_s > 0 else HEARTBEAT_PERIOD_S
    return period_s * (1 + PERIOD_JITTER * (2 * sample - 1))


@dataclass(slots=True)
class _Entry:
    period_s: float
    deadline_s: float
    registrations: deque[float] = field(default_factory=lambda: deque(maxlen=REGISTRATIONS_IN_WINDOW_MAX))


class HeartbeatBook:
    """Deadlines of every node that is believed alive.

    ``due`` names the nodes whose deadline has passed and forgets their deadlines; who is named and should be asked
    about again (the write failed) is put back with ``expect``.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._watched: set[str] = set()
        # One (deadline, node) at least a watched node, perhaps too early: looked up and pushed again when it comes up.
        self._heap: list[tuple[float, str]] = []

    def expect(self, node_id: str, now: float, *, within_s: float, period_s: float = HEARTBEAT_PERIOD_S) -> None:
        """A sign of life has to come within that time. An earlier promise is replaced.

        Args:
            period_s: of the cluster, for a node that has had no session with this leader yet.
        """
        entry = self._entries.setdefault(node_id, _Entry(period_s, 0.0))
        self._set_deadline(node_id, entry, now + within_s)

    def admit(self, node_id: str, now: float) -> bool:
        """Count one registration; false when the node registers too often (it is not counted then)."""
        entry = self._entries.setdefault(node_id, _Entry(HEARTBEAT_PERIOD_S, 0.0))
        past = entry.registrations
        if len(past) == REGISTRATIONS_IN_WINDOW_MAX and now - past[0] < REGISTRATIONS_WINDOW_S:
            return False
        past.append(now)
        return True

    def register(self, node_id: str, now: float, *, period_s: float) -> None:
        """A session begins, with that period told to the agent."""
        entry = self._entries.setdefault(node_id, _Entry(period_s, 0.0))
        entry.period_s = period_s
        self._set_deadline(node_id, entry, now + HEARTBEAT_GRACE_FACTOR * period_s)

    def beat(self, node_id: str, now: float) -> None:
        """A sign of life; of a node that is not watched it means nothing."""
        if node_id in self._watched:
            entry = self._entries[node_id]
            entry.deadline_s = now + HEARTBEAT_GRACE_FACTOR * entry.period_s

    def broken(self, node_id: str, now: float) -> None:
        """The node's connection broke, or its manager was lost: shorten its time, never lengthen it."""
        if node_id in self._watched:
            entry = self._entries[node_id]
            grace_s = max(GRACE_PERIODS_BROKEN * entry.period_s, GRACE_S_BROKEN_MIN)
            self._set_deadline(node_id, entry, min(entry.deadline_s, now + grace_s))

    def postpone(self, by_s: float) -> None:
        """This manager stood still for so long: nobody could be heard, so nobody was silent."""
        for node_id in self._watched:
            self._entries[node_id].deadline_s += by_s

    def forget(self, node_id: str) -> None:
        """The node was removed."""
        self._watched.discard(node_id)
        self._entries.pop(node_id, None)

    def due(self, now: float) -> list[str]:
        """Nodes whose time is up, the longest dead first; they are watched no longer."""
        dead = []
        while self._heap and self._heap[0][0] <= now:
            _, node_id = heapq.heappop(self._heap)
            if node_id not in self._watched:
                continue
            deadline_s = self._entries[node_id].deadline_s
            if deadline_s <= now:
                self._watched.discard(node_id)
                dead.append(node_id)
            else:
                heapq.heappush(self._heap, (deadline_s, node_id))
        return dead

    def deadline(self) -> float | None:
        """When to call ``due`` next, perhaps a little early; None when nobody is watched."""
        while self._heap and self._heap[0][1] not in self._watched:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _set_deadline(self, node_id: str, entry: _Entry, deadline_s: float) -> None:
        earlier = node_id not in self._watched or deadline_s < entry.deadline_s
        entry.deadline_s = deadline_s
        self._watched.add(node_id)
        if earlier:
            heapq.heappush(self._heap, (deadline_s, node_id))
