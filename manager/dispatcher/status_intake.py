"""What agents report goes into the log: all of them together, an entry at a time.

While entries are on their way, and for a moment after the last began (``constants.PACE_S``), what comes in waits and makes the
next: what comes alone is written at once, under load entries grow by themselves, and an agent that is not acknowledged sends nothing. Nothing fails here as
seen by an agent: each update decides on the state it finds, so it is tried again until it is in the log or this manager
leads no more; then its agent sends it to the next leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from base.backoff import Backoff
from base.pace import Pace
from manager.consensus.port import ConsensusError
from manager.constants import PACE_S
from manager.dispatcher import status
from manager.dispatcher.intake import CONFLICT_ATTEMPTS_MAX, put
from manager.dispatcher.reports import PendingReport, Piece, Reports
from manager.dispatcher.telling import tell_removed, tell_reported
from manager.log_limit import LogLimit
from manager.orchestrator.reaper import is_removable
from manager.store import ObjectNotFoundError, SequenceConflictError, Store, StoreError
from manager.store.store import TRANSACTION_OBJECTS_MAX
from proto.objects_pb2 import Task

log = structlog.get_logger(__name__)

ENTRIES_AT_ONCE_MAX = 4
"""Entries that are proposed together when so much waits. Each is built, and applied, in some 5 ms; one at a time they
would wait, each for itself, for whatever else holds the loop."""

RETRY_S = 0.5
"""After the log took nothing: no quorum, or another leader about which this manager is going to hear."""

CONFLICT_PAUSE_S = 0.02
"""After others were faster again and again; the next pause is longer, ``RETRY_S`` at most."""

ANOTHER_WAS_FASTER = (SequenceConflictError, ObjectNotFoundError)
"""The task was changed or removed since it was read: read it again."""


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
        pace = Pace(PACE_S)
        async with asyncio.TaskGroup() as aside:
            while True:
                await self._wake.wait()
                await pace.turn()
                async with asyncio.TaskGroup() as group:
                    for number in range(ENTRIES_AT_ONCE_MAX):
                        pieces = self._reports.take(TRANSACTION_OBJECTS_MAX)
                        if not pieces:
                            self._wake.clear()
                            break
                        group.create_task(self._write_entry(pieces, aside), name=f"dispatcher statuses {number}")

    async def _write_entry(self, pieces: Sequence[Piece], aside: asyncio.TaskGroup) -> None:
        """No task is in two entries that are under way: it is one node's, of which one piece is."""
        if await self._write(pieces) is None:
            self._written(pieces)
        else:  # for some of its tasks: neither those of the others nor the next entries wait
            aside.create_task(self._write_one_by_one(pieces), name="dispatcher statuses one by one")

    def _written(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            tell_reported(piece.report.node_id, piece.updates, self._store.view.tasks.get)
        self._reports.written(pieces)
        self._wake.set()

    async def _write(self, pieces: Sequence[Piece]) -> StoreError | None:
        """Write them in one entry; what the store says when it does not take it, to which another writer is no end."""
        attempts = 0
        while True:
            try:
                passed_over = await self._commit(pieces)
            except StoreError as error:
                attempts += 1
                if attempts == CONFLICT_ATTEMPTS_MAX or not isinstance(error, ANOTHER_WAS_FASTER):
                    return error
            except ConsensusError as error:
                if (left_out := self._lines.due("deferred")) is not None:
                    log.warning("reports.deferred", reason=str(error), left_out=left_out)
                await asyncio.sleep(RETRY_S)
            else:
                for report, task_id, reason in passed_over:
                    report.pass_over(task_id, reason)
                return None

    async def _commit(self, pieces: Sequence[Piece]) -> list[tuple[PendingReport, str, str]]:
        """Write them in one entry. Returns what was passed over, and why."""
        working, now = self._store.begin(), self._now()
        tasks = working.tasks
        passed_over, removed = [], list[Task]()
        for piece in pieces:
            node_id = piece.report.node_id
            for update in piece.updates:
                task = tasks.get(update.task_id)
                if task is None or (reason := status.refusal(task, update, node_id)):
                    passed_over.append((piece.report, update.task_id, "no such task" if task is None else reason))
                    continue
                try:
                    changed = status.apply(task, update, now)
                except Exception as error:  # whatever a worker found to say: no leader ends by it, nor the next one
                    log.exception("report.not_understood", node_id=node_id, task_id=task.id)
                    passed_over.append((piece.report, task.id, f"{type(error).__name__} while it was read"))
                    continue
                if changed is not None and is_removable(changed, working.nodes):
                    working.remove(
                        task
                    )  # an end that is written only to be deleted would be an entry's object for nobody
                    working.boundary()
                    removed.append(changed)
                else:
                    put(working, changed)
        if working.size:
            await self._store.commit(working, split=True)
            log.debug("reports.written", reports=len(pieces), objects=working.size)
            tell_removed(removed)
        return passed_over

    async def _write_one_by_one(self, pieces: Sequence[Piece]) -> None:
        """Each alone, until it is in the log or its report is nobody's any more.

        Who was slower than another writer is some time the faster: every conflict is a write of that very task by
        somebody who has no reason to go on. A status is left out only when no entry can hold it.
        """
        waiting = [Piece(piece.report, (update,)) for piece in pieces for update in piece.updates]
        backoff = Backoff(CONFLICT_PAUSE_S, RETRY_S)
        while True:
            waiting = [piece for piece in waiting if not piece.report.is_dropped and not await self._is_settled(piece)]
            if not waiting:
                break
            await asyncio.sleep(backoff.next_s())
        self._written(pieces)

    async def _is_settled(self, piece: Piece) -> bool:
        error = await self._write([piece])
        if isinstance(error, ANOTHER_WAS_FASTER):
            if (left_out := self._lines.due("overtaken")) is not None:
                log.warning("report.overtaken", node_id=piece.report.node_id, reason=str(error), left_out=left_out)
            return False
        if error is not None:
            (update,) = piece.updates
            log.error("report.left_out", node_id=piece.report.node_id, task_id=update.task_id[:64], reason=str(error))
            piece.report.pass_over(update.task_id, str(error))
        return True
