"""How statuses travel: on the session's stream, one report at a time, acknowledged when they are in the log (A3.09)."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from manager.consensus.port import NoQuorumError
from manager.dispatcher import status, status_intake
from manager.dispatcher.intake import CONFLICT_ATTEMPTS_MAX
from manager.dispatcher.reports import REPORT_LENGTH_MAX, REPORT_SIZE_BYTES_MAX, PendingReport, Reports, invalid_report
from manager.store import SequenceConflictError, TransactionTooLargeError, Working
from manager.store.store import TRANSACTION_OBJECTS_MAX
from proto.dispatcher_pb2 import SessionRequest, StatusReport, TaskStatusUpdate
from proto.objects_pb2 import NetworkAttachment, NodeDescription, Task, TaskState, TaskStatus
from proto.store_pb2 import StoreAction
from tests.unit.dispatcher.support import AgentHost, Manager, RawAgent, channel_of, make_node, make_task
from tests.unit.dispatcher.test_status import NOW
from tests.waiting import until
from worker.agent import reporter

READY, RUNNING = TaskState.TASK_STATE_READY, TaskState.TASK_STATE_RUNNING


def update(task_id: str, state: TaskState.ValueType = RUNNING) -> TaskStatusUpdate:
    return TaskStatusUpdate(task_id=task_id, status=TaskStatus(state=state))


def report_of(node_id: str, count: int, written: list[str]) -> PendingReport:
    return PendingReport(
        node_id, [update(f"{node_id}-{number}") for number in range(count)], lambda report: written.append(node_id)
    )


# ------------------------------------------------------------ whose turn it is


def test_what_many_nodes_say_is_one_entry() -> None:
    reports, written = Reports(), list[str]()
    for number in range(20):
        reports.put(report_of(f"n{number}", 10, written))
    pieces = reports.take(200)
    assert len(pieces) == 20
    assert written == []
    reports.written(pieces)
    assert len(written) == 20
    assert reports.take(200) == []


def test_a_node_that_tells_of_a_thousand_tasks_keeps_none_waiting() -> None:
    reports, written = Reports(), list[str]()
    reports.put(report_of("large", 1000, written))
    reports.put(report_of("small", 1, written))
    reports.written(reports.take(200))
    assert written == ["small"]
    entries = 1
    while pieces := reports.take(200):
        assert len(pieces) == 1
        reports.written(pieces)
        entries += 1
    assert written == ["small", "large"]
    assert entries <= 6, "alone it has whole entries"


def test_what_is_nobodys_any_more_is_not_written() -> None:
    reports, written = Reports(), list[str]()
    gone, half = report_of("gone", 5, written), report_of("half", 500, written)
    reports.put(gone)
    reports.put(half)
    reports.drop(gone)
    pieces = reports.take(200)
    assert [piece.report for piece in pieces] == [half]
    reports.drop(half)
    reports.written(pieces)
    assert reports.take(200) == []
    assert written == []


@pytest.mark.parametrize(
    ("report", "is_free", "problem"),
    [
        (StatusReport(number=3, updates=[update("t")]), True, ""),
        (StatusReport(number=3), True, ""),
        (StatusReport(number=3), False, "report 3 came before report 2 was acknowledged"),
        (StatusReport(number=2), True, "report 2, want 3"),
        (StatusReport(number=3, updates=[update("t")] * 1001), True, "1001 statuses in one report, at most 1000"),
        (StatusReport(number=3, updates=[update("t" * REPORT_SIZE_BYTES_MAX)]), True, "bytes, at most 1048576"),
    ],
)
def test_what_a_report_has_to_be(report: StatusReport, is_free: bool, problem: str) -> None:
    found = invalid_report(report, number=3, is_free=is_free)
    assert found.endswith(problem)
    assert bool(found) == bool(problem)


def test_an_agent_stays_within_what_a_manager_takes() -> None:
    assert reporter.REPORT_LENGTH_MAX <= REPORT_LENGTH_MAX
    assert reporter.REPORT_SIZE_BYTES_MAX + reporter.UPDATE_SIZE_BYTES_MAX <= REPORT_SIZE_BYTES_MAX
    assert reporter.TEXT_LENGTH_MAX >= status.TEXT_LENGTH_MAX


_TIMES = st.builds(Timestamp, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1))


@given(
    st.builds(
        TaskStatus,
        state=st.integers(-(2**31), 2**31 - 1) | st.sampled_from(TaskState.values()),
        timestamp=st.none() | _TIMES,
        running_since=st.none() | _TIMES,
        message=st.text(),
        err=st.text(),
    ),
    st.lists(st.builds(NetworkAttachment, network_id=st.just("bridge"), addresses=st.lists(st.text())), max_size=3),
)
def test_whatever_a_worker_says_of_a_task_can_be_dealt_with(
    said: TaskStatus, attachments: list[NetworkAttachment]
) -> None:
    """What cannot would end one leader after another."""
    task, update = make_task("t1", "n1"), TaskStatusUpdate(task_id="t1", status=said, networks_attachments=attachments)
    if not status.refusal(task, update, "n1"):
        status.apply(task, update, NOW)


# ------------------------------------------------------------ over the wire


async def test_a_report_that_is_out_of_order_ends_that_session_and_no_other(manager: Manager, host: AgentHost) -> None:
    host.start()
    await manager.add(make_node("n2"), make_task("t1", "n1"), make_task("t2", "n2"))
    async with channel_of("n2", manager.addr) as channel:
        agent = RawAgent(channel)
        await agent.open()
        await agent.report(update("t2", READY))
        await agent.send(update("t2"), number=7)
        assert (await agent.call.code(), await agent.call.details()) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "report 7, want 2",
        )
    assert manager.task("t2").status.state == READY
    await until(lambda: manager.task("t1").status.state == RUNNING)
    assert host.heard.sessions == [""]


async def test_a_message_that_is_none_ends_that_session_and_no_other(manager: Manager, host: AgentHost) -> None:
    host.start()
    await manager.add(make_node("n2"), make_task("t1", "n1"))
    async with channel_of("n2", manager.addr) as channel:
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream("/swarm.v1.Dispatcher/Session")()
        await call.write(SessionRequest(description=NodeDescription(), boot_nonce="a").SerializeToString())
        assert await call.read()
        await call.write(b"\xff\xff\xff")
        assert await call.code() is not grpc.StatusCode.OK
    await manager.forgotten("n2")
    await until(lambda: manager.task("t1").status.state == RUNNING)
    assert host.heard.sessions == [""]


async def test_statuses_of_all_nodes_share_entries(manager: Manager) -> None:
    count = 40
    await manager.add(*(make_node(f"m{number}") for number in range(count)))
    await manager.add(*(make_task(f"t{number}", f"m{number}") for number in range(count)))
    agents = []
    for number in range(count):
        agent = RawAgent(channel_of(f"m{number}", manager.addr))
        await agent.open()
        agents.append(agent)
    before = manager.proposals
    async with asyncio.TaskGroup() as group:
        for number, agent in enumerate(agents):
            group.create_task(agent.report(update(f"t{number}")))
    assert all(manager.task(f"t{number}").status.state == RUNNING for number in range(count))
    assert manager.proposals - before < count / 2
    for agent in agents:
        agent.call.cancel()


@pytest.mark.parametrize("end", [TaskState.TASK_STATE_SHUTDOWN, TaskState.TASK_STATE_FAILED])
async def test_a_task_that_is_to_be_removed_goes_with_the_report_of_its_end(
    manager: Manager, end: TaskState.ValueType
) -> None:
    """In one entry: an end that is written only to be deleted is nothing to anybody."""
    remove, shutdown = TaskState.TASK_STATE_REMOVE, TaskState.TASK_STATE_SHUTDOWN
    await manager.add(make_node("m1"), make_task("t1", "m1", desired_state=remove, state=RUNNING))
    await manager.add(make_task("t2", "m1", desired_state=remove), make_task("t3", "m1", desired_state=shutdown))
    async with channel_of("m1", manager.addr) as channel:
        agent = RawAgent(channel)
        await agent.open()
        before = manager.proposals
        await agent.report(update("t1", end), update("t2"), update("t3", end))
        assert manager.proposals == before + 1
        assert {task.id: task.status.state for task in manager.store.view.tasks} == {"t2": RUNNING, "t3": end}
        await agent.report(update("t1", end))  # told again, as by an agent that did not hear of it
        agent.call.cancel()


async def test_an_agent_whose_report_waits_is_heard_and_keeps_its_session(manager: Manager, host: AgentHost) -> None:
    """A loaded manager acknowledges late: what comes meanwhile is the next report, and nobody is dead."""
    host.start()
    await until(lambda: host.heard.sessions == [""])
    held = asyncio.Event()
    propose = manager.consensus.propose

    async def slow(data: bytes, **options: Any) -> object:
        await held.wait()
        return await propose(data, **options)

    await manager.add(make_task("t1", "n1"))
    manager.consensus.propose = slow  # type: ignore[method-assign]  # the real thing, later
    session = manager.dispatcher._sessions["n1"]
    await until(lambda: session.report is not None)
    await until(lambda: host.executor.called("t1") == ["prepare", "start"])
    session.probe()
    async with asyncio.timeout(30):
        await session.alive.wait()
    assert manager.task("t1").status.state < RUNNING
    held.set()
    await until(lambda: manager.task("t1").status.state == RUNNING)
    assert host.heard.sessions == [""]


async def test_a_log_that_takes_nothing_for_a_while_loses_nothing(
    manager: Manager, host: AgentHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_intake, "RETRY_S", 0.001)
    host.start()
    await until(lambda: host.heard.sessions == [""])
    propose, refused = manager.consensus.propose, 0
    await manager.add(make_task("t1", "n1"))

    async def refusing(data: bytes, **options: Any) -> object:
        nonlocal refused
        if refused < 5:
            refused += 1
            raise NoQuorumError("no quorum")
        return await propose(data, **options)

    manager.consensus.propose = refusing  # type: ignore[method-assign]
    await until(lambda: manager.task("t1").status.state == RUNNING)
    assert refused == 5
    assert host.heard.sessions == [""]


async def test_a_task_that_cannot_be_written_keeps_no_other_from_it(
    manager: Manager, host: AgentHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start()
    await until(lambda: host.heard.sessions == [""])
    commit = manager.store.commit

    async def choosy(working: Working, **options: Any) -> int:
        if any(action.update.task.id == "t2" for action in map(StoreAction.FromString, working.actions)):
            raise TransactionTooLargeError(size_bytes=5_000_000, objects=1)
        return await commit(working, **options)

    monkeypatch.setattr(manager.store, "commit", choosy)
    tasks = [make_task(f"t{number}", "n1") for number in range(4)]
    await manager.add(*tasks)
    for number in (0, 1, 3):
        await until(lambda number=number: manager.task(f"t{number}").status.state == RUNNING)  # type: ignore[misc]
    assert manager.task("t2").status.state < RUNNING


class Overtaken:
    """A store in which somebody else is always faster to write one task."""

    def __init__(self, manager: Manager, task_id: str) -> None:
        self.tries, self.is_over = 0, False
        self._commit, self._task_id = manager.store.commit, task_id

    async def commit(self, working: Working, **options: Any) -> int:
        actions = map(StoreAction.FromString, working.actions)
        if not self.is_over and any(action.update.task.id == self._task_id for action in actions):
            self.tries += 1
            await asyncio.sleep(0)
            raise SequenceConflictError(kind="task", object_id=self._task_id, expected=1, actual=2)
        return await self._commit(working, **options)


async def test_a_status_that_is_overtaken_again_and_again_is_not_lost(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last thing there is to say of a task: its agent would not say it again."""
    await manager.add(*[make_task(f"t{number}", "n1") for number in range(3)])
    overtaken = Overtaken(manager, "t1")
    monkeypatch.setattr(manager.store, "commit", overtaken.commit)
    async with channel_of("n1", manager.addr) as channel, asyncio.TaskGroup() as group:
        agent = RawAgent(channel)
        await agent.open()
        reporting = group.create_task(agent.report(*[update(f"t{number}") for number in range(3)]))
        await until(lambda: overtaken.tries > 5 * CONFLICT_ATTEMPTS_MAX)
        assert [manager.task(f"t{number}").status.state == RUNNING for number in range(3)] == [True, False, True]
        assert not reporting.done()
        overtaken.is_over = True
        await reporting
        assert manager.task("t1").status.state == RUNNING
        agent.call.cancel()


