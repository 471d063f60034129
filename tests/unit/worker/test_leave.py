"""A manager that leaves is out of the Raft group afterwards, whatever happens meanwhile (features A1.18)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from base.unix_rpc import UnixServer
from pki.certificates import Role
from pki.grpc_credentials import server_credentials
from pki.node_certificate import NodeCertificate
from proto.ca_pb2 import ManagerAddress
from proto.control_pb2 import GetManagerInfoRequest, GetManagerInfoResponse
from proto.control_pb2_grpc import ControlServicer, add_ControlServicer_to_server
from proto.node_pb2 import LocalState, ManagerConfig
from proto.objects_pb2 import NodeDescription
from proto.raft_pb2 import RaftJoinRequest, RaftJoinResponse, RaftLeaveRequest, RaftLeaveResponse
from proto.raft_pb2_grpc import RaftMembershipServicer, add_RaftMembershipServicer_to_server
from proto.specs_pb2 import NodeRole
from tests.unit.agent.fakes import FakeExecutor
from tests.unit.pki.support import Authority
from worker.agent.executor import ContainerPhase, Observation
from worker.membership.host import Host
from worker.membership.participation import Participation
from worker.membership.parts import OnExit, ParticipationParts
from worker.membership.state_folder import CERTIFICATES, MANAGER_SOCKET
from worker.membership.zygote import Zygote

OWN, OTHER = "n1", "n2"


class Process:
    """The manager process, as far as its node can see."""

    def __init__(self, events: list[str]) -> None:
        self._events = events
        self.running = False
        self._ended = asyncio.Event()
        self.failures: list[OSError] = []
        self.on_exit: OnExit = lambda _config: None

    def __call__(self, _zygote: Zygote, _lock: Path, on_exit: OnExit) -> Process:
        self.on_exit = on_exit
        return self

    async def start(self, _config: ManagerConfig) -> None:
        self.running = True

    async def stop(self) -> None:
        if self.failures:
            raise self.failures.pop()
        self._events.append("manager stopped")
        self.running = False
        self._ended.set()

    async def wait_running(self) -> None:
        await asyncio.Event().wait()  # the tests ask for its answer themselves

    async def wait_ended(self) -> None:
        await self._ended.wait()


class Executor(FakeExecutor):
    """With one task, whose stop is told."""

    def __init__(self, events: list[str]) -> None:
        super().__init__({"t1": Observation("t1", "c1", ContainerPhase.RUNNING)})
        self._events = events

    async def stop(self, task_id: str, grace_s: float | None) -> None:
        self._events.append("task stopped")
        await super().stop(task_id, grace_s)


class Service(RaftMembershipServicer):
    """What a manager answers to a Leave: yes, or a code."""

    def __init__(
        self,
        name: str,
        events: list[str],
        refusal: grpc.StatusCode | None,
        on_call: Callable[[], None] = lambda: None,
    ) -> None:
        self._name, self._events, self._refusal, self._on_call = name, events, refusal, on_call

    async def Leave(  # noqa: N802 - the RPC's name
        self, request: RaftLeaveRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> RaftLeaveResponse:
        assert request.node_id == OWN
        self._events.append(f"{self._name} asked")
        self._on_call()
        if self._refusal is not None:
            await context.abort(self._refusal, "no")
        return RaftLeaveResponse()

    async def Join(  # noqa: N802 - the RPC's name
        self, request: RaftJoinRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> RaftJoinResponse:
        raise NotImplementedError


class Answering(ControlServicer):
    async def GetManagerInfo(  # noqa: N802 - the RPC's name
        self, request: GetManagerInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> GetManagerInfoResponse:
        return GetManagerInfoResponse()


class Fixture:
    """One manager of a cluster. It answers while ``serve_own`` serves."""

    def __init__(self, folder: Path) -> None:
        self.events: list[str] = []
        self.authority = Authority()
        self.host = Host(folder, folder, Zygote("no:manager"), Executor(self.events), NodeDescription)
        credentials = self.authority.credentials(Role.MANAGER, node_id=OWN)
        certificate = NodeCertificate.create(folder / CERTIFICATES, credentials)
        address = "127.0.0.1:2377"
        state = LocalState(node_id=OWN, cluster_id="c", listen_addr=address, advertise_addr=address)
        state.role = NodeRole.NODE_ROLE_MANAGER
        state.managers.add(node_id=OWN, grpc_addr="127.0.0.1:1")
        self.process = Process(self.events)
        self.participation = Participation(self.host, state, certificate, ParticipationParts(process=self.process))
        self.on_own_asked: Callable[[], None] = lambda: None
        self._folder = folder
        self._servers = AsyncExitStack()

    async def serve_own(self, refusal: grpc.StatusCode | None = None) -> None:
        server = UnixServer()
        add_RaftMembershipServicer_to_server(Service("own", self.events, refusal, lambda: self.on_own_asked()), server)
        add_ControlServicer_to_server(Answering(), server)  # type: ignore[abstract]  # as much of it as is called here
        server.add_insecure_port(f"unix:{self.host.run_dir / MANAGER_SOCKET}")
        await self._started(server)
        await self.participation.wait_manager(60)

    async def serve_other(self, refusal: grpc.StatusCode | None = None) -> None:
        node_id = f"{OTHER}-{len(self.participation.state.managers)}"
        credentials = self.authority.credentials(Role.MANAGER, node_id=node_id)
        certificate = NodeCertificate.create(self._folder / node_id, credentials)
        server = grpc.aio.server()
        add_RaftMembershipServicer_to_server(Service(node_id, self.events, refusal), server)
        port = server.add_secure_port("127.0.0.1:0", server_credentials(certificate))
        self.participation.state.managers.append(ManagerAddress(node_id=node_id, grpc_addr=f"127.0.0.1:{port}"))
        await self._started(server)

    async def _started(self, server: grpc.aio.Server) -> None:
        await server.start()
        self._servers.push_async_callback(server.stop, None)

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[Fixture]:
        async with self._servers:
            yield self


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Fixture]:
    async with Fixture(tmp_path).closed() as made:
        await made.participation.start()
        yield made
        await made.participation.stop()


async def test_a_manager_that_left_is_stopped_before_its_tasks_are(manager: Fixture) -> None:
    """Stopping them may take minutes: it would hear of its removal, end, be started again and be taken in again."""
    await manager.serve_own()
    await manager.participation.leave()
    assert manager.events == ["own asked", "manager stopped", "task stopped"]


async def test_a_manager_that_ends_while_it_leaves_is_not_started_again(manager: Fixture) -> None:
    restarted: list[ManagerConfig | None] = []

    def ends() -> None:
        restarted.append(manager.process.on_exit(ManagerConfig()))

    await manager.serve_own()
    ends()
    await manager.participation.wait_manager(60)
    manager.on_own_asked = ends
    await manager.participation.leave()
    assert [config is not None for config in restarted] == [True, False]


async def test_the_others_are_asked_when_the_own_manager_does_not_answer_yet(manager: Fixture) -> None:
    """It may be a member by now: promoted or restarted a moment ago, or the answer of its Join was lost."""
    await manager.serve_other(grpc.StatusCode.UNAVAILABLE)
    await manager.serve_other()
    await manager.serve_other()
    await manager.participation.leave()
    assert manager.events == ["manager stopped", f"{OTHER}-1 asked", f"{OTHER}-2 asked", "task stopped"]


async def test_the_others_are_asked_when_the_own_manager_ends_over_the_question(manager: Fixture) -> None:
    await manager.serve_own(grpc.StatusCode.UNAVAILABLE)
    await manager.serve_other(grpc.StatusCode.UNAVAILABLE)
    await manager.serve_other()
    await manager.serve_other()
    await manager.participation.leave()
    assert manager.events == ["own asked", "manager stopped", f"{OTHER}-1 asked", f"{OTHER}-2 asked", "task stopped"]


async def test_a_refusal_is_taken_for_an_answer(manager: Fixture) -> None:
    """The last one of a quorum, say: who forces a leave gets it."""
    await manager.serve_own(grpc.StatusCode.FAILED_PRECONDITION)
    await manager.serve_other()
    await manager.participation.leave()
    assert manager.events == ["own asked", "manager stopped", "task stopped"]


async def test_a_node_that_was_no_member_has_nothing_more_to_ask(manager: Fixture) -> None:
    await manager.serve_other(grpc.StatusCode.FAILED_PRECONDITION)
    await manager.serve_other()
    await manager.participation.leave()
    assert manager.events == ["manager stopped", f"{OTHER}-1 asked", "task stopped"]


async def test_a_join_that_failed_leaves_no_member(manager: Fixture) -> None:
    """Its manager may have been taken in before it ended."""
    await manager.serve_other()
    await manager.participation.abandon()
    assert manager.events == ["manager stopped", f"{OTHER}-1 asked"]
    assert not (manager.host.state_dir / CERTIFICATES).exists()


async def test_a_leave_that_failed_goes_on_where_it_was(manager: Fixture) -> None:
    await manager.serve_own()
    manager.process.failures.append(OSError("Too many open files"))
    with pytest.raises(OSError, match="Too many open files"):
        await manager.participation.leave()
    assert (manager.host.state_dir / CERTIFICATES).exists()
    await manager.participation.leave()
    assert manager.events == ["own asked", "manager stopped", "task stopped"]
    assert not (manager.host.state_dir / CERTIFICATES).exists()
