"""Reporter, choice of manager, assignment set."""

from __future__ import annotations

import pytest

from proto.dispatcher_pb2 import AssignmentChange, AssignmentKind, AssignmentsMessage, TaskStatusUpdate
from proto.objects_pb2 import NetworkAttachment, TaskState, TaskStatus
from proto.specs_pb2 import PortConfig
from tests.unit.dispatcher.support import make_task
from tests.unit.dispatcher.test_status import UNKNOWN_FIELD
from worker.agent.assignments import AssignmentGapError, ReceivedAssignments
from worker.agent.contents import change_of
from worker.agent.managers import BACKOFF_S_MAX, ManagerChoice
from worker.agent.reporter import INTERIM_S, REPORT_LENGTH_MAX, TEXT_LENGTH_MAX, UPDATE_SIZE_BYTES_MAX, StatusReporter

READY, RUNNING = TaskState.TASK_STATE_READY, TaskState.TASK_STATE_RUNNING
PREPARING, FAILED = TaskState.TASK_STATE_PREPARING, TaskState.TASK_STATE_FAILED


def update(task_id: str, state: TaskState.ValueType) -> TaskStatusUpdate:
    return TaskStatusUpdate(task_id=task_id, status=TaskStatus(state=state))


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class TestReporter:
    def test_the_latest_of_each_task_goes(self) -> None:
        reporter = StatusReporter()
        reporter.put(update("t1", RUNNING))
        reporter.put(update("t2", RUNNING))
        reporter.put(update("t1", FAILED))
        reporter.put(update("t1", RUNNING))  # late and older
        assert reporter.take() == [update("t1", FAILED), update("t2", RUNNING)]
        reporter.acknowledge()
        assert reporter.take() == []

    def test_one_report_is_under_way_at_a_time(self) -> None:
        reporter = StatusReporter()
        reporter.put(update("t1", RUNNING))
        assert reporter.wake.is_set()
        reporter.take()
        reporter.wake.clear()
        reporter.put(update("t1", RUNNING))
        reporter.forget("t1")
        reporter.put(update("t2", RUNNING))
        assert not reporter.wake.is_set()
        assert reporter.take() == []
        reporter.acknowledge()
        assert reporter.wake.is_set()
        assert reporter.take() == [update("t2", RUNNING)]

    @pytest.mark.parametrize("part", ["err", "container", "ports", "addresses", "unknown"])
    def test_a_giant_is_cut_to_what_a_manager_takes(self, part: str) -> None:
        """One that is not ends each session in which it is sent, with all that the node has to say."""
        reporter = StatusReporter()
        giant = update("t1", FAILED)
        giant.status.message = "\N{GRINNING FACE}" * 10_000
        match part:
            case "err":
                giant.status.err = "\N{GRINNING FACE}" * 500_000
            case "container":
                giant.status.container_status.container_id = "\N{GRINNING FACE}" * 500_000
            case "ports":
                giant.status.port_status.ports.extend([PortConfig(name="p" * 1000)] * 2000)
            case "addresses":
                attachment = NetworkAttachment(network_id="bridge", addresses=["1" * 1000] * 2000)
                giant.networks_attachments.append(attachment)
            case _:
                giant.status.MergeFromString(UNKNOWN_FIELD)
        reporter.put(giant)
        (cut,) = reporter.take()
        assert (cut.task_id, cut.status.state) == ("t1", FAILED)
        assert len(cut.status.message) == TEXT_LENGTH_MAX
        assert 4000 < cut.ByteSize() < UPDATE_SIZE_BYTES_MAX

    def test_what_was_not_acknowledged_goes_again_unless_outdone(self) -> None:
        reporter = StatusReporter()
        reporter.put(update("t1", RUNNING))
        reporter.put(update("t2", RUNNING))
        reporter.take()
        reporter.put(update("t1", FAILED))
        reporter.put_back()
        assert reporter.take() == [update("t2", RUNNING), update("t1", FAILED)]
        reporter.acknowledge()
        reporter.put_back()
        assert reporter.take() == []

    def test_batches_are_bounded(self) -> None:
        reporter = StatusReporter()
        for number in range(REPORT_LENGTH_MAX + 5):
            reporter.put(update(f"t{number}", RUNNING))
        assert len(reporter.take()) == REPORT_LENGTH_MAX
        reporter.acknowledge()
        assert len(reporter.take()) == 5

    def test_a_task_that_is_gone_is_not_reported(self) -> None:
        clock = Clock()
        reporter = StatusReporter(clock)
        reporter.put(update("t1", RUNNING))
        reporter.put(update("t2", READY))
        reporter.forget("t1")
        reporter.forget("t2")
        clock.now_s += INTERIM_S
        assert reporter.next_due_s() is None
        assert reporter.take() == []

    def test_on_its_way_a_task_is_told_of_where_it_stays(self) -> None:
        clock = Clock()
        reporter = StatusReporter(clock)
        reporter.put(update("t1", PREPARING))
        reporter.put(update("t2", PREPARING))
        assert reporter.take() == []
        clock.now_s += INTERIM_S / 2
        reporter.put(update("t1", RUNNING))
        reporter.put(update("t2", READY))  # no new wait begins
        reporter.put(update("t3", PREPARING))
        assert reporter.take() == [update("t1", RUNNING)]
        assert reporter.next_due_s() is None, "a report is under way"
        reporter.acknowledge()
        assert reporter.next_due_s() == INTERIM_S
        clock.now_s = INTERIM_S
        assert reporter.take() == [update("t2", READY)]
        reporter.acknowledge()
        assert reporter.next_due_s() == 1.5 * INTERIM_S
        clock.now_s = 2 * INTERIM_S
        assert reporter.take() == [update("t3", PREPARING)]

    def test_what_is_further_on_the_way_takes_the_place_of_what_was_sent(self) -> None:
        clock = Clock()
        reporter = StatusReporter(clock)
        reporter.put(update("t1", PREPARING))
        clock.now_s = INTERIM_S
        assert reporter.take() == [update("t1", PREPARING)]
        reporter.put(update("t1", READY))
        reporter.put_back()
        clock.now_s = 2 * INTERIM_S
        assert reporter.take() == [update("t1", READY)]


