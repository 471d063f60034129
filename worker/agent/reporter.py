"""Statuses on their way to the managers: the latest of each task, until acknowledged. No I/O, no timer.

While one batch is under way the next gathers by itself; with nothing under way a status goes at once. What was sent and
not acknowledged (the connection broke, the leader changed) goes again, unless something newer has taken its place.
"""

from __future__ import annotations

import asyncio

from proto.dispatcher_pb2 import TaskStatusUpdate

BATCH_LENGTH_MAX = 1000
BATCH_SIZE_BYTES_MAX = 1024 * 1024


class StatusReporter:
    """One batch under way at most: ``take``, send, then ``acknowledge`` or ``put_back``."""

    def __init__(self) -> None:
        self._waiting: dict[str, TaskStatusUpdate] = {}
        self._sent: dict[str, TaskStatusUpdate] = {}
        self._wake = asyncio.Event()

    def put(self, update: TaskStatusUpdate) -> None:
        """Tell the managers this; it replaces what waits for the same task unless that is further on."""
        known = self._waiting.get(update.task_id)
        if known is None or known.status.state <= update.status.state:
            self._waiting[update.task_id] = update
            self._wake.set()

    def forget(self, task_id: str) -> None:
        """The managers know the task no more."""
        self._waiting.pop(task_id, None)
        self._sent.pop(task_id, None)

    async def wait(self) -> None:
        """Return when there is something to send."""
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()

    def take(self) -> list[TaskStatusUpdate]:
        """The next batch, oldest first; empty while there is nothing. The batch before must have been settled."""
        batch: list[TaskStatusUpdate] = []
        size_bytes = 0
        for update in self._waiting.values():
            size_bytes += update.ByteSize()
            if batch and (len(batch) >= BATCH_LENGTH_MAX or size_bytes > BATCH_SIZE_BYTES_MAX):
                break
            batch.append(update)
        for update in batch:
            del self._waiting[update.task_id]
            self._sent[update.task_id] = update
        return batch

    def acknowledge(self) -> None:
        """The batch under way is in the managers' log."""
        self._sent.clear()

    def put_back(self) -> None:
        """Nobody knows what became of the batch under way: send it again."""
        sent, self._sent = self._sent, {}
        again = {task_id: update for task_id, update in sent.items() if task_id not in self._waiting}
        self._waiting = {**again, **self._waiting}
        if self._waiting:
            self._wake.set()
