"""Assignments go out in rounds: one message for what changed since the last, and the loop is left to others between."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.descriptor import FieldDescriptor

from manager.dispatcher import rounds
from manager.dispatcher.assignments import AGENTS_OWN, WITH_EVERY_WRITE, is_news
from manager.dispatcher.rounds import Rounds
from manager.dispatcher.session import AgentSession
from manager.model.tasks import copy_task
from proto.dispatcher_pb2 import AssignmentsMessage, AssignmentsRequest
from proto.dispatcher_pb2_grpc import DispatcherStub
from proto.objects_pb2 import NetworkAttachment, Task, TaskState
from tests.unit.dispatcher.support import AgentHost, Manager, RawAgent, channel_of, make_node, make_task
from tests.unit.dispatcher.test_reports import update
from tests.waiting import until

RUNNING = TaskState.TASK_STATE_RUNNING


def session(node_id: str) -> AgentSession:
    return AgentSession("s", node_id, boot_nonce="a", addr="", period_s=5.0)


async def test_everybody_has_a_turn_and_others_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "AT_ONCE", 2)
    turns, sessions = Rounds(), [session(f"n{number}") for number in range(5)]
    for one in (*sessions, *sessions):
        turns.add(one)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(turns.run())
        most = 0
        while not all(one.assignments_due.is_set() for one in sessions):
            before = sum(one.assignments_due.is_set() for one in sessions)
            await asyncio.sleep(0)
            most = max(most, sum(one.assignments_due.is_set() for one in sessions) - before)
        assert most == 2
        sessions[0].take_marks()
        turns.add(sessions[0])
        await until(lambda: sessions[0].assignments_due.is_set())
        running.cancel()


async def test_what_comes_during_a_round_waits_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "AT_ONCE", 1)
    turns, first, second = Rounds(), session("n1"), session("n2")
    turns.add(first)
    turns.add(second)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(turns.run())
        await asyncio.sleep(0)
        assert first.assignments_due.is_set()
        first.take_marks()  # its stream has sent
        turns.add(first)
        while not second.assignments_due.is_set():
            assert not first.assignments_due.is_set(), "nobody has a second turn before all have had one"
            await asyncio.sleep(0)
        await until(lambda: first.assignments_due.is_set())
        running.cancel()


async def test_what_several_entries_give_a_node_meanwhile_is_one_message(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with channel_of("n1", manager.addr) as channel:
        agent = RawAgent(channel)
        await agent.open()
        call = DispatcherStub(channel).Assignments(AssignmentsRequest(session_id=agent.session_id))
        assert isinstance(await call.read(), AssignmentsMessage)
        held = manager.dispatcher._rounds._due
        monkeypatch.setattr(manager.dispatcher._rounds, "_wake", asyncio.Event())  # no round begins
        for number in range(3):
            await manager.add(make_task(f"t{number}", "n1"))
        assert [one.node_id for one in held] == ["n1"]
        manager.dispatcher._sessions["n1"].assignments_due.set()
        message = await call.read()
        assert isinstance(message, AssignmentsMessage)
        assert {change.id for change in message.changes if change.HasField("task")} == {"t0", "t1", "t2"}
        agent.call.cancel()


async def test_a_node_is_not_sent_what_it_reported(manager: Manager, host: AgentHost) -> None:
    await manager.add(make_node("n2"), make_task("t1", "n2"))
    async with channel_of("n2", manager.addr) as channel:
        agent = RawAgent(channel)
        await agent.open()
        one = manager.dispatcher._sessions["n2"]
        one.take_marks()
        await agent.report(update("t1", RUNNING))
        assert one.take_marks() == (set(), set(), set())
        await agent.report(update("t1", TaskState.TASK_STATE_FAILED))  # its needs end with it
        assert one.take_marks() == ({"t1"}, set(), set())
        agent.call.cancel()


def _other(field: FieldDescriptor) -> object:
    """A value that no field has by itself."""
    return "other" if isinstance(field.default_value, str) else 640


def test_only_what_the_agent_itself_says_is_no_news() -> None:
    task = make_task("t1", "n1", state=RUNNING)
    for field in Task.DESCRIPTOR.fields:
        if field.name == "status":
            continue  # below
        changed = copy_task(task)
        if field.is_repeated:
            getattr(changed, field.name).add()
        elif field.message_type is not None:
            inner = next(part for part in field.message_type.fields if part.message_type is None)
            setattr(getattr(changed, field.name), inner.name, _other(inner))
        else:
            setattr(changed, field.name, _other(field))
        if field.name in (*WITH_EVERY_WRITE, "id"):
            assert not is_news(task, changed), field.name
        else:  # an attachment without a network is none of the node's own
            assert is_news(task, changed), field.name
    own = copy_task(task)
    own.networks_attachments.append(NetworkAttachment(network_id="bridge", addresses=["172.17.0.2/16"]))
    own.status.state = TaskState.TASK_STATE_STARTING
    assert not is_news(task, own)
    assert set(AGENTS_OWN) == {"status", "networks_attachments"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (TaskState.TASK_STATE_PENDING, TaskState.TASK_STATE_ASSIGNED),
        (RUNNING, TaskState.TASK_STATE_FAILED),
        (RUNNING, TaskState.TASK_STATE_ORPHANED),
    ],
)
def test_that_a_task_is_given_out_and_that_it_has_ended_is_news(
    before: TaskState.ValueType, after: TaskState.ValueType
) -> None:
    assert is_news(make_task("t1", "n1", state=before), make_task("t1", "n1", state=after))
