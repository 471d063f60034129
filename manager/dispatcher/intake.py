"""Writes of nodes by the dispatcher, gathered into few log entries without a timer (feature A3.09).

While one batch is on its way through the log, what comes in waits and makes the next. With nothing under way a write
goes at once; under load batches grow by themselves. A batch is a list of small changes, each of which decides on the
state it finds, so it may be tried again when another writer was faster.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from manager.consensus.port import ConsensusError
from manager.store import Store, StoreError, Working
from manager.store.store import TRANSACTION_OBJECTS_MAX
from proto.objects_pb2 import Node, Task

log = structlog.get_logger(__name__)

CONFLICT_ATTEMPTS_MAX = 10

Change = Callable[[Working], None]
"""Applied to a transaction; quick, total, and harmless when done again."""


def put(working: Working, changed: Node | Task | None) -> None:
    """Write what a decision came to, None being nothing. Each object stands alone: an entry may end behind it."""
    if changed is not None:
        working.update(changed)
        working.boundary()


@dataclass(slots=True)
class _Pending:
    change: Change
    weight: int
    done: asyncio.Future[None]


class Intake:
    """One writer: ``open``, ``run`` as a task, ``stop``; again with the next leadership.

    ``submit`` from anywhere on the same loop.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: deque[_Pending] = deque()
        self._wake = asyncio.Event()
        self._is_open = False

    async def submit(self, change: Change, *, weight: int = 1) -> None:
        """Return once ``change`` is committed.

        Args:
            change: see ``Change``.
            weight: how many objects it may touch; a batch is an entry, or one change that is larger.

        Raises:
            ConsensusError: it was not committed, or nobody knows.
            StoreError: the store refused it.
        """
        if not self._is_open:
            raise WriterStoppedError("this manager does not lead")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(_Pending(change, weight, done))
        self._wake.set()
        await done

    def open(self) -> None:
        """Take writes from now on."""
        self._is_open = True

    def stop(self) -> None:
        """Take none any more, and tell who waits. ``run`` must have ended."""
        self._is_open = False
        self._fail(list(self._queue), WriterStoppedError("leadership ended while the write waited"))
        self._queue.clear()
        self._wake.clear()

    async def run(self) -> None:
        """Write batches until cancelled."""
        while True:
            await self._wake.wait()
            batch = self._take()
            if not batch:
                continue
            try:
                await self._write(batch)
            except asyncio.CancelledError:
                self._fail(batch, WriterStoppedError("leadership ended while the write was on its way"))
                raise

    def _take(self) -> list[_Pending]:
        batch: list[_Pending] = []
        weight = 0
        while self._queue and (not batch or weight + self._queue[0].weight <= TRANSACTION_OBJECTS_MAX):
            pending = self._queue.popleft()
            if pending.done.cancelled():
                continue  # the caller went away, and asks again if it matters
            weight += pending.weight
            batch.append(pending)
        if not self._queue:
            self._wake.clear()
        return batch

    async def _write(self, batch: list[_Pending]) -> None:
        try:
            await self._commit(batch)
        except StoreError as error:
            if len(batch) > 1:  # one of them is to blame: the others shall not suffer for it
                for pending in batch:
                    await self._write([pending])
                return
            self._fail(batch, error)
            return
        except ConsensusError as error:
            self._fail(batch, error)
            return
        for pending in batch:
            if not pending.done.done():
                pending.done.set_result(None)

    def _fail(self, batch: list[_Pending], error: Exception) -> None:
        if batch:
            log.warning("batch.failed", changes=len(batch), reason=str(error))
        for pending in batch:
            if not pending.done.done():
                pending.done.set_exception(error)
                pending.done.exception()  # that its caller is gone by now is no reason for a warning

    async def _commit(self, batch: list[_Pending]) -> None:
        for attempt in range(1, CONFLICT_ATTEMPTS_MAX + 1):
            working = self._store.begin()
            for pending in batch:
                try:
                    pending.change(working)
                except Exception as error:  # of whatever a node said: no leader ends by it, nor the next one
                    log.exception("change.failed")
                    raise ChangeFailedError(f"{type(error).__name__}: {error}") from error
            if not working.size:
                return
            try:
                await self._store.commit(working, split=True)
            except StoreError:  # a conflict as a rule, or an object that was removed just now
                if attempt == CONFLICT_ATTEMPTS_MAX:
                    raise
                continue
            log.debug("batch.written", changes=len(batch), objects=working.size)
            return


class ChangeFailedError(StoreError):
    """A change did not get to its end; nothing of its batch was written."""


class WriterStoppedError(ConsensusError):
    """This manager does not lead any more; what was on its way may be written or not."""
