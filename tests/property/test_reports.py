"""Statuses from agents to the store over any interleaving: nothing acknowledged is lost, nothing goes back (A6.01, A3.09).

The agents' reporters, the sessions' numbers, the leader's queue and what a report does to a task are the real ones; the
wire and the log are lists, and break anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from manager.dispatcher import status
from manager.dispatcher.reports import PendingReport, Piece, Reports, invalid_report
from manager.model.tasks import copy_task, has_ended
from proto.dispatcher_pb2 import StatusReport, TaskStatusUpdate
from proto.objects_pb2 import Task, TaskState, TaskStatus
from tests.unit.dispatcher.support import make_task
from worker.agent.reporter import INTERIM_S, StatusReporter

NODES = ("n1", "n2")
TASKS = {f"{node_id}-{letter}": node_id for node_id in NODES for letter in "abc"}
STEPS = (
    TaskState.TASK_STATE_ACCEPTED,
    TaskState.TASK_STATE_PREPARING,
    TaskState.TASK_STATE_RUNNING,
    TaskState.TASK_STATE_FAILED,
)
NOW = Timestamp(seconds=1_800_000_000)


@dataclass
class Session:
    """Both ends of one session, and what is on the way between them."""

    number: int = 0
    under_way: list[TaskStatusUpdate] = field(default_factory=list)
    to_manager: list[StatusReport] = field(default_factory=list)
    taken_up: int = 0
    report: PendingReport | None = None
    to_agent: list[int] = field(default_factory=list)


class Intake(RuleBasedStateMachine):
    """Two agents of three tasks each, and whoever leads."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, Task] = {task_id: make_task(task_id, node_id) for task_id, node_id in TASKS.items()}
        self.newest: dict[str, TaskState.ValueType] = {}
        self.acknowledged: dict[str, TaskState.ValueType] = {}
        self.now_s = 0.0
        self.reporters = {node_id: StatusReporter(lambda: self.now_s) for node_id in NODES}
        self.sessions = {node_id: Session() for node_id in NODES}
        self.reports = Reports()

    # -------------------------------------------------------- the agents

    @rule(task_id=st.sampled_from(list(TASKS)))
    def move(self, task_id: str) -> None:
        later = [state for state in STEPS if state > self.newest.get(task_id, 0)]
        if later:
            self.newest[task_id] = later[0]
            update = TaskStatusUpdate(task_id=task_id, status=TaskStatus(state=later[0]))
            self.reporters[TASKS[task_id]].put(update)

    @rule(passed_s=st.sampled_from([0.5 * INTERIM_S, INTERIM_S]))
    def wait(self, passed_s: float) -> None:
        self.now_s += passed_s

    @rule(node_id=st.sampled_from(NODES))
    def send(self, node_id: str) -> None:
        session, updates = self.sessions[node_id], self.reporters[node_id].take()
        if updates:
            assert not session.under_way, "one report is under way at a time"
            session.number += 1
            session.under_way = updates
            session.to_manager.append(StatusReport(number=session.number, updates=updates))

    @rule(node_id=st.sampled_from(NODES))
    def hear(self, node_id: str) -> None:
        session = self.sessions[node_id]
        if session.to_agent:
            assert session.to_agent.pop(0) == session.number
            for update in session.under_way:
                self.acknowledged[update.task_id] = update.status.state
            session.under_way = []
            self.reporters[node_id].acknowledge()

    @rule(node_id=st.sampled_from(NODES))
    def reconnect(self, node_id: str) -> None:
        session = self.sessions[node_id]
        self.reporters[node_id].put_back()
        if session.report is not None:
            self.reports.drop(session.report)
        self.sessions[node_id] = Session()

    # -------------------------------------------------------- the leader

    @rule(node_id=st.sampled_from(NODES))
    def take_up(self, node_id: str) -> None:
        session = self.sessions[node_id]
        if session.to_manager:
            report = session.to_manager.pop(0)
            number = session.taken_up + 1
            assert invalid_report(report, number=number, is_free=session.report is None) == ""
            session.taken_up = number

            def written(_: PendingReport) -> None:
                session.report = None
                session.to_agent.append(number)

            session.report = PendingReport(node_id, report.updates, written)
            self.reports.put(session.report)

    @precondition(lambda self: len(self.reports) > 0)
    @rule(length_max=st.integers(1, 4), leads_on=st.booleans(), is_in_log=st.booleans())
    def write(self, length_max: int, leads_on: bool, is_in_log: bool) -> None:
        """One entry; or the lead is lost while it is on its way, and it is in the log all the same, or is not."""
        pieces = self.reports.take(length_max)
        assert sum(len(piece.updates) for piece in pieces) <= length_max
        if leads_on or is_in_log:
            for piece in pieces:
                self._store(piece)
        if leads_on:
            self.reports.written(pieces)
        else:
            self.reports = Reports()
            for node_id in NODES:
                self.reconnect(node_id)

    def _store(self, piece: Piece) -> None:
        for update in piece.updates:
            task = self.stored[update.task_id]
            if status.refusal(task, update, piece.report.node_id):
                piece.report.pass_over(update.task_id, "")
                continue
            changed = status.apply(task, update, NOW)
            if changed is not None:
                assert not has_ended(task) or changed.status.state == task.status.state
                assert changed.status.state >= task.status.state
                self.stored[update.task_id] = changed

    @rule(task_id=st.sampled_from(list(TASKS)))
    def give_up(self, task_id: str) -> None:
        """The managers end a task, which then stays so whatever its agent says."""
        if not has_ended(self.stored[task_id]):
            ended = copy_task(self.stored[task_id])
            ended.status.state = TaskState.TASK_STATE_ORPHANED
            self.stored[task_id] = ended

    # -------------------------------------------------------- what holds

    @invariant()
    def nothing_acknowledged_is_lost(self) -> None:
        for task_id, state in self.acknowledged.items():
            assert self.stored[task_id].status.state >= state

    @invariant()
    def what_waits_is_bounded(self) -> None:
        assert len(self.reports) <= len(NODES) + sum(session.report is None for session in self.sessions.values())

    def teardown(self) -> None:
        """With time everything arrives."""
        for _ in range(50):
            self.wait(INTERIM_S)
            for node_id in NODES:
                self.send(node_id)
                self.take_up(node_id)
            while len(self.reports):
                self.write(length_max=2, leads_on=True, is_in_log=True)
            for node_id in NODES:
                self.hear(node_id)
        for task_id, state in self.newest.items():
            assert self.stored[task_id].status.state in (state, TaskState.TASK_STATE_ORPHANED)


TestIntake = Intake.TestCase
TestIntake.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
