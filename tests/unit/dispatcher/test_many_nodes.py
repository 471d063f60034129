"""What one node does is no work for the sessions of all others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial

from manager.dispatcher.looking import Answer
from manager.dispatcher.session import AgentSession
from manager.dispatcher.watching import Lookout, LookTarget, NodeWatch
from proto.objects_pb2 import Node
from tests.unit.dispatcher.support import Manager, leading_manager, make_node
from tests.waiting import until


async def nobody(host: str, port: int, *, within_s: float = 1.0) -> Answer:
    return Answer.UNABLE


async def no_answers(hosts: Sequence[LookTarget]) -> dict[str, bool]:
    return {}


async def nothing() -> None:
    pass


async def quiet_session(manager: Manager) -> AgentSession:
    """A session that knows everything."""
    await manager.add(make_node("n1"))
    session = AgentSession("s", "n1", boot_nonce="b", addr="", period_s=5.0)
    await until(lambda: manager.dispatcher._leading)
    manager.dispatcher._sessions["n1"] = session
    session.message_due.clear()
    return session


def move(address: str, node: Node) -> None:
    node.grpc_addr = address


async def test_a_worker_that_joins_or_leaves_wakes_no_session_but_its_own() -> None:
    async with leading_manager() as manager:
        session = await quiet_session(manager)
        await manager.add(make_node("n2"))
        await manager.edit("nodes", "n2", lambda node: node.spec.labels.update({"zone": "a"}))
        await manager.store.update(lambda working: working.remove(working.nodes.find("n2")))
        assert not session.message_due.is_set()


async def test_a_manager_that_comes_moves_or_goes_wakes_every_session() -> None:
    async with leading_manager() as manager:
        session = await quiet_session(manager)
        await manager.add(make_node("n2"))
        for address in ("a:7946", "b:7946", ""):
            await manager.edit("nodes", "n2", partial(move, address))
            assert session.message_due.is_set()
            session.message_due.clear()


async def test_nodes_that_are_due_one_after_the_other_are_judged_together() -> None:
    told: list[Sequence[str]] = []

    async def on_dead(node_ids: Sequence[str]) -> None:
        told.append(node_ids)

    lookout = Lookout(look_at=nobody, ask_others=no_answers, hand_over=nothing, port=1)
    watch = NodeWatch({}, lookout, on_dead=on_dead, monotonic=time.monotonic)
    names = {f"n{number}" for number in range(100)}
    for number, name in enumerate(sorted(names)):
        watch.expect(name, within_s=0.1 + number / 1000, period_s=5.0)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(watch.run())
        await until(lambda: {name for some in told for name in some} == names)
        running.cancel()
    assert len(told) <= 4, "a look at all times a node"
