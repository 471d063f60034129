"""The role machine by events and steps: its tables are the documented ones, and each window that was mended (A4.05)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pki.certificates import Role
from worker.membership.role_machine import (
    CertificateIs,
    Ends,
    Event,
    Interrupted,
    ManagerAnswers,
    ManagerEnded,
    RoleMachine,
    RoleMachineError,
    StepDone,
    StepFailed,
    Told,
)
from worker.membership.role_tables import (
    ENDINGS,
    MAY_FAIL,
    PROCESS,
    REQUIRES,
    Ending,
    LogState,
    ProcessChange,
    ProcessState,
    Step,
)

PAGE = Path(__file__).parents[3] / "docs" / "design" / "membership.md"
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=1)

PROMOTE = Told(Role.MANAGER, Role.WORKER)
IN_BETWEEN = Told(Role.WORKER, Role.MANAGER)
DEMOTE = Told(Role.WORKER, Role.WORKER)


def certificate(role: Role, issued_at: datetime = NOON) -> CertificateIs:
    return CertificateIs(role, issued_at)


def worker(*, noted: Role = Role.WORKER, log: LogState = LogState.NONE, manager_runs: bool = False) -> RoleMachine:
    return RoleMachine(certificate(Role.WORKER), noted=noted, log=log, manager_runs=manager_runs)


def manager(*, noted: Role = Role.MANAGER, log: LogState = LogState.WHOLE, manager_runs: bool = False) -> RoleMachine:
    """As a restart finds it."""
    return RoleMachine(certificate(Role.MANAGER), noted=noted, log=log, manager_runs=manager_runs)


def does(machine: RoleMachine, *steps: Step, renewed: Role | None = None) -> None:
    """Take just these steps, and carry each out; a renewal gives a certificate of ``renewed``."""
    for step in steps:
        assert machine.take() is step
        if step is Step.RENEW and renewed is not None:
            machine.tell(certificate(renewed))
        machine.tell(StepDone())


def rests(machine: RoleMachine) -> None:
    assert machine.take() is None
    assert machine.doing is None


def promoted() -> RoleMachine:
    machine = worker()
    machine.tell(PROMOTE)
    does(machine, Step.RENEW, Step.WRITE_MANAGER, Step.START, renewed=Role.MANAGER)
    machine.tell(ManagerAnswers())
    return machine


# The tables are those of the design page


def table(title: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    lines = PAGE.read_text().split(f"## {title}\n", 1)[1].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_moves_of_the_process_are_the_documented_ones() -> None:
    documented = {
        (ProcessState(state.strip()), ProcessChange(change)): ProcessState(after)
        for states, change, after in table("The manager process")
        for state in states.split(",")
    }
    assert documented == PROCESS


def test_what_a_step_requires_is_documented() -> None:
    documented = {step: required.split(", ") if required else [] for step, required, _does, _kill in table("Steps")}
    assert {step: sorted(required) for step, required in documented.items()} == {
        step.value: sorted(condition.value for condition in required) for step, required in REQUIRES.items()
    }


def test_the_endings_are_documented() -> None:
    documented = {Ending(how): tuple(Step(step) for step in steps.split(", ")) for how, steps in table("Endings")}
    assert documented == ENDINGS


def test_every_test_that_the_page_names_exists() -> None:
    folder = Path(__file__).parent
    for _window, _rule, where in table("Windows"):
        file, _, name = where.strip("`").partition("::")
        assert f"def {name}(" in (folder / file).read_text(), where


# What cannot be raises


@pytest.mark.parametrize("event", [ManagerAnswers(), ManagerEnded(), StepDone(), StepFailed()])
def test_an_event_that_cannot_be_raises_with_the_story(event: Event) -> None:
    machine = worker()
    machine.tell(PROMOTE)
    with pytest.raises(RoleMachineError) as raised:
        machine.tell(event)
    assert "made: swarm-worker" in str(raised.value)
    assert "Told(" in str(raised.value)


def test_what_is_over_does_not_end_again() -> None:
    machine = worker()
    machine.tell(Ends(Ending.CLOSE))
    does(machine, Step.STOP)
    assert machine.is_over
    with pytest.raises(RoleMachineError, match="it is over"):
        machine.tell(Ends(Ending.LEAVE))


@pytest.mark.parametrize(
    ("step", "missing"),
    [
        (Step.START, "a manager's certificate that counts"),
        (Step.WRITE_MANAGER, "a manager's certificate that counts"),
        (Step.FORGET, "ending"),
        (Step.ASK_OWN_MANAGER, "ending, process running"),
    ],
)
def test_a_step_that_cannot_be_raises(step: Step, missing: str) -> None:
    with pytest.raises(RoleMachineError, match=f"^{step.value} without: {missing}; before: "):
        worker().require(step)


@pytest.mark.parametrize("step", [Step.START, Step.WRITE_WORKER, Step.ERASE_LOG])
def test_a_step_that_cannot_be_beside_a_manager_raises(step: Step) -> None:
    with pytest.raises(RoleMachineError, match="without: process stopped"):
        promoted().require(step)


def test_one_step_is_under_way_at_a_time() -> None:
    machine = worker()
    machine.tell(PROMOTE)
    assert machine.take() is Step.RENEW
    machine.tell(DEMOTE)
    assert machine.take() is None
    machine.tell(certificate(Role.MANAGER))
    machine.tell(StepDone())
    does(machine, Step.REST, Step.RENEW, renewed=Role.WORKER)
    rests(machine)


# Roles


def test_a_worker_that_is_told_to_be_one_has_nothing_to_do() -> None:
    machine = worker()
    rests(machine)
    machine.tell(DEMOTE)
    rests(machine)


def test_a_demotion_waits_until_the_leader_has_taken_it_out() -> None:
    machine = promoted()
    machine.tell(IN_BETWEEN)
    rests(machine)
    assert machine.keeps_manager
    machine.tell(DEMOTE)
    does(machine, Step.STOP, Step.WRITE_WORKER, Step.ERASE_LOG, Step.RENEW, renewed=Role.WORKER)
    rests(machine)
    assert (machine.noted, machine.log, machine.process) == (Role.WORKER, LogState.NONE, ProcessState.STOPPED)


def test_a_renewal_that_was_answered_before_a_promotion_does_not_undo_it() -> None:
    machine = promoted()
    machine.tell(certificate(Role.WORKER))
    does(machine, Step.RENEW, renewed=Role.MANAGER)
    rests(machine)
    assert machine.process is ProcessState.RUNNING


def test_a_renewal_that_was_answered_before_a_demotion_does_not_undo_it() -> None:
    machine = promoted()
    machine.tell(DEMOTE)
    does(machine, Step.STOP, Step.WRITE_WORKER, Step.ERASE_LOG, Step.RENEW, renewed=Role.WORKER)
    machine.tell(certificate(Role.MANAGER))
    does(machine, Step.RENEW, renewed=Role.WORKER)
    rests(machine)
    assert machine.process is ProcessState.STOPPED


def test_a_renewal_that_changes_nothing_yet_is_asked_for_again_after_a_rest() -> None:
    machine = worker()
    machine.tell(PROMOTE)
    does(machine, Step.RENEW, renewed=Role.WORKER)
    assert machine.awaits_certificate
    does(machine, Step.REST, Step.RENEW, renewed=Role.MANAGER)
    assert not machine.awaits_certificate
    assert machine.take() is Step.WRITE_MANAGER


def test_a_manager_begins_with_a_certificate_from_after_its_demotion() -> None:
    """The clock of the leader that issues is behind the clock of the one that demoted."""
    machine = manager(log=LogState.NONE)
    does(machine, Step.START)
    machine.tell(DEMOTE)
    does(machine, Step.STOP, Step.WRITE_WORKER, Step.ERASE_LOG)
    machine.tell(Told(Role.MANAGER, Role.WORKER, LATER))
    does(machine, Step.RENEW, Step.REST, Step.RENEW, renewed=Role.MANAGER)
    machine.tell(certificate(Role.MANAGER, LATER))
    does(machine, Step.REST, Step.WRITE_MANAGER, Step.START)


def test_a_step_that_failed_is_tried_again_after_a_rest() -> None:
    machine = worker()
    machine.tell(PROMOTE)
    assert machine.take() is Step.RENEW
    machine.tell(StepFailed("no manager answers"))
    does(machine, Step.REST, Step.RENEW, Step.WRITE_MANAGER, renewed=Role.MANAGER)
    assert machine.take() is Step.START
    machine.tell(StepFailed("no memory"))
    assert machine.process is ProcessState.ADRIFT  # what was asked of the zygote may come all the same
    does(machine, Step.REST, Step.START)


def test_a_step_that_nobody_carries_out_any_more_is_taken_again() -> None:
    machine = worker()
    machine.tell(Interrupted())
    machine.tell(PROMOTE)
    assert machine.take() is Step.RENEW
    machine.tell(Interrupted())
    assert machine.take() is Step.RENEW


def test_a_promotion_in_the_middle_of_a_demotion_finishes_with_the_old_log_first() -> None:
    """Half of it is no log, and the whole is of a member that was taken out."""
    machine = promoted()
    machine.tell(DEMOTE)
    does(machine, Step.STOP, Step.WRITE_WORKER)
    machine.tell(PROMOTE)
    assert machine.take() is Step.ERASE_LOG
    machine.tell(StepFailed("input/output error"))
    does(machine, Step.REST, Step.ERASE_LOG, Step.WRITE_MANAGER, Step.START)


def test_a_role_that_may_have_been_written_is_written_again() -> None:
    """The list of managers goes into the same file, and takes the role along."""
    machine = worker()
    machine.tell(PROMOTE)
    does(machine, Step.RENEW, renewed=Role.MANAGER)
    assert machine.take() is Step.WRITE_MANAGER
    machine.tell(StepFailed("no space left"))
    machine.tell(DEMOTE)
    does(machine, Step.REST, Step.WRITE_WORKER)


# The manager process


def test_a_manager_that_ends_by_itself_is_started_again_and_answers_anew() -> None:
    machine = promoted()
    machine.tell(ManagerEnded())
    assert machine.keeps_manager
    seen = [machine.process]
    machine.tell(ManagerAnswers())
    assert [*seen, machine.process] == [ProcessState.STARTING, ProcessState.RUNNING]


def test_a_manager_that_ends_over_its_stop_is_not_started_again() -> None:
    machine = promoted()
    machine.tell(DEMOTE)
    assert machine.take() is Step.STOP
    machine.tell(ManagerAnswers())
    machine.tell(ManagerEnded())
    assert not machine.keeps_manager
    assert machine.process is ProcessState.STOPPING


def test_a_manager_is_not_started_again_with_a_workers_certificate() -> None:
    machine = promoted()
    machine.tell(certificate(Role.WORKER))
    assert machine.take() is Step.RENEW
    machine.tell(ManagerEnded())
    assert not machine.keeps_manager
    machine.tell(certificate(Role.MANAGER))
    machine.tell(StepDone())
    does(machine, Step.START)


# A restart


def test_a_restart_begins_with_the_manager_and_writes_nothing() -> None:
    machine = manager()
    does(machine, Step.START)
    rests(machine)


def test_a_promotion_cut_short_after_the_certificate_makes_a_manager_all_the_same() -> None:
    """The certificate decides; and the role follows, whether it stays a manager or not."""
    machine = manager(noted=Role.WORKER)
    does(machine, Step.START, Step.WRITE_MANAGER)
    machine = manager(noted=Role.WORKER)
    does(machine, Step.START)
    machine.tell(DEMOTE)
    does(machine, Step.STOP, Step.WRITE_WORKER, Step.ERASE_LOG, Step.RENEW, renewed=Role.WORKER)


def test_a_log_is_not_erased_under_a_manager_that_outlived_the_daemon() -> None:
    """A renewal of before made its certificate a worker's, then the daemon was killed."""
    machine = worker(noted=Role.MANAGER, log=LogState.WHOLE, manager_runs=True)
    rests(machine)
    machine.tell(DEMOTE)
    does(machine, Step.STOP, Step.WRITE_WORKER, Step.ERASE_LOG)
    rests(machine)


