"""What other managers see of hosts that the leader does not reach."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from manager.consensus.inprocess import InProcessConsensus
from manager.consensus.port import NodeID
from manager.dispatcher.looking import LOOK_S, Answer, Looker
from manager.dispatcher.watching import LookTarget
from manager.health import LOOK_HOSTS_MAX, HealthService
from manager.other_managers import OtherManagers
from proto.ca_pb2 import ManagerAddress
from proto.health_pb2 import LookRequest
from proto.health_pb2_grpc import HealthStub, add_HealthServicer_to_server


class Eyes(Looker):
    """Sees what it is told to see at a port."""

    def __init__(self, answers: dict[int, Answer]) -> None:
        super().__init__()
        self.answers = answers
        self.looked_at: list[tuple[str, int]] = []

    async def look(self, host: str, port: int, *, within_s: float = LOOK_S) -> Answer:
        self.looked_at.append((host, port))
        return self.answers[port]


@asynccontextmanager
async def manager(eyes: Looker) -> AsyncIterator[str]:
    """The address of a manager that looks with these eyes."""
    server = grpc.aio.server()
    add_HealthServicer_to_server(HealthService(InProcessConsensus(), eyes), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


class Heard(InProcessConsensus):
    """A leader that hears these managers."""

    def __init__(self, *node_ids: str) -> None:
        super().__init__()
        self._heard = frozenset(map(NodeID, node_ids))

    @property
    def reachable(self) -> frozenset[NodeID]:
        return self._heard | {self.node_id}


def others(consensus: Heard, **addrs: str) -> OtherManagers:
    managers = [ManagerAddress(node_id=node_id, grpc_addr=addr) for node_id, addr in addrs.items()]
    managers.append(ManagerAddress(node_id=consensus.node_id, grpc_addr="127.0.0.1:1"))
    return OtherManagers(consensus, lambda: managers, grpc.aio.insecure_channel)


HOSTS = [LookTarget("n1", "192.0.2.1", 1), LookTarget("n2", "192.0.2.2", 2), LookTarget("n3", "192.0.2.3", 3)]


async def test_an_answer_to_any_of_them_counts_and_who_could_not_look_says_nothing() -> None:
    one = Eyes({1: Answer.ANSWERED, 2: Answer.SILENT, 3: Answer.UNABLE})
    two = Eyes({1: Answer.SILENT, 2: Answer.SILENT, 3: Answer.UNABLE})
    async with manager(one) as first, manager(two) as second:
        found = await others(Heard("m1", "m2"), m1=first, m2=second).ask(HOSTS)
    assert found == {"n1": True, "n2": False}
    assert sorted(one.looked_at) == [(host.host, host.port) for host in HOSTS]


async def test_a_manager_that_raft_does_not_hear_or_that_is_in_doubt_itself_is_not_asked() -> None:
    eyes = Eyes({1: Answer.ANSWERED, 2: Answer.ANSWERED, 3: Answer.ANSWERED})
    async with manager(eyes) as addr:
        assert await others(Heard(), m1=addr).ask(HOSTS) == {}
        assert await others(Heard("n2"), n2=addr).ask(HOSTS) == {}
    assert eyes.looked_at == []


async def test_a_manager_that_does_not_answer_says_nothing() -> None:
    assert await others(Heard("m1"), m1="127.0.0.1:1").ask(HOSTS) == {}


async def test_more_hosts_than_fit_into_one_request_are_asked_about_in_parts() -> None:
    eyes = Eyes({1: Answer.SILENT})
    many = [LookTarget(f"n{number}", "192.0.2.1", 1) for number in range(LOOK_HOSTS_MAX + 1)]
    async with manager(eyes) as addr:
        found = await others(Heard("m1"), m1=addr).ask(many)
        assert found == {host.node_id: False for host in many}
        request = LookRequest(hosts=[LookRequest.Host(node_id=host.node_id) for host in many])
        async with grpc.aio.insecure_channel(addr) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await HealthStub(channel).Look(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
