"""Linearizable reads for many readers at the price of one quorum round."""

from __future__ import annotations

import asyncio

from base.tasks import cancel_and_wait
from manager.consensus.port import Consensus


class ReadBarrier:
    """Shares ``Consensus.read_barrier`` between readers.

    A round confirms the reads that arrived *before it began*; who comes while one is under way waits for the next, so
    there are never more than two: one running, one gathering.
    """

    def __init__(self, consensus: Consensus) -> None:
        self._consensus = consensus
        self._running: asyncio.Task[int] | None = None
        self._next: asyncio.Task[int] | None = None

    async def wait(self, *, timeout_s: float) -> None:
        """Return once this member's state holds every write acknowledged before the call.

        Raises:
            NotLeaderError, NoQuorumError: also when no round was finished within ``timeout_s``.
        """
        loop = asyncio.get_running_loop()
        if self._running is None:
            self._running = loop.create_task(self._round(None, timeout_s), name="control.read_barrier")
            shared = self._running
        else:
            if self._next is None:
                self._next = loop.create_task(self._round(self._running, timeout_s), name="control.read_barrier")
            shared = self._next
        await asyncio.shield(shared)

    async def close(self) -> None:
        """Give up the rounds under way."""
        await cancel_and_wait(*(task for task in (self._running, self._next) if task is not None))

    async def _round(self, before: asyncio.Task[int] | None, timeout_s: float) -> int:
        me = asyncio.current_task()
        if before is not None:
            await asyncio.wait([before])
            self._running, self._next = self._next, None
        try:
            return await self._consensus.read_barrier(timeout_s=timeout_s)
        finally:
            if self._running is me and self._next is None:
                self._running = None
