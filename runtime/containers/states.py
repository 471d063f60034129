"""The states of a container, what moves it from one to another, and who may: the one table.

``Container.move`` is the only place that changes ``RunState.Status``; a move that is not in the table raises. Each move
is made under the container's lock. Three things are no states: a removal (a flag in memory, see ``Container.removing``;
``inspect`` calls it "removing"), the time between a start's first step and its process's (it is in the former state
then), and "dead", a word of the API that no container of ours comes to.

Source: moby ``container/state.go``; there an exit and the restart after it are two moves, here one, because the state
that is saved is the one the next daemon goes on from.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum

_STORY_LENGTH = 16


class Status(StrEnum):
    """``State.Status`` as the API spells it."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    EXITED = "exited"


class Event(StrEnum):
    """What happened; the value is the event of the log line that tells it."""

    STARTED = "container.started"
    FIRST_START_FAILED = "container.first_start_failed"
    START_FAILED = "container.start_failed"
    RESTART_FAILED = "container.restart_failed"
    PAUSED = "container.paused"
    UNPAUSED = "container.unpaused"
    EXITED = "container.exited"
    EXITED_FOR_NOW = "container.exited_for_now"
    RESTARTS_GIVEN_UP = "container.restarts_given_up"
    RESTART_CANCELLED = "container.restart_cancelled"


TRANSITIONS: Mapping[tuple[Status, Event], Status] = {
    (Status.CREATED, Event.STARTED): Status.RUNNING,
    (Status.EXITED, Event.STARTED): Status.RUNNING,
    (Status.RESTARTING, Event.STARTED): Status.RUNNING,
    (Status.RUNNING, Event.FIRST_START_FAILED): Status.CREATED,
    (Status.RUNNING, Event.START_FAILED): Status.EXITED,
    (Status.RUNNING, Event.RESTART_FAILED): Status.RESTARTING,
    (Status.RUNNING, Event.PAUSED): Status.PAUSED,
    (Status.PAUSED, Event.UNPAUSED): Status.RUNNING,
    (Status.RUNNING, Event.EXITED): Status.EXITED,
    (Status.PAUSED, Event.EXITED): Status.EXITED,
    (Status.RUNNING, Event.EXITED_FOR_NOW): Status.RESTARTING,
    (Status.PAUSED, Event.EXITED_FOR_NOW): Status.RESTARTING,
    (Status.RESTARTING, Event.RESTARTS_GIVEN_UP): Status.EXITED,
    (Status.RESTARTING, Event.RESTART_CANCELLED): Status.EXITED,
}
"""What follows what. A pair that is not here is a broken invariant."""

OWNERS: Mapping[Event, tuple[str, ...]] = {
    Event.STARTED: ("starting",),
    Event.FIRST_START_FAILED: ("starting",),
    Event.START_FAILED: ("starting",),
    Event.RESTART_FAILED: ("starting",),
    Event.PAUSED: ("stopping", "readoption"),
    Event.UNPAUSED: ("stopping", "readoption"),
    Event.EXITED: ("exits",),
    Event.EXITED_FOR_NOW: ("exits",),
    Event.RESTARTS_GIVEN_UP: ("exits",),
    Event.RESTART_CANCELLED: ("starting", "stopping", "removal"),
}
"""The modules that may say so."""

UNDOING: Mapping[Status, Event] = {
    Status.CREATED: Event.FIRST_START_FAILED,
    Status.EXITED: Event.START_FAILED,
    Status.RESTARTING: Event.RESTART_FAILED,
}
"""What takes a start that fails after it was noted down back to where it began."""


class IllegalMoveError(Exception):
    """A broken invariant: the table does not know this move. The message has the container's recent story."""

    def __init__(self, container_id: str, status: Status, event: Event, story: str) -> None:
        super().__init__(f"container {container_id}: {event} while {status} is no legal move; story: {story}")
        self.container_id, self.status, self.event = container_id, status, event


class Story:
    """The last states of one container since the daemon took it up, with when and why; for error messages."""

    def __init__(self, first: Status) -> None:
        self._entries: deque[tuple[int, str, Status]] = deque([(time.time_ns(), "taken up", first)], _STORY_LENGTH)

    def add(self, event: Event, status: Status) -> None:
        """One more, now."""
        self._entries.append((time.time_ns(), event.value, status))

    def __str__(self) -> str:
        return ", ".join(
            f"{status} at {datetime.fromtimestamp(at_ns / 1e9, UTC):%H:%M:%S.%f} ({why})"
            for at_ns, why, status in self._entries
        )
