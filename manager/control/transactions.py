"""How the control API reads and writes the store.

Reads see every write acknowledged before they began (a read barrier, shared by readers that arrive together). Writes
are decided on the leader's state and committed under the store's version checks; a *refusal* is confirmed by a barrier
before it is given, since a leader that was deposed without knowing it yet may refuse what the swarm has long allowed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from manager.consensus.port import Consensus, NotLeaderError
from manager.constants import REQUEST_TIMEOUT_S
from manager.control.barrier import ReadBarrier
from manager.control.errors import ControlError, OutOfSequenceError
from manager.store import ObjectInUseError, SequenceConflictError, Store, View, Working

SPLIT_ATTEMPTS = 5
"""How often a change of many objects is made anew because one of them moved meanwhile."""

R = TypeVar("R")


class Transactions:
    """Reads and writes of one manager's store, as fresh as the swarm's."""

    def __init__(self, store: Store, consensus: Consensus) -> None:
        self._store, self._consensus = store, consensus
        self._barrier = ReadBarrier(consensus)

    @property
    def view(self) -> View:
        """The state as this manager knows it: what was just written is in it."""
        return self._store.view

    async def close(self) -> None:
        """Give up read barriers under way; calls end with CancelledError."""
        await self._barrier.close()

    async def read(self) -> View:
        """The state, at least as new as every write acknowledged before the call. Raises: NotLeaderError."""
        await self._barrier.wait(timeout_s=REQUEST_TIMEOUT_S)
        return self._store.view

    async def write(self, change: Callable[[Working], R], *, split: bool = False) -> R:
        """Commit ``change``; what it refuses is decided again if the state was not the newest.

        Args:
            split: a large transaction may become several entries at its boundaries.
        """
        leader = self._consensus.leader
        if not leader.is_leader:
            raise NotLeaderError(leader.leader_id)
        seen = self._consensus.applied_index
        commit = self._commit_split if split else self._store.update
        try:
            return await commit(change)
        except (ControlError, ObjectInUseError):
            await self._barrier.wait(timeout_s=REQUEST_TIMEOUT_S)
            if self._consensus.applied_index == seen:
                raise
        return await commit(change)

    async def _commit_split(self, change: Callable[[Working], R]) -> R:
        for _ in range(SPLIT_ATTEMPTS):
            working = self._store.begin()
            result = change(working)
            with contextlib.suppress(SequenceConflictError):
                await self._store.commit(working, split=True)
                return result
        raise OutOfSequenceError
