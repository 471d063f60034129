"""What a report does to a task (features A6.01, A6.03)."""

from __future__ import annotations

from itertools import product

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from manager.dispatcher import status
from manager.model.transitions import REPORTABLE, TRANSITIONS, UNASSIGNED, Owner
from proto.dispatcher_pb2 import TaskStatusUpdate
from proto.objects_pb2 import NetworkAttachment, PortStatus, TaskState, TaskStatus
from proto.specs_pb2 import PortConfig
from tests.unit.dispatcher.support import make_task

RUNNING = TaskState.TASK_STATE_RUNNING
UNKNOWN_FIELD = b"\xfa\x7f" + b"\xc0\x84\x3d" + b"x" * 1_000_000
"""Number 2047, a million bytes."""
NOW = Timestamp(seconds=1_800_000_000)


def report(state: int, **fields: object) -> TaskStatusUpdate:
    update = TaskStatusUpdate(task_id="t1")
    update.status.CopyFrom(TaskStatus(**fields))  # type: ignore[arg-type]  # the caller names real fields
    update.status.state = state  # type: ignore[assignment]  # any number may come over the wire
    return update


@given(st.lists(st.integers(0, 900) | st.sampled_from(TaskState.values()), max_size=10))
def test_states_only_rise_and_final_ones_stay(states: list[int]) -> None:
    task = make_task("t1", "n1")
    for state in states:
        before = task.status.state
        update = report(state)
        if status.refusal(task, update, "n1") == "":
            task = status.apply(task, update, NOW) or task
        assert task.status.state >= before
        assert before <= RUNNING or task.status.state == before
        assert task.status.state in {*REPORTABLE, TaskState.TASK_STATE_ASSIGNED}


def test_another_nodes_task_is_none_of_its_business() -> None:
    assert status.refusal(make_task("t1", "n1"), report(RUNNING), "n2") == "the task is not this node's"
    assert status.refusal(None, report(RUNNING), "n2") == "no such task"


def test_a_task_that_waits_for_its_node_is_not_the_nodes_yet() -> None:
    """One of a global service is bound to its node before the scheduler gave it to it."""
    for state in UNASSIGNED:
        task = make_task("t1", "n1")
        task.status.state = state
        assert status.refusal(task, report(RUNNING), "n1") == "the task is not assigned yet"


def test_what_is_let_through_is_what_an_agent_may_do() -> None:
    for before, after in product(TaskState.values(), TaskState.values()):
        task = make_task("t1", "n1")
        task.status.state = before
        same = before == after and after in REPORTABLE
        allowed = same or (before, after) in TRANSITIONS[Owner.AGENT]
        assert (status.refusal(task, report(after), "n1") == "") == allowed


def test_the_same_news_twice_is_no_change() -> None:
    task = status.apply(make_task("t1", "n1"), report(RUNNING, message="started"), NOW)
    assert task is not None
    assert status.apply(task, report(RUNNING, message="started", timestamp=Timestamp(seconds=5)), NOW) is None
    assert task.status.running_since == NOW


@pytest.mark.parametrize("state", [state for state in REPORTABLE if state > RUNNING])
def test_what_was_said_of_a_tasks_end_is_the_last_word(state: int) -> None:
    """A worker that is taken over tells no other story of what was, and writes none to the log for ever."""
    ended = status.apply(make_task("t1", "n1"), report(state, err="why", message="then"), NOW)
    assert ended is not None
    again = report(state, err="another story", message="then")
    again.networks_attachments.append(NetworkAttachment(network_id="bridge", addresses=["172.17.0.2"]))
    assert status.refusal(ended, again, "n1") == ""
    assert status.apply(ended, again, NOW) is None


def test_a_run_that_no_manager_saw_counts_by_its_length() -> None:
    seen = report(TaskState.TASK_STATE_FAILED, running_since=Timestamp(seconds=100), timestamp=Timestamp(seconds=160))
    task = status.apply(make_task("t1", "n1"), seen, NOW)
    assert task is not None
    assert task.status.running_since.seconds == NOW.seconds - 60
    never = status.apply(make_task("t1", "n1"), report(TaskState.TASK_STATE_REJECTED), NOW)
    assert never is not None
    assert not never.status.HasField("running_since")


def test_hostile_fields_are_cut_to_size() -> None:
    update = report(RUNNING, err="x" * 100_000, timestamp=Timestamp(seconds=2**62, nanos=-1))
    update.networks_attachments.append(NetworkAttachment(network_id="overlay", addresses=["10.0.0.1"]))
    update.networks_attachments.append(NetworkAttachment(network_id="bridge", addresses=["172.17.0.2"] * 100))
    task = status.apply(make_task("t1", "n1"), update, NOW)
    assert task is not None
    assert len(task.status.err) == status.TEXT_LENGTH_MAX
    assert task.status.timestamp == NOW
    assert [attachment.network_id for attachment in task.networks_attachments] == ["bridge"]
    assert len(task.networks_attachments[0].addresses) == status.ATTACHMENT_ADDRESSES_MAX


@pytest.mark.parametrize(
    "update",
    [
        TaskStatusUpdate(
            task_id="t1",
            networks_attachments=[NetworkAttachment(network_id="bridge", addresses=["1" * 1_000_000] * 16)],
        ),
        TaskStatusUpdate(
            task_id="t1", status=TaskStatus(port_status=PortStatus(ports=[PortConfig(name="p" * 10_000)] * 1024))
        ),
        TaskStatusUpdate(task_id="t1", status=TaskStatus.FromString(UNKNOWN_FIELD)),
        TaskStatusUpdate(
            task_id="t1", networks_attachments=[NetworkAttachment.FromString(b"\n\x06bridge" + UNKNOWN_FIELD)]
        ),
    ],
    ids=["addresses", "ports", "a field that nobody knows", "one in an attachment"],
)
def test_no_report_makes_a_task_large(update: TaskStatusUpdate) -> None:
    """It is kept by every manager, told with every list, and written anew with every report."""
    update.status.state = RUNNING
    task = status.apply(make_task("t1", "n1"), update, NOW)
    assert task is not None
    assert task.status.state == RUNNING
    assert task.ByteSize() < 32 * 1024
