"""Which manager to try next, and when. No I/O: times and samples are given."""

from __future__ import annotations

from collections.abc import Iterable

from base.backoff import Backoff

BACKOFF_S_FIRST = 0.1
BACKOFF_S_MAX = 8.0
TRIES_MAX = 16
"""Of one round, redirects included: managers that send an agent from one to another do not make it spin."""


class ManagerChoice:
    """Goes round the known managers, the leader first; waits longer after each round in vain (A3.05).

    The order of calls: ``next`` for an address and a delay, then ``failed``, with ``opened`` before it if all went well
    for a while.
    """

    def __init__(self, addrs: Iterable[str]) -> None:
        self._known: list[str] = []
        self._round: list[str] = []
        self._backoff = Backoff(BACKOFF_S_FIRST, BACKOFF_S_MAX, jitter=(0.75, 1.25))
        self._redirect = ""
        self._trying = ""
        self._failed_in_round: set[str] = set()
        self._fresh = True
        self.update(addrs)

    @property
    def known(self) -> tuple[str, ...]:
        """Every manager's address, as last told."""
        return tuple(self._known)

    def update(self, addrs: Iterable[str]) -> None:
        """The managers are these, the leader first. An empty list is no news."""
        addrs = [addr for addr in dict.fromkeys(addrs) if addr]
        if addrs and addrs != self._known:
            self._known = addrs
            self._round = [addr for addr in self._round if addr in addrs]

    def next(self, sample: float) -> tuple[str, float]:
        """Whom to try, after how many seconds.

        Args:
            sample: uniform in 0..1, spreads the agents of a cluster.

        Raises:
            LookupError: no manager is known.
        """
        if not self._known:
            raise LookupError("no manager is known")
        if self._redirect:
            self._trying, self._redirect = self._redirect, ""
            return self._trying, 0.0
        delay_s = 0.0
        if not self._round:
            self._round = sorted(self._known, key=lambda addr: addr == self._trying)  # the one that just failed last
            self._failed_in_round.clear()
            if not self._fresh:
                delay_s = self._backoff.next_s(sample)
        self._fresh = False
        self._trying = self._round.pop(0)
        return self._trying, delay_s

    def opened(self) -> None:
        """There was a session that lasted: the next trouble begins with quick tries again."""
        self._backoff.reset()
        self._round, self._fresh = [], True

    def failed(self, *, leader_addr: str = "") -> None:
        """The manager tried last gave no session, or the session ended.

        Args:
            leader_addr: the leader it named, if it did; tried at once, unless it was tried in this round: a follower
                goes on to name a dead leader until there is a new one.
        """
        self._failed_in_round.add(self._trying)
        if leader_addr and leader_addr not in self._failed_in_round and len(self._failed_in_round) < TRIES_MAX:
            self._redirect = leader_addr
            if leader_addr in self._round:
                self._round.remove(leader_addr)
