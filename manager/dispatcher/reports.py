"""Reports of statuses that are not in the log yet: whose turn it is, and what of each is left. No I/O, no clock.

Of a session there is one report here at most (its agent sends the next once this one was acknowledged), so memory is
bounded by the number of nodes. Reports are served in turn, a piece of each: a node that tells of a thousand tasks keeps
none waiting that tells of one, and what many nodes say makes one log entry.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from proto.dispatcher_pb2 import StatusReport, TaskStatusUpdate

REPORT_LENGTH_MAX = 1000
"""Statuses in one report."""

REPORT_SIZE_BYTES_MAX = 1024 * 1024

PIECE_LENGTH_MAX = 100
"""Of one report in one entry, which holds 200 objects, while others wait."""


def invalid_report(report: StatusReport, *, number: int, is_free: bool) -> str:
    """What is wrong with a report, "" when nothing is.

    Args:
        number: the one that it has to have.
        is_free: the report before it was acknowledged.
    """
    if not is_free:
        return f"report {report.number} came before report {number - 1} was acknowledged"
    if report.number != number:
        return f"report {report.number}, want {number}"
    if len(report.updates) > REPORT_LENGTH_MAX:
        return f"{len(report.updates)} statuses in one report, at most {REPORT_LENGTH_MAX}"
    if (size_bytes := report.ByteSize()) > REPORT_SIZE_BYTES_MAX:
        return f"a report of {size_bytes} bytes, at most {REPORT_SIZE_BYTES_MAX}"
    return ""


@dataclass(slots=True, eq=False)
class PendingReport:
    """What one session's agent said, on its way.

    Attributes:
        on_written: called once, when all of it is in the log or was passed over.
        taken: so many updates, from the first, are written or under way.
        passed_over, example: how many were, and the first of them with the reason.
        is_dropped: its session is over, and nobody waits for it.
    """

    node_id: str
    updates: Sequence[TaskStatusUpdate]
    on_written: Callable[[PendingReport], None]
    taken: int = 0
    passed_over: int = 0
    example: tuple[str, str] = ("", "")
    is_dropped: bool = False

    def pass_over(self, task_id: str, reason: str) -> None:
        """That status will never be written; its agent is not to send it again."""
        self.passed_over += 1
        if self.passed_over == 1:
            self.example = task_id[:64], reason


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of a report's updates, which are written together."""

    report: PendingReport
    updates: Sequence[TaskStatusUpdate]


class Reports:
    """The queue. ``take`` pieces, write them, then say that they are ``written``; one writer."""

    def __init__(self) -> None:
        self._waiting: deque[PendingReport] = deque()

    def __len__(self) -> int:
        """Reports of which something waits."""
        return len(self._waiting)

    def put(self, report: PendingReport) -> None:
        """A report came."""
        self._waiting.append(report)

    def drop(self, report: PendingReport) -> None:
        """Its session is over: what was not taken is its agent's to send again."""
        report.is_dropped = True

    def clear(self) -> None:
        """Nobody writes any more."""
        self._waiting.clear()

    def take(self, length_max: int) -> list[Piece]:
        """What makes the next entry, whose turn it is first; empty when nothing waits."""
        pieces: list[Piece] = []
        room = length_max
        while self._waiting and room > 0:
            report = self._waiting.popleft()
            if report.is_dropped:
                continue
            piece_max = PIECE_LENGTH_MAX if self._waiting else room
            updates = report.updates[report.taken : report.taken + min(room, piece_max)]
            report.taken += len(updates)
            room -= len(updates)
            pieces.append(Piece(report, updates))
        return pieces

    def written(self, pieces: Iterable[Piece]) -> None:
        """These are in the log: whose report that completes is told, of the others the next piece waits."""
        for piece in pieces:
            report = piece.report
            if report.is_dropped:
                continue
            if report.taken < len(report.updates):
                self._waiting.append(report)
            else:
                report.on_written(report)
