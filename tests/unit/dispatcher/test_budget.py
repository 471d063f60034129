"""What a node may ask of the leader in a given time, and what becomes of who asks for more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from manager.dispatcher import budget
from manager.dispatcher.budget import Budgets
from proto.dispatcher_pb2 import AssignmentsRequest, SessionRequest, TaskStatusUpdate
from proto.dispatcher_pb2_grpc import DispatcherStub
from proto.objects_pb2 import NodeDescription, TaskState
from tests.unit.dispatcher.support import AgentHost, Manager, RawAgent, channel_of, make_node, make_task
from tests.waiting import until
from worker.agent import session as agent_session

RUNNING = TaskState.TASK_STATE_RUNNING


async def test_a_node_that_calls_in_a_tight_loop_is_refused_and_the_others_are_not(
    manager: Manager, host: AgentHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "REFUSAL_DELAY_S", 0.0)
    manager.dispatcher._budgets = Budgets(lambda: 0.0)  # nothing comes back
    await manager.add(make_node("n2"))
    async with channel_of("n2", manager.addr) as channel:
        agent = RawAgent(channel)
        await agent.open()
        while manager.dispatcher._budgets.take_call("n2"):
            pass
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await DispatcherStub(channel).Assignments(AssignmentsRequest(session_id=agent.session_id)).read()
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        host.start()
        await manager.add(make_task("t1", "n1"))
        await until(lambda: manager.task("t1").status.state == RUNNING)
        agent.call.cancel()


async def test_an_agent_that_is_to_slow_down_keeps_its_session_and_its_statuses(
    manager: Manager, host: AgentHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "REFUSAL_DELAY_S", 0.0)
    monkeypatch.setattr(agent_session, "SLOW_DOWN_S", 0.0)
    monkeypatch.setattr(budget, "REPORT_PAUSE_S", 0.0)
    budgets = manager.dispatcher._budgets
    refused: list[str] = []

    def stingy(what: str, take: Callable[..., bool]) -> Callable[..., bool]:
        def taken(*arguments: Any, **options: Any) -> bool:
            if refused.count(what) >= 3:
                return take(*arguments, **options)
            refused.append(what)
            return False

        return taken

    monkeypatch.setattr(budgets, "take_statuses", stingy("statuses", budgets.take_statuses))
    monkeypatch.setattr(budgets, "take_assignments", stingy("assignments", budgets.take_assignments))
    host.start()
    await manager.add(make_task("t1", "n1"))
    await until(lambda: manager.task("t1").status.state == RUNNING)
    assert sorted(refused) == ["assignments"] * 3 + ["statuses"] * 3
    assert host.heard.sessions == [""], "one session all along"


async def test_a_session_that_describes_its_node_all_the_time_has_to_wait(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "MESSAGE_PAUSE_S", 0.001)
    now_s = 0.0
    manager.dispatcher._budgets = Budgets(lambda: now_s)
    async with channel_of("n1", manager.addr) as channel:
        call = DispatcherStub(channel).Session()
        await call.write(SessionRequest(description=NodeDescription(hostname="first"), boot_nonce="a"))
        await call.read()
        with capture_logs() as lines:
            for number in range(8):
                await call.write(SessionRequest(description=NodeDescription(hostname=f"h{number}")))
            await until(lambda: any(line["event"] == "budget.exceeded" for line in lines))
        await until(lambda: manager.node("n1").description.hostname == "h3")
        now_s = 60.0
        await until(lambda: manager.node("n1").description.hostname == "h7")
        call.cancel()


def test_nothing_that_is_read_is_free() -> None:
    budgets = Budgets(lambda: 0.0)
    said = 0
    while budgets.take_statuses("n1", 0):
        said += 1
    assert said == 20_000
    large = 0
    while budgets.take_message("n1", described=False, size_bytes=1024 * 1024):
        large += 1
    assert large < 10


async def test_assignments_that_nobody_reads_are_few(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC keeps the message that it cannot send, of a call that gave way to a newer one, too."""
    monkeypatch.setattr(budget, "REFUSAL_DELAY_S", 0.0)
    tasks = [make_task(f"t{number}", "n1") for number in range(100)]
    for task in tasks:
        task.status.err = "x" * 10_000
    await manager.add(*tasks)
    async with channel_of("n1", manager.addr, ("grpc.http2.bdp_probe", 0)) as channel:
        agent = RawAgent(channel)
        await agent.open()
        request = AssignmentsRequest(session_id=agent.session_id)
        session = manager.dispatcher._sessions["n1"]
        unread = []
        for number in range(1, budget.SETS_AT_ONCE_MAX + 1):
            unread.append(DispatcherStub(channel).Assignments(request))
            await unread[-1].initial_metadata()
            await until(lambda number=number: session.assignments_stream == number)  # type: ignore[misc]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await DispatcherStub(channel).Assignments(request).read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        unread[0].cancel()
        await until(lambda: manager.dispatcher._budgets._sets["n1"] < budget.SETS_AT_ONCE_MAX)
        assert await DispatcherStub(channel).Assignments(request).read()
        agent.call.cancel()


def test_an_agent_with_a_thousand_tasks_stays_within_its_budget() -> None:
    budgets = Budgets(lambda: 0.0)
    for _ in range(10):  # every state there is, at one instant
        assert budgets.take_call("n1")
        assert budgets.take_statuses("n1", 1000)
    for _ in range(10):
        assert budgets.take_message("n1", described=False, size_bytes=256 * 1024)
    for _ in range(500):
        assert budgets.take_message("n1", described=False)
    assert budgets.take_assignments("n1")


def test_a_report_that_is_larger_than_the_budget_is_paid_for_afterwards() -> None:
    now_s = 0.0
    budgets = Budgets(lambda: now_s)
    assert budgets.take_statuses("n1", 1_000_000)
    assert not budgets.take_statuses("n1", 1)
    assert budgets.take_statuses("n2", 1)
    now_s = 600.0
    assert budgets.take_statuses("n1", 1)


async def test_a_node_fills_the_log_with_no_more_than_its_budget(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every manager writes it to its disk: 26 MB a second of one worker with 200 tasks, before this was counted."""
    monkeypatch.setattr(budget, "REPORT_PAUSE_S", 0.001)
    now_s = 0.0
    manager.dispatcher._budgets = Budgets(lambda: now_s)  # nothing comes back
    await manager.add(*[make_task(f"t{number}", "n1") for number in range(60)])
    async with channel_of("n1", manager.addr) as channel:
        agent = RawAgent(channel)
        await agent.open()
        sent: list[int] = []

        async def flood() -> None:
            while len(sent) < 20:
                updates = [TaskStatusUpdate(task_id=f"t{number}") for number in range(60)]
                for update in updates:
                    update.status.state = RUNNING
                    update.status.err = f"{len(sent)}" + "\N{GRINNING FACE}" * 4000
                await agent.report(*updates)
                sent.append(sum(update.ByteSize() for update in updates))

        async with asyncio.TaskGroup() as group:
            with capture_logs() as lines:
                flooding = group.create_task(flood())
                await until(lambda: any(line["event"] == "budget.exceeded" for line in lines))
            assert sum(sent) < 12_000_000
            assert len(sent) < 20
            before = len(sent)
            now_s = 60.0
            await until(lambda: len(sent) > before)  # the report that waited, and those after it
            flooding.cancel()
        agent.call.cancel()
