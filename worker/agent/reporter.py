"""Statuses on their way to the managers: the latest of each task, until acknowledged. No I/O, no timer.

While one report is under way the next gathers by itself; with nothing under way a status goes at once, but for one on the
way to RUNNING: that is told when the task has stayed on its way for a moment. What was sent and not acknowledged (the
connection broke, the leader changed) goes again, unless something newer has taken its place.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import takewhile

from proto.dispatcher_pb2 import TaskStatusUpdate
from proto.objects_pb2 import TaskState

REPORT_LENGTH_MAX = 1000
REPORT_SIZE_BYTES_MAX = 256 * 1024
"""Of several statuses together; what a manager takes is larger (``manager.dispatcher.reports``)."""

UPDATE_SIZE_BYTES_MAX = 64 * 1024
INTERIM_S = 0.2
"""A task whose image is here runs, or has failed, sooner than that: managers write one status of it, not four."""

_INTERIM = frozenset(
    (
        TaskState.TASK_STATE_ACCEPTED,
        TaskState.TASK_STATE_PREPARING,
        TaskState.TASK_STATE_READY,
        TaskState.TASK_STATE_STARTING,
    )
)

TEXT_LENGTH_MAX = 4096
"""A status that is larger has its texts cut to what managers keep of them; one that is too large still tells neither ports
nor addresses."""


class StatusReporter:
    """One report under way at most: ``take``, send, then ``acknowledge`` or ``put_back``.

    Attributes:
        wake: set when ``take`` may have something; who looks clears it. A session uses it for its own reasons, too.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: seconds, as the loop of who sends has them.
        """
        self._clock = clock
        self._waiting: dict[str, TaskStatusUpdate] = {}
        self._held: dict[str, tuple[float, TaskStatusUpdate]] = {}
        """On the way to RUNNING, with the time at which they are told; in that order. None that waits is here, too."""
        self._sent: dict[str, TaskStatusUpdate] = {}
        self._is_under_way = False
        self.wake = asyncio.Event()

    def put(self, update: TaskStatusUpdate) -> None:
        """Tell the managers this; it replaces what waits for the same task unless that is further on."""
        task_id, state = update.task_id, update.status.state
        due_s, held = self._held.get(task_id, (self._clock() + INTERIM_S, None))
        known = held or self._waiting.get(task_id)
        if known is not None and known.status.state > state:
            return
        if state in _INTERIM and task_id not in self._waiting:
            self._held[task_id] = due_s, _cut(update)
        else:
            self._held.pop(task_id, None)
            self._waiting[task_id] = _cut(update)
        self._wake_up()

    def forget(self, task_id: str) -> None:
        """The managers know the task no more."""
        self._waiting.pop(task_id, None)
        self._held.pop(task_id, None)
        self._sent.pop(task_id, None)

    def next_due_s(self) -> float | None:
        """When ``take`` has something though nothing is put in; None: never, or not before the report under way is through."""
        return next((due_s for due_s, _ in self._held.values()), None) if not self._is_under_way else None

    def take(self) -> list[TaskStatusUpdate]:
        """The next report, oldest first; empty while there is nothing to say, or one is under way."""
        if self._is_under_way:
            return []
        self._release()
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
        known = self._waiting.keys() | self._held.keys()
        again = {task_id: update for task_id, update in sent.items() if task_id not in known}
        self._waiting = {**again, **self._waiting}
        self._wake_up()

    def _release(self) -> None:
        """Those on the way for long enough wait with the others."""
        now_s = self._clock()
        for task_id, (_, update) in list(takewhile(lambda held: held[1][0] <= now_s, self._held.items())):
            del self._held[task_id]
            self._waiting[task_id] = update

    def _wake_up(self) -> None:
        if (self._waiting or self._held) and not self._is_under_way:
            self.wake.set()


def _cut(update: TaskStatusUpdate) -> TaskStatusUpdate:
    """The update, or of a giant what managers keep and a report has room for: whoever made it, it is bounded."""
    if update.ByteSize() <= UPDATE_SIZE_BYTES_MAX:
        return update
    cut = TaskStatusUpdate()
    cut.CopyFrom(update)
    cut.DiscardUnknownFields()
    status = cut.status
    status.message, status.err = status.message[:TEXT_LENGTH_MAX], status.err[:TEXT_LENGTH_MAX]
    if status.HasField("container_status"):
        status.container_status.container_id = status.container_status.container_id[:TEXT_LENGTH_MAX]
    if cut.ByteSize() > UPDATE_SIZE_BYTES_MAX:
        status.ClearField("port_status")
        cut.ClearField("networks_attachments")
    return cut
