"""What one node may ask of the leader, so that a broken or hostile one does not take the loop from the others.

By node ID, which the certificate proves. An agent that does as it should stays far below: one report is under way at
a time, with up to 1000 statuses, and what gathers meanwhile makes the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from base.rate_limit import RateLimit

REFUSAL_DELAY_S = 2.0
"""A call over the budget is answered after that: who asks in a tight loop asks no more often."""

MESSAGE_PAUSE_S = 0.1
"""A session over the budget is not read for that; the sender's window fills up, and it has to wait."""

REPORT_PAUSE_S = 1.0
"""A report over the budget waits, unacknowledged, and its budget is looked at again after that."""

DESCRIPTION_WEIGHT = 250

MESSAGE_SIZE_BYTES = 8 * 1024
"""A larger message of a session counts for as many of this size."""

STATUS_SIZE_BYTES = 512
"""What a status is reckoned to take of the log; a report of longer ones counts for as many more."""

SETS_AT_ONCE_MAX = 4
"""Assignments calls of one node, those included that gave way to a newer one and whose last message nobody reads: gRPC
keeps that message, and has no way to end such a call. An agent has one, and some more on connections that broke."""


class Budgets:
    """Each method takes from a node's budget, and says whether there was enough."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """
        Args:
            monotonic: seconds.
        """
        self._monotonic = monotonic
        self._calls = RateLimit(1000, 200.0)
        self._assignments = RateLimit(20, 1.0)
        self._statuses = RateLimit(20_000, 2_000.0)
        self._messages = RateLimit(1000, 200.0)
        self._sets = Counter[str]()

    def take_call(self, node_id: str) -> bool:
        """One call of any method."""
        return self._calls.take(node_id, self._monotonic())

    def take_assignments(self, node_id: str) -> bool:
        """One complete set of assignments, which costs as much as the node has tasks."""
        return self._assignments.take(node_id, self._monotonic())

    @contextmanager
    def set_under_way(self, node_id: str) -> Iterator[bool]:
        """An Assignments call for as long as it lasts; whether the node may have one more."""
        if self._sets[node_id] >= SETS_AT_ONCE_MAX:
            yield False
            return
        self._sets[node_id] += 1
        try:
            yield True
        finally:
            self._sets[node_id] -= 1
            if not self._sets[node_id]:
                del self._sets[node_id]

    def take_statuses(self, node_id: str, count: int, *, size_bytes: int = 0) -> bool:
        """So many statuses, each of which may end up in the log, and how large they are together; none count as one."""
        weight = max(1, count, size_bytes // STATUS_SIZE_BYTES)
        return self._statuses.take(node_id, self._monotonic(), weight=weight)

    def take_message(self, node_id: str, *, described: bool, size_bytes: int = 0) -> bool:
        """One message of a session; one with a description goes into the log."""
        weight = max(DESCRIPTION_WEIGHT if described else 1, size_bytes // MESSAGE_SIZE_BYTES)
        return self._messages.take(node_id, self._monotonic(), weight=weight)
