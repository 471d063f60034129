"""What a decision comes to: actions, and when to look again.

A decision function takes stored messages and ``now`` and returns an ``Outcome``; it changes nothing. Stored messages
are never changed in place: a changed task is a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from proto.objects_pb2 import Service, Task


@dataclass(frozen=True, slots=True)
class CreateTask:
    task: Task


@dataclass(frozen=True, slots=True)
class UpdateTask:
    """``task`` is a changed copy of the stored one."""

    task: Task


@dataclass(frozen=True, slots=True)
class RemoveTask:
    task: Task


@dataclass(frozen=True, slots=True)
class UpdateService:
    """``service`` is a changed copy of the stored one."""

    service: Service


@dataclass(frozen=True, slots=True)
class RemoveService:
    service: Service


Action = CreateTask | UpdateTask | RemoveTask | UpdateService | RemoveService


@dataclass
class Outcome:
    """What a look at something decided.

    Attributes:
        groups: actions to commit, in order; those of one group go into one log entry, so that no other manager ever
            sees half of a step. Empty once all is as it should be.
        deadline: seconds since the epoch at which to look again though nothing changes, or None.
        look_at_service: the service as a whole has to be looked at (again): a slot of it is empty, a failure was
            counted, or there is more to do than one pass may.
    """

    groups: list[list[Action]] = field(default_factory=list)
    deadline: float | None = None
    look_at_service: bool = False

    @property
    def actions(self) -> list[Action]:
        return [action for group in self.groups for action in group]

    def add(self, *actions: Action) -> None:
        """Decide on actions that belong together."""
        if actions:
            self.groups.append(list(actions))

    def wait_until(self, deadline: float | None) -> None:
        """Look again then, or earlier."""
        if deadline is not None and (self.deadline is None or deadline < self.deadline):
            self.deadline = deadline
