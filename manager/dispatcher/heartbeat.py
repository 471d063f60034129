"""Until when a node is believed: deadlines of heartbeats, without clock or I/O (features A3.01, A3.02, A3.04).

All times are seconds of one monotonic clock, given by the caller.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from manager.constants import (
    HEARTBEAT_GRACE_FACTOR,
    HEARTBEAT_GRACE_FACTOR_AFTER_LEADER_CHANGE,
    HEARTBEAT_JITTER_S,
    HEARTBEAT_PERIOD_S,
    REGISTRATIONS_IN_WINDOW_MAX,
    REGISTRATIONS_WINDOW_S,
)
from manager.dispatcher.alarms import Alarms

PERIOD_JITTER = HEARTBEAT_JITTER_S / HEARTBEAT_PERIOD_S
"""Share of the period by which it differs from session to session, so that a thousand agents do not beat in step."""


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
    word_s: float
    """When the node said something last, or was first expected to."""
    registrations: deque[float] = field(default_factory=lambda: deque(maxlen=REGISTRATIONS_IN_WINDOW_MAX))


class HeartbeatBook:
    """Deadlines of every node that is believed alive.

    ``due`` names the nodes whose deadline has passed and forgets their deadlines; who is named and should be asked
    about again (the write failed) is put back with ``expect``.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._deadlines = Alarms()

    def __contains__(self, node_id: str) -> bool:
        """Whether the node is watched."""
        return node_id in self._deadlines

    def __len__(self) -> int:
        """How many are watched."""
        return len(self._deadlines)

    def expect(self, node_id: str, now: float, *, within_s: float, period_s: float = HEARTBEAT_PERIOD_S) -> None:
        """A sign of life has to come within that time. An earlier promise is replaced.

        Args:
            period_s: of the cluster, for a node that has had no session with this leader yet.
        """
        self._entries.setdefault(node_id, _Entry(period_s, now)).word_s = now
        self._deadlines.set(node_id, now + within_s)

    def admit(self, node_id: str, now: float) -> bool:
        """Count one registration; false when the node registers too often (it is not counted then)."""
        past = self._entries.setdefault(node_id, _Entry(HEARTBEAT_PERIOD_S, now)).registrations
        if len(past) == REGISTRATIONS_IN_WINDOW_MAX and now - past[0] < REGISTRATIONS_WINDOW_S:
            return False
        past.append(now)
        return True

    def register(self, node_id: str, now: float, *, period_s: float) -> None:
        """A session begins, with that period told to the agent."""
        entry = self._entries.setdefault(node_id, _Entry(period_s, now))
        entry.period_s, entry.word_s = period_s, now
        self._deadlines.set(node_id, now + HEARTBEAT_GRACE_FACTOR * period_s)

    def beat(self, node_id: str, now: float) -> None:
        """A sign of life; of a node that is not watched it means nothing."""
        if node_id in self._deadlines:
            entry = self._entries[node_id]
            entry.word_s = now
            self._deadlines.set(node_id, now + HEARTBEAT_GRACE_FACTOR * entry.period_s)

    def bytes_came(self, node_id: str, at_s: float) -> None:
        """Bytes of a watched node came in then, which may be a word that is not read yet, or gRPC's own alone.

        They count from then, and for no longer than a new leader waits for a word: an agent that hangs goes on to
        answer pings, and a manager that is late now is late all day.
        """
        entry = self._entries[node_id]
        last_s = entry.word_s + HEARTBEAT_GRACE_FACTOR_AFTER_LEADER_CHANGE * entry.period_s
        self.grant(node_id, min(at_s + HEARTBEAT_GRACE_FACTOR * entry.period_s, last_s))

    def grant(self, node_id: str, until_s: float) -> None:
        """The node, if it is watched, has at least until then."""
        deadline_s = self._deadlines.get(node_id)
        if deadline_s is not None and until_s > deadline_s:
            self._deadlines.set(node_id, until_s)

    def period_s(self, node_id: str) -> float:
        """Of the node's session, or the cluster's where it has had none."""
        return self._entries[node_id].period_s

    def release(self, node_id: str) -> None:
        """The node is watched no longer."""
        self._deadlines.drop(node_id)

    def forget(self, node_id: str) -> None:
        """The node was removed."""
        self._deadlines.drop(node_id)
        self._entries.pop(node_id, None)

    def due(self, now: float) -> list[str]:
        """Nodes whose time is up, the longest dead first; they are watched no longer."""
        return self._deadlines.due(now)

    def deadline(self) -> float | None:
        """When to call ``due`` next, perhaps a little early; None when nobody is watched."""
        return self._deadlines.first_s()