async def test_nobody_waits_for_an_entry_that_is_overtaken(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    await manager.add(make_node("n2"), make_task("t1", "n1"), make_task("t2", "n2"))
    overtaken = Overtaken(manager, "t1")
    monkeypatch.setattr(manager.store, "commit", overtaken.commit)
    async with channel_of("n1", manager.addr) as one, channel_of("n2", manager.addr) as other:
        stuck, agent = RawAgent(one), RawAgent(other)
        await stuck.open()
        await agent.open()
        await stuck.send(update("t1"))
        await until(lambda: overtaken.tries > CONFLICT_ATTEMPTS_MAX)
        async with asyncio.timeout(30):
            await agent.report(update("t2"))
        stuck.call.cancel()
        await manager.forgotten("n1")
        agent.call.cancel()


async def test_what_nobody_foresaw_in_a_status_ends_no_leader(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    await manager.add(make_task("t1", "n1"), make_task("t2", "n1"))
    apply = status.apply

    def fragile(task: Task, said: TaskStatusUpdate, now: Timestamp) -> Task | None:
        if task.id == "t1":
            raise ValueError("what is that")
        return apply(task, said, now)

    monkeypatch.setattr(status, "apply", fragile)
    async with channel_of("n1", manager.addr) as channel:
        agent = RawAgent(channel)
        await agent.open()
        async with asyncio.timeout(30):
            await agent.report(update("t1"), update("t2"))
        assert manager.task("t2").status.state == RUNNING
        agent.call.cancel()


async def test_a_session_whose_part_was_cut_short_ends(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task group makes nothing of it: the agent would be told nothing more, and say on that it lives."""

    async def cut_short(*_: Any) -> None:
        raise asyncio.CancelledError

    async with channel_of("n1", manager.addr) as channel:
        agent = RawAgent(channel)
        await agent.open()
        monkeypatch.setattr(manager.dispatcher._intake, "submit", cut_short)
        await agent.call.write(SessionRequest(description=NodeDescription(hostname="another")))
        async with asyncio.timeout(30):
            assert await agent.call.code() is grpc.StatusCode.UNAVAILABLE
        assert "description was cut short" in str(await agent.call.details())


async def test_what_a_leader_did_not_acknowledge_goes_to_the_next(manager: Manager, host: AgentHost) -> None:
    host.start()
    await until(lambda: host.heard.sessions == [""])
    await manager.add(make_task("t1", "n1"))
    propose = manager.consensus.propose

    async def never(data: bytes, **options: Any) -> object:
        await asyncio.Event().wait()
        return None

    manager.consensus.propose = never  # type: ignore[method-assign]
    session = manager.dispatcher._sessions["n1"]
    await until(lambda: session.report is not None)
    await manager.follow()
    manager.consensus.propose = propose  # type: ignore[method-assign]
    manager.lead()
    await until(lambda: manager.task("t1").status.state == RUNNING)


async def test_what_waits_of_many_is_proposed_together(manager: Manager) -> None:
    """Each entry for itself would wait for whatever else holds the loop."""
    count = 3 * TRANSACTION_OBJECTS_MAX
    for begin in range(0, count, TRANSACTION_OBJECTS_MAX):
        await manager.add(*(make_task(f"t{number}", "n1") for number in range(begin, begin + TRANSACTION_OBJECTS_MAX)))
    propose, together, most = manager.consensus.propose, 0, 0

    async def counted(data: bytes, **options: Any) -> object:
        nonlocal together, most
        together += 1
        most = max(most, together)
        await asyncio.sleep(0.01)
        together -= 1
        return await propose(data, **options)

    async with channel_of("n1", manager.addr) as channel:
        agent = RawAgent(channel)
        await agent.open()
        manager.consensus.propose = counted  # type: ignore[method-assign]
        intake = manager.dispatcher._statuses
        written: list[PendingReport] = []
        for begin in range(0, count, TRANSACTION_OBJECTS_MAX):
            updates = [update(f"t{number}") for number in range(begin, begin + TRANSACTION_OBJECTS_MAX)]
            intake.put(PendingReport("n1", updates, written.append))
        await until(lambda: len(written) == 3)
        agent.call.cancel()
    assert most > 1
    assert all(task.status.state == RUNNING for task in manager.store.view.tasks)


def test_an_entry_has_room_for_what_is_taken() -> None:
    reports = Reports()
    reports.put(report_of("n1", 1000, []))
    assert sum(len(piece.updates) for piece in reports.take(TRANSACTION_OBJECTS_MAX)) == TRANSACTION_OBJECTS_MAX
