"""A host becomes what the managers say, one step after another: the decisions alone, without I/O, loop or clock.

Whoever carries the steps out (``worker.membership.participation``) tells the machine what happened (``tell``) and asks
it for the next step (``take``), which is decided at that moment from all that is true by then. One step is under way at
a time. What came in between (a renewal that was answered earlier, another change of mind, the end of the manager) is
told as it comes, and the step after it takes it into account; nothing is ever undone from memory.

An event or step that is not in ``role_tables`` raises with the recent story.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import assert_never

import msgspec

from pki.certificates import Role
from worker.membership.role_tables import (
    ENDINGS,
    MAY_FAIL,
    PROCESS,
    REQUIRES,
    Condition,
    Ending,
    LogState,
    ProcessChange,
    ProcessState,
    Step,
)

STORY_LENGTH = 30
_NEVER = datetime.fromtimestamp(0, UTC)


class RoleMachineError(Exception):
    """An event or a step that cannot be; a fault of this program. The text has the recent story."""


class CertificateIs(msgspec.Struct, frozen=True):
    """The certificate on disk, whoever wrote it."""

    role: Role
    issued_at: datetime


class Told(msgspec.Struct, frozen=True):
    """The node's object, from the managers.

    Attributes:
        wanted: its spec's role.
        observed: its role; a manager until the leader has taken it out of the Raft group.
        void_before: manager certificates issued before do not count.
    """

    wanted: Role
    observed: Role
    void_before: datetime = _NEVER


class ManagerAnswers(msgspec.Struct, frozen=True):
    """The manager that is kept answered."""


class ManagerEnded(msgspec.Struct, frozen=True):
    """It ended by itself. ``keeps_manager`` says afterwards whether it is to be started again."""


class StepDone(msgspec.Struct, frozen=True):
    """The step under way."""


class StepFailed(msgspec.Struct, frozen=True):
    """The step under way. How much of it was done is not known."""

    reason: str = ""


class Interrupted(msgspec.Struct, frozen=True):
    """Nobody carries out the step under way any more, if there is one."""


class Ends(msgspec.Struct, frozen=True):
    """This participation is to end: nothing else is begun. Asked again, it goes on where it failed."""

    how: Ending


Event = CertificateIs | Told | ManagerAnswers | ManagerEnded | StepDone | StepFailed | Interrupted | Ends


class RoleMachine:
    """One participation's. Made from what is on disk.

    Attributes:
        process, log: see there.
        wanted: what the managers want; None while that is not known, or while they take this manager out of the group.
        noted: the role that node.json has; None when that is not known.
        ending: set by ``Ends``.
        doing: the step under way.
    """

    def __init__(self, certificate: CertificateIs, *, noted: Role, log: LogState, manager_runs: bool) -> None:
        """
        Args:
            certificate: what is on disk. It decides what this host is until the managers say otherwise: a promotion
                cut short wrote the certificate and not the role.
            noted: the role in node.json.
            manager_runs: somebody holds the lock of the manager.
        """
        self.process = ProcessState.ADRIFT if manager_runs else ProcessState.STOPPED
        self.log = log
        self.wanted = Role.MANAGER if certificate.role is Role.MANAGER else None
        self.noted = None if self.wanted is not None and noted is not Role.MANAGER else noted
        self.ending: Ending | None = None
        self.doing: Step | None = None
        self._certificate = certificate
        self._void_before = _NEVER
        self._told = False
        self._tired = False
        self._answered = False
        self._left: list[Step] = []
        self._story: deque[str] = deque([f"made: {certificate.role}, noted {noted}, log {log.value}"], STORY_LENGTH)

    @property
    def is_over(self) -> bool:
        """It ended."""
        return self.ending is not None and not self._left and self.doing is None

    @property
    def keeps_manager(self) -> bool:
        """A manager that ends by itself now is to be started again."""
        ours = self.ending is None and self.doing is not Step.STOP and self.wanted is not Role.WORKER
        return ours and self._holds(Condition.MANAGERS_CERTIFICATE)

    @property
    def awaits_certificate(self) -> bool:
        """Manager is wanted, and the certificate is not one that a manager may have."""
        return self.wanted is Role.MANAGER and not self._holds(Condition.MANAGERS_CERTIFICATE)

    # ------------------------------------------------------------------ events

    def tell(self, event: Event) -> None:
        """Raises: RoleMachineError: it cannot be."""
        self._story.append(repr(event))
        match event:
            case CertificateIs():
                self._certificate = event
            case Told():
                self._hear(event)
            case ManagerAnswers():
                self._move(ProcessChange.ANSWERED)
            case ManagerEnded():
                self._move(ProcessChange.RESTARTED if self.keeps_manager else ProcessChange.ENDED)
            case StepDone():
                self._complete(self._under_way())
            case StepFailed():
                self._break_off(self._under_way(), failed=True)
            case Interrupted():
                if self.doing is not None:
                    self._break_off(self.doing, failed=False)
            case Ends(how):
                self._end(how)
            case _:
                assert_never(event)

    def _hear(self, told: Told) -> None:
        self._told, self._void_before = True, told.void_before
        if told.wanted is Role.WORKER and told.observed is Role.MANAGER:
            self.wanted = None
        else:
            self.wanted = told.wanted

    def _end(self, how: Ending) -> None:
        if self.is_over:
            raise self._error("it is over")
        if how is not self.ending:
            self.ending, self._left = how, list(ENDINGS[how])

    def _under_way(self) -> Step:
        if self.doing is None:
            raise self._error("no step is under way")
        return self.doing

    def _complete(self, step: Step) -> None:
        match step:
            case Step.WRITE_MANAGER:
                self.noted = Role.MANAGER
            case Step.WRITE_WORKER:
                self.noted = Role.WORKER
            case Step.STOP:
                self._move(ProcessChange.STOP_DONE)
            case Step.ERASE_LOG | Step.FORGET:
                self.log = LogState.NONE
            case Step.REST:
                self._tired = False
            case Step.ASK_OWN_MANAGER:
                self._answered = True
            case Step.START | Step.RENEW | Step.ASK_PEERS | Step.STOP_TASKS:
                pass
            case _:
                assert_never(step)
        self._leave_behind(step)
        if step is Step.RENEW and self._due() is Step.RENEW:  # they have not come round to it: ask again, not at once
            self._tired = True

    def _break_off(self, step: Step, *, failed: bool) -> None:
        match step:
            case Step.START:
                self._move(ProcessChange.START_BROKEN)
            case Step.STOP:
                self._move(ProcessChange.STOP_BROKEN)
            case Step.WRITE_MANAGER | Step.WRITE_WORKER:
                self.noted = None
            case _:
                pass
        if failed and step in MAY_FAIL:
            self._leave_behind(step)
        self.doing, self._tired = None, failed

    def _leave_behind(self, step: Step) -> None:
        self.doing = None
        if self._left[:1] == [step]:
            del self._left[0]

    def _move(self, change: ProcessChange) -> None:
        after = PROCESS.get((self.process, change))
        if after is None:
            raise self._error(f"a manager process that is {self.process.value}: {change.value}")
        self.process = after

    # ------------------------------------------------------------------ steps

    def take(self) -> Step | None:
        """The next step, under way from now on; None when one is, or nothing is to be done.

        Raises:
            RoleMachineError: what is due cannot be done as things are.
        """
        if self.doing is not None:
            return None
        step = self._due()
        if step is None:
            return None
        self._story.append(f"-> {step.value}")
        self.require(step)
        if step is Step.START:
            self._move(ProcessChange.START_BEGUN)
            self.log = LogState.WHOLE
        elif step is Step.STOP:
            self._move(ProcessChange.STOP_BEGUN)
        elif step is Step.ERASE_LOG:
            self.log = LogState.ERASING
        self.doing = step
        return step

    def require(self, step: Step) -> None:
        """Raises: RoleMachineError: ``step`` cannot be done as things are, whatever is due."""
        missing = [
            condition.value for condition in Condition if condition in REQUIRES[step] and not self._holds(condition)
        ]
        if missing:
            raise self._error(f"{step.value} without: {', '.join(missing)}")

    def _due(self) -> Step | None:
        if self.ending is not None:
            return self._of_ending()
        if self._tired:
            return Step.REST
        match self.wanted:
            case Role.MANAGER:
                return self._towards_manager()
            case Role.WORKER:
                return self._towards_worker()
            case None:
                return None
        assert_never(self.wanted)

    def _of_ending(self) -> Step | None:
        is_manager = self._certificate.role is Role.MANAGER
        while self._left:
            step = self._left[0]
            needless = (step is Step.ASK_OWN_MANAGER and self.process is not ProcessState.RUNNING) or (
                step is Step.ASK_PEERS and (self._answered or not is_manager)
            )
            if not needless:
                return step
            del self._left[0]
        return None

    def _towards_manager(self) -> Step | None:
        unkept = self.process in (ProcessState.STOPPED, ProcessState.ADRIFT)
        # A demotion that has got so far is finished: the log is of a member that was taken out.
        if unkept and (self.log is LogState.ERASING or (self.log is LogState.WHOLE and self.noted is Role.WORKER)):
            return Step.ERASE_LOG if self.process is ProcessState.STOPPED else Step.STOP
        if not self._holds(Condition.MANAGERS_CERTIFICATE):
            return Step.RENEW
        if self.noted is not Role.MANAGER and not (unkept and not self._told):  # a restart begins without a write
            return Step.WRITE_MANAGER
        return Step.START if unkept else None

    def _towards_worker(self) -> Step | None:
        if self.process is not ProcessState.STOPPED:
            return Step.STOP
        if self.noted is not Role.WORKER:
            return Step.WRITE_WORKER
        if self.log is not LogState.NONE:
            return Step.ERASE_LOG
        return Step.RENEW if self._certificate.role is Role.MANAGER else None

    def _holds(self, condition: Condition) -> bool:
        return _HOLDS[condition](self)

    def _has_managers_certificate(self) -> bool:
        return self._certificate.role is Role.MANAGER and self._certificate.issued_at >= self._void_before

    def _error(self, what: str) -> RoleMachineError:
        return RoleMachineError(f"{what}; before: {'; '.join(self._story)}")


_HOLDS: Mapping[Condition, Callable[[RoleMachine], bool]] = {
    Condition.MEMBER: lambda machine: machine.ending is None,
    Condition.ENDING: lambda machine: machine.ending is not None,
    Condition.MANAGERS_CERTIFICATE: lambda machine: machine._has_managers_certificate(),
    Condition.NOT_KEPT: lambda machine: machine.process in (ProcessState.STOPPED, ProcessState.ADRIFT),
    Condition.STOPPED: lambda machine: machine.process is ProcessState.STOPPED,
    Condition.RUNNING: lambda machine: machine.process is ProcessState.RUNNING,
    Condition.LOG_NOT_HALF: lambda machine: machine.log is not LogState.ERASING,
}