def test_a_manager_that_outlived_the_daemon_is_adopted() -> None:
    machine = manager(manager_runs=True)
    assert machine.process is ProcessState.ADRIFT
    does(machine, Step.START)


def test_an_erasure_cut_short_is_finished_before_a_manager_starts() -> None:
    machine = manager(log=LogState.ERASING)
    does(machine, Step.ERASE_LOG, Step.START)
    machine = manager(log=LogState.ERASING, manager_runs=True)
    does(machine, Step.STOP, Step.ERASE_LOG, Step.START)


# Endings


def test_a_manager_that_left_is_stopped_before_its_tasks_are() -> None:
    """Stopping them may take minutes: it would hear of its removal, end, be started again and be taken in again."""
    machine = promoted()
    machine.tell(Ends(Ending.LEAVE))
    does(machine, Step.ASK_OWN_MANAGER, Step.STOP, Step.STOP_TASKS, Step.FORGET)
    rests(machine)
    assert machine.is_over


def test_a_manager_that_ends_while_it_leaves_is_not_started_again() -> None:
    machine = promoted()
    machine.tell(Ends(Ending.LEAVE))
    assert machine.take() is Step.ASK_OWN_MANAGER
    machine.tell(ManagerEnded())
    assert not machine.keeps_manager
    machine.tell(StepFailed("unavailable"))
    does(machine, Step.STOP, Step.ASK_PEERS, Step.STOP_TASKS, Step.FORGET)


