"""Statuses on their way to the managers: the latest of each task, until acknowledged. No I/O, no timer.

While one report is under way the next gathers by itself; with nothing under way a status goes at once. What was sent and
not acknowledged (the connection broke, the leader changed) goes again, unless something newer has taken its place.
"""

from __future__ import annotations

import asyncio

from proto.dispatcher_pb2 import TaskStatusUpdate

REPORT_LENGTH_MAX = 1000
REPORT_SIZE_BYTES_MAX = 256 * 1024
"""Of several statuses together; what a manager takes is larger (``manager.dispatcher.reports``)."""

UPDATE_SIZE_BYTES_MAX = 64 * 1024
TEXT_LENGTH_MAX = 4096
"""A status that is larger has its texts cut to what managers keep of them, and tells no ports."""


class StatusReporter:
    """One report under way at most: ``take``, send, then ``acknowledge`` or ``put_back``.

    Attributes:
        wake: set when ``take`` may have something; who looks clears it. A session uses it for its own reasons, too.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, TaskStatusUpdate] = {}
        self._sent: dict[str, TaskStatusUpdate] = {}
        self._is_under_way = False
        self.wake = asyncio.Event()

    def put(self, update: TaskStatusUpdate) -> None:
        """Tell the managers this; it replaces what waits for the same task unless that is further on."""
        known = self._waiting.get(update.task_id)
        if known is None or known.status.state <= update.status.state:
            self._waiting[update.task_id] = _cut(update)
            self._wake_up()

    def forget(self, task_id: str) -> None:
        """The managers know the task no more."""
        self._waiting.pop(task_id, None)
        self._sent.pop(task_id, None)

    def take(self) -> list[TaskStatusUpdate]:
        """The next report, oldest first; empty while there is nothing to say, or one is under way."""
        if self._is_under_way:
            return []
        batch: list[TaskStatusUpdate] = []
        size_bytes = 0
        for update in self._waiting.values():
            size_bytes += update.ByteSize()
            if batch and (len(batch) >= REPORT_LENGTH_MAX or size_bytes > REPORT_SIZE_BYTES_MAX):
                break
            batch.append(update)
        for update in batch:
            del self._waiting[update.task_id]
            self._sent[update.task_id] = update
        self._is_under_way = bool(batch)
        return batch

    def acknowledge(self) -> None:
        """The report under way is in the managers' log."""
        self._sent, self._is_under_way = {}, False
        self._wake_up()

    def put_back(self) -> None:
        """Nobody knows what became of the report under way: send it again."""
        sent, self._sent, self._is_under_way = self._sent, {}, False
        again = {task_id: update for task_id, update in sent.items() if task_id not in self._waiting}
        self._waiting = {**again, **self._waiting}
        self._wake_up()

    def _wake_up(self) -> None:
        if self._waiting and not self._is_under_way:
            self.wake.set()


def _cut(update: TaskStatusUpdate) -> TaskStatusUpdate:
    """The update, or a copy that a report has room for."""
    if update.ByteSize() <= UPDATE_SIZE_BYTES_MAX:
        return update
    cut = TaskStatusUpdate()
    cut.CopyFrom(update)
    cut.status.message = cut.status.message[:TEXT_LENGTH_MAX]
    cut.status.err = cut.status.err[:TEXT_LENGTH_MAX]
    cut.status.ClearField("port_status")
    return cut
