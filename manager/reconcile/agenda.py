"""What the reconcile loop has to look at: what is dirty, and when which thing is due though nothing changes.

It is a memory of where to look, never of what to do: everything in it can be marked again at any time, and a new
leader marks everything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from manager import constants
from manager.model.ordered import Ordered


@dataclass(frozen=True, slots=True)
class NodeKey:
    """A node, and what the tasks on it owe to its state."""

    node_id: str


@dataclass(frozen=True, slots=True)
class SlotKey:
    """One slot of a service: its number, or for a global service the ID of the node."""

    service_id: str
    slot: int | str


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A service as a whole: how many slots, its update, its removal."""

    service_id: str


Key = NodeKey | SlotKey | ServiceKey

_KINDS: tuple[type[Key], ...] = (NodeKey, SlotKey, ServiceKey)


class Agenda:
    """Marks and deadlines. Keys come back in the order nodes, slots, services, each first marked first."""

    def __init__(self) -> None:
        # As ordered sets. A dict's first key is behind all those deleted before it, which a new leader would pay for.
        self._dirty: dict[type[Hashable], OrderedDict[Key, None]] = {kind: OrderedDict() for kind in _KINDS}
        self._deadlines: Ordered[Key, float] = Ordered()
        self._marked_at = float("-inf")

    def __bool__(self) -> bool:
        """Whether anything is dirty."""
        return any(self._dirty.values())

    def mark(self, key: Key) -> None:
        self._dirty[type(key)][key] = None

    def pop(self) -> Key | None:
        """The next thing to look at, no longer marked; None when nothing is."""
        for kind in _KINDS:
            marked = self._dirty[kind]
            if marked:
                return marked.popitem(last=False)[0]
        return None

    def set_deadline(self, key: Key, deadline: float | None) -> None:
        """Look at ``key`` at that time at the latest (seconds since the epoch); replaces what was set before."""
        self._deadlines.set(key, deadline)

    def next_deadline(self) -> float | None:
        """The earliest deadline, or None."""
        first = self._deadlines.first()
        return first[0] if first is not None else None

    def is_due(self, now: float) -> bool:
        """Whether ``mark_due`` would find anything."""
        deadline = self.next_deadline()
        return deadline is not None and (deadline <= now or self._was_set_back(now))

    def mark_due(self, now: float) -> None:
        """Mark everything whose deadline has come; everything that has one, when the clock was set back since."""
        if self._was_set_back(now):
            for key in self._deadlines:
                self.mark(key)
            self._deadlines = Ordered()
        self._marked_at = now
        while (first := self._deadlines.first()) is not None and first[0] <= now:
            self._deadlines.pop()
            self.mark(first[1])

    def _was_set_back(self, now: float) -> bool:
        return now < self._marked_at - constants.CLOCK_SKEW_S_MAX