class TestManagerChoice:
    def test_a_round_without_delay_then_longer_and_longer(self) -> None:
        choice = ManagerChoice(["a", "b"])
        seen = []
        for _ in range(16):
            seen.append(choice.next(0.5))
            choice.failed()
        assert [addr for addr, _ in seen[:2]] == ["a", "b"]
        delays = [delay_s for _, delay_s in seen[::2]]
        assert delays[:3] == [0.0, 0.1, 0.2]
        assert delays[-1] <= BACKOFF_S_MAX
        assert all(delay_s == 0.0 for _, delay_s in seen[1::2])
        alone = ManagerChoice(["a"])
        assert max(alone.next(1.0)[1] for _ in range(12)) == BACKOFF_S_MAX

    def test_the_leader_that_was_named_is_tried_at_once(self) -> None:
        choice = ManagerChoice(["a", "b"])
        assert choice.next(0.5) == ("a", 0.0)
        choice.failed(leader_addr="c")
        assert choice.next(0.5) == ("c", 0.0)

    def test_a_dead_leader_that_others_still_name_is_tried_once_a_round(self) -> None:
        choice = ManagerChoice(["dead", "b", "c"])
        choice.next(0.5)
        choice.opened()
        choice.failed()  # the session broke
        tried = []
        for _ in range(3):
            tried.append(choice.next(0.5)[0])
            choice.failed(leader_addr="" if tried[-1] == "dead" else "dead")
        assert tried == ["b", "dead", "c"]

    def test_managers_that_send_one_in_circles_do_not_make_it_spin(self) -> None:
        choice = ManagerChoice(["a"])
        delayed = 0
        for number in range(60):
            _, delay_s = choice.next(0.5)
            delayed += delay_s > 0
            choice.failed(leader_addr=f"host-{number}")
        assert delayed >= 3

    def test_no_manager_is_an_error_and_an_empty_list_no_news(self) -> None:
        with pytest.raises(LookupError):
            ManagerChoice([]).next(0.5)
        choice = ManagerChoice(["a"])
        choice.update([])
        assert choice.known == ("a",)


def complete(results_in: int, *task_ids: str, last_part: bool = True) -> AssignmentsMessage:
    changes = [change_of(make_task(task_id, "n1")) for task_id in task_ids]
    return AssignmentsMessage(
        type=AssignmentsMessage.TYPE_COMPLETE, results_in=results_in, changes=changes, last_part=last_part
    )


def incremental(applies_to: int, *changes: AssignmentChange) -> AssignmentsMessage:
    return AssignmentsMessage(
        type=AssignmentsMessage.TYPE_INCREMENTAL, applies_to=applies_to, results_in=applies_to + 1, changes=changes
    )


class TestReceivedAssignments:
    def test_parts_count_when_the_last_is_there(self) -> None:
        assignments = ReceivedAssignments("n1")
        assert assignments.apply(complete(1, "t1", last_part=False)).changed == ()
        assert assignments.apply(complete(1, "t2")).changed == ("t1", "t2")
        assert assignments.apply(complete(2, "t2")).removed == ("t1",)

    def test_a_gap_changes_nothing(self) -> None:
        assignments = ReceivedAssignments("n1")
        removal = AssignmentChange(kind=AssignmentKind.ASSIGNMENT_KIND_TASK, id="t1")
        with pytest.raises(AssignmentGapError):
            assignments.apply(incremental(1, removal))
        assignments.apply(complete(1, "t1"))
        for message in (incremental(2, removal), AssignmentsMessage()):
            with pytest.raises(AssignmentGapError):
                assignments.apply(message)
        assert set(assignments.contents.tasks) == {"t1"}
        assert assignments.apply(incremental(1, removal)).removed == ("t1",)

    def test_a_new_stream_begins_with_a_complete_set(self) -> None:
        assignments = ReceivedAssignments("n1")
        assignments.apply(complete(1, "t1"))
        assignments.restart()
        with pytest.raises(AssignmentGapError):
            assignments.apply(incremental(1))
        assert assignments.apply(complete(1, "t1")).complete

    def test_odd_changes_are_passed_over(self) -> None:
        assignments = ReceivedAssignments("n1")
        assignments.apply(complete(1, "t1"))
        applied = assignments.apply(
            incremental(
                1,
                change_of(make_task("t2", "another-node")),
                change_of(make_task("", "n1")),
                AssignmentChange(kind=AssignmentKind.ValueType(4711), id="t1"),
                AssignmentChange(kind=AssignmentKind.ASSIGNMENT_KIND_SECRET, id="t2", task=make_task("t2", "n1")),
                AssignmentChange(),
                AssignmentChange(kind=AssignmentKind.ASSIGNMENT_KIND_SECRET, id="unknown"),
                *(change_of(make_task(name, "n1")) for name in ("..", ".", "../t9", "a/b", "/etc", "t\n", "t" * 129)),
                AssignmentChange(kind=AssignmentKind.ASSIGNMENT_KIND_TASK, id="t1", task=make_task("t2", "n1")),
            )
        )
        assert applied.changed == ()
        assert set(assignments.contents.tasks) == {"t1"}
        assert assignments.assignment("t1") is None  # no spec
