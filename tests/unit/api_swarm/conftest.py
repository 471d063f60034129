"""The swarm routes in the real application, over the control API on real gRPC, the real store and a log of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from api.application import build
from api.swarm_routes import LocalLogs, routes
from base.unix_rpc import UnixChannel, UnixServer
from manager.consensus.inprocess import InProcessConsensus
from manager.control.rpc import control_handler
from proto.control_pb2_grpc import ControlStub
from tests.unit.control.managed import Managed, running_manager
from worker.membership.cluster_member import (
    InitRequest,
    JoinRequest,
    LocalNodeState,
    NotManagerError,
    SwarmInfo,
)

if TYPE_CHECKING:
    from proto.control_pb2_grpc import ControlAsyncStub

NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)


class Member:
    """A host whose place in a cluster the test decides."""

    def __init__(self) -> None:
        self.stub: ControlAsyncStub | None = None
        self.node_id = "node-1"
        self.requests: list[InitRequest | JoinRequest | bool] = []
        self.refusal: Exception | None = None

    def info(self) -> SwarmInfo:
        return SwarmInfo(LocalNodeState.ACTIVE, node_id=self.node_id, control_available=self.stub is not None)

    async def init(self, request: InitRequest) -> str:
        self._take(request)
        return self.node_id

    async def join(self, request: JoinRequest) -> None:
        self._take(request)

    async def leave(self, *, force: bool) -> None:
        self._take(force)

    def control(self) -> ControlAsyncStub:
        if self.stub is None:
            raise NotManagerError(NOT_A_MANAGER)
        return self.stub

    async def wait_control(self, timeout_s: float) -> ControlAsyncStub:
        return self.control()

    def _take(self, request: InitRequest | JoinRequest | bool) -> None:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal


@dataclass
class Swarm:
    """A manager's HTTP API, and what lies behind it."""

    manager: Managed
    member: Member
    client: TestClient[web.Request, web.Application]
    application: Callable[[LocalLogs | None], web.Application]

    async def get(self, path: str, **query: str) -> Any:
        """The JSON answer; the status must be a success."""
        async with self.client.get(path, params=query) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def post(self, path: str, body: object = None, *, status: int = 200, **query: str) -> Any:
        """The JSON answer, None for an empty one."""
        async with self.client.post(path, json=body, params=query) as response:
            assert response.status == status, await response.text()
            return await response.json() if (await response.read()) else None

    async def refusal(self, call: Callable[..., Any], path: str, **arguments: Any) -> tuple[int, str]:
        """Status and message of an error."""
        async with call(path, **arguments) as response:
            answer = await response.json()
            assert set(answer) == {"message"}
            return response.status, answer["message"]


@asynccontextmanager
async def running_swarm(directory: Path, consensus: InProcessConsensus | None = None) -> AsyncIterator[Swarm]:
    """The application over a manager whose control API listens in ``directory``."""
    async with running_manager(consensus=consensus) as manager:
        server = UnixServer()
        server.add_generic_rpc_handlers((control_handler(manager.control.call),))
        address = f"unix:{directory}/manager.sock"
        server.add_insecure_port(address)
        await server.start()
        channel = UnixChannel(address)
        member = Member()
        member.stub = ControlStub(channel)

        def application(logs: LocalLogs | None = None) -> web.Application:
            return build(routes(member, local_logs=logs), server="swarmd/test (linux)")

        async with TestClient(TestServer(application())) as client:
            yield Swarm(manager, member, client, application)
        await channel.close()
        await server.stop(None)


@pytest_asyncio.fixture
async def swarm(tmp_path: Path) -> AsyncIterator[Swarm]:
    async with running_swarm(tmp_path) as made:
        yield made
