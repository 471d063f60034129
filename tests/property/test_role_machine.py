"""A host's role under any order of events, with any step cut short and the daemon killed at any point.

The world of the test is what lies on disk, whether a manager process runs (it outlives the daemon), and what the
managers want. Safety is looked at after every rule; progress at the end: with nothing more in the way, the host is what
the managers want, or has left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pki.certificates import Role
from worker.membership.role_machine import (
    CertificateIs,
    Ends,
    Interrupted,
    ManagerAnswers,
    ManagerEnded,
    RoleMachine,
    StepDone,
    StepFailed,
    Told,
)
from worker.membership.role_tables import Ending, LogState, ProcessState, Step

STEPS_MAX = 60
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
WRITES = (Step.WRITE_MANAGER, Step.WRITE_WORKER)


@dataclass
class Disk:
    """What a daemon that is started finds."""

    certificate: CertificateIs = field(default_factory=lambda: CertificateIs(Role.WORKER, NOON))
    noted: Role = Role.WORKER
    raft: bool = False
    raft_removed: bool = False
    forgotten: bool = False

    @property
    def log(self) -> LogState:
        if self.raft:
            return LogState.WHOLE
        return LogState.ERASING if self.raft_removed else LogState.NONE


class AnyOrder(RuleBasedStateMachine):
    """``manager_runs`` is the process; ``kept`` whether this daemon watches it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOON
        self.disk = Disk()
        self.manager_runs = self.kept = False
        self.wanted = self.observed = Role.WORKER
        self.void_before = NOON - timedelta(days=1)
        self.on_its_way: list[CertificateIs] = []
        self.leaves = self.disk_is_full = False
        self.machine = self.made()

    def made(self) -> RoleMachine:
        disk = self.disk
        self.in_memory = Role.MANAGER if disk.certificate.role is Role.MANAGER else disk.noted
        return RoleMachine(disk.certificate, noted=disk.noted, log=disk.log, manager_runs=self.manager_runs)

    # What the managers do

    @rule()
    def promote(self) -> None:
        self.wanted = Role.MANAGER

    @rule()
    def demote(self) -> None:
        self.wanted = Role.WORKER

    @rule()
    def take_in_or_out(self) -> None:
        """The leader brings the Raft group in line."""
        self.now += timedelta(seconds=1)
        if self.wanted is Role.MANAGER:
            if self.manager_runs and self.counts:
                self.observed = Role.MANAGER
        elif self.observed is Role.MANAGER:
            self.observed, self.void_before = Role.WORKER, self.now

    @rule()
    def say(self) -> None:
        if not self.disk.forgotten:
            self.machine.tell(Told(self.wanted, self.observed, self.void_before))

    def issued(self) -> CertificateIs:
        """Manager as soon as it is wanted, worker once it is neither wanted nor so (manager/ca/server.py)."""
        self.now += timedelta(seconds=1)
        is_worker = self.wanted is Role.WORKER and self.observed is Role.WORKER
        return CertificateIs(Role.WORKER if is_worker else Role.MANAGER, self.now)

    @rule()
    def answer_the_renewal_of_every_few_weeks(self) -> None:
        self.on_its_way.append(self.issued())

    @precondition(lambda self: self.on_its_way and not self.disk.forgotten)
    @rule()
    def write_the_renewal_of_every_few_weeks(self) -> None:
        """However late."""
        self.disk.certificate = self.on_its_way.pop()
        self.machine.tell(self.disk.certificate)

    # What the host does

    @property
    def counts(self) -> bool:
        certificate = self.disk.certificate
        return certificate.role is Role.MANAGER and certificate.issued_at >= self.void_before

    @rule()
    def begin(self) -> None:
        self.take()

    def take(self) -> Step | None:
        step = self.machine.take()
        if step is Step.START:
            assert self.disk.certificate.role is Role.MANAGER
            assert not self.machine.ending
        if step is Step.STOP:
            self.kept = False
        if step in WRITES:  # without a pause in between
            assert self.disk.certificate.role is Role.MANAGER or step is Step.WRITE_WORKER
            self.in_memory = Role.MANAGER if step is Step.WRITE_MANAGER else Role.WORKER
            self.write_node_json()
            self.machine.tell(StepFailed("no space left") if self.disk_is_full else StepDone())
        return step

    def write_node_json(self) -> None:
        if not self.disk_is_full:
            self.disk.noted = self.in_memory

    @rule()
    def fill_the_disk_or_empty_it(self) -> None:
        self.disk_is_full = not self.disk_is_full

    @precondition(lambda self: not self.disk.forgotten)
    @rule()
    def write_the_list_of_managers(self) -> None:
        """Into the same file."""
        self.write_node_json()

    def carry_out(self, step: Step) -> None:
        disk = self.disk
        match step:
            case Step.RENEW:
                disk.certificate = self.issued()
                self.machine.tell(disk.certificate)
            case Step.START:
                self.manager_runs = disk.raft = True
            case Step.STOP:
                self.manager_runs = False
            case Step.ERASE_LOG:
                disk.raft = disk.raft_removed = False
            case Step.FORGET:
                self.disk = Disk(forgotten=True)
            case _:
                pass

    def carry_out_half(self, step: Step, how_much: int) -> None:
        """Not at all, half of it, or all but its end."""
        if step is Step.ERASE_LOG and how_much == 1 and self.disk.raft:
            self.disk.raft, self.disk.raft_removed = False, True
        elif how_much == 2:
            self.carry_out(step)

    @precondition(lambda self: self.machine.doing)
    @rule()
    def complete(self) -> None:
        step = self.machine.doing
        assert step is not None
        self.carry_out(step)
        self.kept = self.kept or step is Step.START
        self.machine.tell(StepDone())

    @precondition(lambda self: self.machine.doing)
    @rule(how_much=st.integers(0, 2))
    def fail(self, how_much: int) -> None:
        step = self.machine.doing
        assert step is not None
        self.carry_out_half(step, how_much)
        self.machine.tell(StepFailed("in the test"))

    @rule(how_much=st.integers(0, 2))
    def kill_the_daemon(self, how_much: int) -> None:
        """And start it again. A leave that did not get to its mark is forgotten; after it, the next start ends it."""
        if self.machine.doing is not None:
            self.carry_out_half(self.machine.doing, how_much)
        if self.disk.forgotten:
            return
        self.kept = self.leaves = False
        self.machine = self.made()

    @precondition(lambda self: self.manager_runs)
    @rule()
    def end_the_manager(self) -> None:
        self.manager_runs = False
        if self.kept:
            self.machine.tell(ManagerEnded())
            self.manager_runs = self.kept = self.machine.keeps_manager
            assert not self.manager_runs or self.counts_as_told

    @property
    def counts_as_told(self) -> bool:
        """By what the host has heard; the newest demotion may not be among it."""
        return self.disk.certificate.role is Role.MANAGER

    @precondition(lambda self: self.manager_runs and self.kept)
    @rule()
    def answer(self) -> None:
        self.machine.tell(ManagerAnswers())

    @precondition(lambda self: not self.machine.is_over)
    @rule()
    def leave(self) -> None:
        self.machine.tell(Ends(Ending.LEAVE))
        self.machine.tell(Interrupted())
        self.leaves = True

    # What always holds

    @invariant()
    def nothing_is_erased_under_a_manager(self) -> None:
        if self.machine.doing in (Step.ERASE_LOG, Step.FORGET):
            assert not self.manager_runs

    @invariant()
    def a_manager_that_is_not_seen_does_not_run(self) -> None:
        if self.machine.process is ProcessState.STOPPED:
            assert not self.manager_runs

    @invariant()
    def a_leave_wins(self) -> None:
        if self.leaves and self.machine.doing is not None:
            assert self.machine.doing in (
                *(Step.ASK_OWN_MANAGER, Step.STOP, Step.ASK_PEERS, Step.STOP_TASKS),
                Step.FORGET,
            )

    def teardown(self) -> None:
        """Nothing is in the way any more."""
        self.disk_is_full = False
        for _ in range(3):
            self.take_in_or_out()
            self.say()
            for _ in range(STEPS_MAX):
                if self.machine.doing is not None:
                    self.complete()
                self.take()
            assert self.machine.doing is None
        if self.leaves:
            assert self.machine.is_over
            assert self.disk.forgotten
            assert not self.manager_runs
        elif self.wanted is Role.MANAGER:
            assert self.counts
            assert self.manager_runs
            assert (self.disk.noted, self.disk.log) == (Role.MANAGER, LogState.WHOLE)
            assert self.machine.process in (ProcessState.STARTING, ProcessState.RUNNING)
        else:
            assert not self.manager_runs
            assert (self.disk.certificate.role, self.disk.noted, self.disk.log) == (
                Role.WORKER,
                Role.WORKER,
                LogState.NONE,
            )


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=300, stateful_step_count=40)
