"""The server as the daemon uses it: real sockets, start, close; /info and /version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import aiohttp
import pytest

from api.engine_routes.swarm_block import TWO_MANAGERS_WARNING
from api.engine_routes.system import masked, stable_id
from api.server import ApiServer, ListenError
from proto.control_pb2 import GetManagerInfoResponse
from tests.unit.api.conftest import Client
from tests.unit.api.fakes import INFO, FakeEngine, LoneHost
from worker.membership.cluster_member import LocalNodeState, SwarmInfo

if TYPE_CHECKING:
    from proto.control_pb2_grpc import ControlAsyncStub

DEADLINE_S = 30.0


@pytest.fixture
async def server(engine: FakeEngine) -> AsyncIterator[ApiServer]:
    made = ApiServer(engine, LoneHost(), info=INFO)
    yield made
    await made.close()


def unix_session(path: Path) -> aiohttp.ClientSession:
    return aiohttp.ClientSession("http://d", connector=aiohttp.UnixConnector(str(path)))


async def test_serves_several_hosts_and_leaves_nothing(server: ApiServer, tmp_path: Path) -> None:
    first, second = tmp_path / "a.sock", tmp_path / "b.sock"
    await server.start([f"unix://{first}", f"unix://{second}", "tcp://127.0.0.1:0"])
    for path in (first, second):
        async with unix_session(path) as session, session.get("/v1.44/version") as answer:
            assert (await answer.json())["ApiVersion"] == "1.51"
    await server.close()
    assert not first.exists()
    assert not second.exists()


async def test_second_daemon_on_a_socket_is_refused_and_takes_nothing(
    server: ApiServer, engine: FakeEngine, tmp_path: Path
) -> None:
    path, other = tmp_path / "a.sock", tmp_path / "b.sock"
    await server.start([f"unix://{path}"])
    second = ApiServer(engine, LoneHost(), info=INFO)
    with pytest.raises(ListenError, match="another daemon answers on this socket"):
        await second.start([f"unix://{other}", f"unix://{path}"])
    await second.close()
    assert not other.exists()
    async with unix_session(path) as session, session.get("/_ping") as answer:
        assert await answer.text() == "OK"


async def test_close_ends_streams_that_would_go_on_for_ever(server: ApiServer, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    await server.start([f"unix://{path}"])
    async with asyncio.timeout(DEADLINE_S), unix_session(path) as session, session.get("/events") as answer:
        assert answer.status == 200
        await server.close()
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


async def test_info_describes_host_engine_and_cluster(client: Client) -> None:
    found = await (await client.get("/info")).json()
    assert (found["Containers"], found["ContainersStopped"], found["Images"]) == (1, 1, 1)
    assert found["OSType"] == "linux"
    assert found["MemTotal"] > 0
    assert found["CgroupVersion"] in ("1", "2")
    assert found["SwapLimit"] is False  # as the engine has it, whatever this machine can
    assert "WARNING: No swap limit support" in found["Warnings"]
    assert found["Swarm"]["LocalNodeState"] == "inactive"
    assert found["Swarm"]["ControlAvailable"] is False


class ManagerHost(LoneHost):
    """A manager of a cluster that has ``managers`` of them."""

    def __init__(self, managers: int) -> None:
        super().__init__(SwarmInfo(local_node_state=LocalNodeState.ACTIVE, node_id="n1", control_available=True))
        self._managers = managers

    def control(self) -> ControlAsyncStub:
        return cast("ControlAsyncStub", self)  # as much of a stub as /info asks for

    async def GetManagerInfo(self, request: object, *, timeout: float) -> GetManagerInfoResponse:  # noqa: N802 - the RPC's name
        return GetManagerInfoResponse(nodes_total=5, managers_total=self._managers, has_leader=True)


@pytest.mark.parametrize(("managers", "warned"), [(1, False), (2, True), (3, False)])
async def test_two_managers_are_warned_of(managers: int, warned: bool, engine: FakeEngine, tmp_path: Path) -> None:
    server = ApiServer(engine, ManagerHost(managers), info=INFO)
    path = tmp_path / "a.sock"
    await server.start([f"unix://{path}"])
    async with unix_session(path) as session, session.get("/info") as answer:
        found = await answer.json()
    expected = [TWO_MANAGERS_WARNING] if warned else []
    assert [text for text in found["Warnings"] if "two-manager" in text] == expected  # what the CLI prints
    assert found["Swarm"].get("Warnings", []) == expected
    await server.close()


async def test_what_is_wrong_with_the_node_itself_is_told_before_a_missing_leader(
    engine: FakeEngine, tmp_path: Path
) -> None:
    class Leaderless(LoneHost):
        def control(self) -> ControlAsyncStub:
            return cast("ControlAsyncStub", self)  # as much of a stub as /info asks for

        async def GetManagerInfo(self, request: object, *, timeout: float) -> GetManagerInfoResponse:  # noqa: N802 - the RPC's name
            return GetManagerInfoResponse(has_leader=False)

    expired = "Swarm certificates have expired. To replace them, leave the swarm and join again."
    member = Leaderless(
        SwarmInfo(local_node_state=LocalNodeState.ERROR, node_id="n1", control_available=True, error=expired)
    )
    server = ApiServer(engine, member, info=INFO)
    path = tmp_path / "a.sock"
    await server.start([f"unix://{path}"])
    async with unix_session(path) as session, session.get("/info") as answer:
        assert (await answer.json())["Swarm"]["Error"] == expired
    await server.close()


async def test_manager_that_does_not_answer_is_named_and_info_still_comes(engine: FakeEngine, tmp_path: Path) -> None:
    member = LoneHost(SwarmInfo(local_node_state=LocalNodeState.ACTIVE, node_id="n1", control_available=True))
    server = ApiServer(engine, member, info=INFO)
    path = tmp_path / "a.sock"
    await server.start([f"unix://{path}"])
    async with unix_session(path) as session:
        async with session.get("/info") as answer:
            swarm = (await answer.json())["Swarm"]
        async with session.head("/_ping") as ping:
            assert ping.headers["Swarm"] == "active/manager"
    assert (swarm["NodeID"], swarm["Error"]) == ("n1", "This node is not a swarm manager.")
    await server.close()


async def test_disk_usage_counts_layers_once_and_containers_by_image(client: Client) -> None:
    usage = await (await client.get("/system/df")).json()
    assert usage["LayersSize"] == 1000
    assert [(image["Containers"], image["SharedSize"]) for image in usage["Images"]] == [(1, 0)]
    assert usage["Containers"][0]["SizeRw"] == 10
    assert (usage["Volumes"], usage["BuildCache"]) == ([], [])
    assert set(await (await client.get("/system/df", params={"type": "volume"})).json()) == {"Volumes"}
    assert (await client.get("/system/df", params={"type": "soup"})).status == 400


def test_passwords_of_proxies_are_not_shown() -> None:
    assert masked("http://user:pass@proxy:3128") == "http://xxxxx:xxxxx@proxy:3128"
    assert masked("http://proxy:3128") == "http://proxy:3128"
    assert masked("") == ""


def test_daemon_has_the_same_id_after_a_restart_and_another_on_other_state() -> None:
    assert stable_id(Path("/a")) == stable_id(Path("/a")) != stable_id(Path("/b"))
