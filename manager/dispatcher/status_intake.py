"""What agents report goes into the log: all of them together, an entry at a time.

While entries are on their way, what comes in waits and makes the next: with nothing under way a status is written at
once, under load entries grow by themselves, and an agent that is not acknowledged sends nothing. Nothing fails here as
seen by an agent: each update decides on the state it finds, so it is tried again until it is in the log or this manager
leads no more; then its agent sends it to the next leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from manager.consensus.port import ConsensusError
from manager.dispatcher import status
from manager.dispatcher.intake import CONFLICT_ATTEMPTS_MAX, put
from manager.dispatcher.reports import PendingReport, Piece, Reports
from manager.dispatcher.telling import tell_reported
from manager.log_limit import LogLimit
from manager.store import Store, StoreError
from manager.store.store import TRANSACTION_OBJECTS_MAX
from proto.dispatcher_pb2 import TaskStatusUpdate

log = structlog.get_logger(__name__)

ENTRIES_AT_ONCE_MAX = 4
"""Entries that are proposed together when so much waits. Each is built, and applied, in some 5 ms; one at a time they
would wait, each for itself, for whatever else holds the loop."""

RETRY_S = 0.5
"""After the log took nothing: no quorum, or another leader about which this manager is going to hear."""


class StatusIntake:
    """``run`` as a task while this manager leads, then ``stop``; again with the next leadership."""

    def __init__(self, store: Store, now: Callable[[], Timestamp]) -> None:
        """
        Args:
            now: the wall clock.
        """
        self._store, self._now = store, now
        self._reports = Reports()
        self._wake = asyncio.Event()
        self._lines = LogLimit()

    def put(self, report: PendingReport) -> None:
        """Write what an agent reported; ``report.on_written`` is called when that is done."""
        self._reports.put(report)
        self._wake.set()

    def drop(self, report: PendingReport) -> None:
        """See ``Reports.drop``."""
        self._reports.drop(report)

    def stop(self) -> None:
        """Forget what waits: the agents send it to the next leader. ``run`` must have ended."""
        self._reports.clear()
        self._wake.clear()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            async with asyncio.TaskGroup() as group:
                for number in range(ENTRIES_AT_ONCE_MAX):
                    pieces = self._reports.take(TRANSACTION_OBJECTS_MAX)
                    if not pieces:
                        self._wake.clear()
                        break
                    group.create_task(self._write_entry(pieces), name=f"dispatcher statuses {number}")

    async def _write_entry(self, pieces: Sequence[Piece]) -> None:
        """No task is in two entries that are under way: it is one node's, of which one piece is."""
        await self._write(pieces)
        for piece in pieces:
            tell_reported(piece.report.node_id, piece.updates, self._store.view.tasks.get)
        self._reports.written(pieces)
        self._wake.set()

    async def _write(self, pieces: Sequence[Piece]) -> None:
        attempts = 0
        while True:
            try:
                passed_over = await self._commit(pieces)
            except StoreError as error:  # a conflict as a rule, or an object that was removed just now
                attempts += 1
                if attempts < CONFLICT_ATTEMPTS_MAX:
                    continue
                await self._write_one_by_one(pieces, error)
                return
            except ConsensusError as error:
                if (left_out := self._lines.due("deferred")) is not None:
                    log.warning("reports.deferred", reason=str(error), left_out=left_out)
                await asyncio.sleep(RETRY_S)
            else:
                for report, task_id, reason in passed_over:
                    report.pass_over(task_id, reason)
                return

    async def _commit(self, pieces: Sequence[Piece]) -> list[tuple[PendingReport, str, str]]:
        """Write them in one entry. Returns what was passed over, and why."""
        working, now = self._store.begin(), self._now()
        tasks = working.tasks
        passed_over = []
        for piece in pieces:
            node_id = piece.report.node_id
            for update in piece.updates:
                task = tasks.get(update.task_id)
                if task is None or (reason := status.refusal(task, update, node_id)):
                    passed_over.append((piece.report, update.task_id, "no such task" if task is None else reason))
                else:
                    put(working, status.apply(task, update, now))
        if working.size:
            await self._store.commit(working, split=True)
            log.debug("reports.written", reports=len(pieces), objects=working.size)
        return passed_over

    async def _write_one_by_one(self, pieces: Sequence[Piece], error: StoreError) -> None:
        """One of them is to blame: the others shall not suffer for it."""
        alone = [Piece(piece.report, (update,)) for piece in pieces for update in piece.updates]
        if len(alone) > 1:
            for piece in alone:
                await self._write([piece])
            return
        ((report, update),) = [(piece.report, piece.updates[0]) for piece in alone]
        self._leave_out(report, update, error)

    def _leave_out(self, report: PendingReport, update: TaskStatusUpdate, error: StoreError) -> None:
        log.error("report.left_out", node_id=report.node_id, task_id=update.task_id[:64], reason=str(error))
        report.pass_over(update.task_id, str(error))
