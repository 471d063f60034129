"""What one node does is no work for the sessions of all others."""

from __future__ import annotations

from functools import partial

from manager.dispatcher.session import AgentSession
from proto.objects_pb2 import Node
from tests.unit.dispatcher.support import Manager, leading_manager, make_node
from tests.waiting import until


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