def test_the_others_are_asked_when_the_own_manager_does_not_answer() -> None:
    machine = manager()
    does(machine, Step.START)
    machine.tell(Ends(Ending.LEAVE))
    does(machine, Step.STOP, Step.ASK_PEERS, Step.STOP_TASKS, Step.FORGET)


def test_a_worker_asks_nobody() -> None:
    machine = worker()
    machine.tell(Ends(Ending.LEAVE))
    does(machine, Step.STOP, Step.STOP_TASKS, Step.FORGET)


def test_a_join_that_failed_leaves_no_member() -> None:
    """Its manager may have been taken in before it ended."""
    machine = manager(log=LogState.NONE)
    does(machine, Step.START)
    machine.tell(Ends(Ending.ABANDON))
    does(machine, Step.STOP, Step.ASK_PEERS, Step.FORGET)


@pytest.mark.parametrize("under_way", [Step.RENEW, Step.WRITE_MANAGER, Step.START])
def test_a_leave_wins_over_a_promotion(under_way: Step) -> None:
    machine = worker()
    machine.tell(PROMOTE)
    while (step := machine.take()) is not under_way:
        if step is Step.RENEW:
            machine.tell(certificate(Role.MANAGER))
        machine.tell(StepDone())
    machine.tell(Ends(Ending.LEAVE))
    assert machine.take() is None  # until nobody carries it out any more
    machine.tell(Interrupted())
    machine.tell(PROMOTE)
    is_manager = under_way is not Step.RENEW
    does(machine, Step.STOP, *[Step.ASK_PEERS] * is_manager, Step.STOP_TASKS, Step.FORGET)


@pytest.mark.parametrize("failing", [step for step in ENDINGS[Ending.LEAVE] if step is not Step.ASK_PEERS])
def test_a_leave_goes_on_where_it_failed(failing: Step) -> None:
    machine = promoted()
    machine.tell(Ends(Ending.LEAVE))
    while (step := machine.take()) is not failing:
        machine.tell(StepDone())
    machine.tell(StepFailed())
    machine.tell(Ends(Ending.LEAVE))
    assert (machine.take() is failing) == (step not in MAY_FAIL)


def test_a_daemon_that_ends_stops_its_manager_and_forgets_nothing() -> None:
    machine = promoted()
    machine.tell(Ends(Ending.CLOSE))
    does(machine, Step.STOP)
    assert machine.is_over
    assert machine.log is LogState.WHOLE
