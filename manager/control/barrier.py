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
        if self._running is None:
            shared = self._running = self._begin(None, timeout_s)
        elif self._next is None:
            shared = self._next = self._begin(self._running, timeout_s)
        else:
            shared = self._next
        await asyncio.shield(shared)

    async def close(self) -> None:
        """Give up the rounds under way."""
        await cancel_and_wait(*(task for task in (self._running, self._next) if task is not None))

    def _begin(self, before: asyncio.Task[int] | None, timeout_s: float) -> asyncio.Task[int]:
        task = asyncio.get_running_loop().create_task(self._round(before, timeout_s), name="control.read_barrier")
        # All its readers may have given up when it fails: nobody is left to tell, and asyncio is not to report that.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

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
