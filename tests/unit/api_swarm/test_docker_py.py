"""docker-py, unmodified, over a unix socket: what it sends is taken, what it gets it understands (features W03, W06, W14)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import docker
import docker.errors
import docker.types
import pytest
import pytest_asyncio
from aiohttp import web

from tests.unit.api_swarm.conftest import Swarm

R = TypeVar("R")


class Client:
    """docker-py blocks, so each use of it runs in a thread while the server runs in the loop."""

    def __init__(self, path: Path) -> None:
        self.docker: Any = docker.DockerClient(base_url=f"unix://{path}", version="1.47")  # untyped library

    async def __call__(self, use: Callable[[Any], R]) -> R:
        return await asyncio.to_thread(use, self.docker)


@pytest_asyncio.fixture
async def client(swarm: Swarm, tmp_path: Path) -> AsyncIterator[Client]:
    runner = web.AppRunner(swarm.application(None))
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "engine.sock")).start()
    made = Client(tmp_path / "engine.sock")
    yield made
    await asyncio.to_thread(made.docker.close)
    await runner.cleanup()


async def test_services(client: Client) -> None:
    mode = docker.types.ServiceMode("replicated", replicas=2)
    created = await client(
        lambda c: c.services.create(
            "busybox:1",
            command="sleep 9d",
            name="web",
            mode=mode,
            labels={"a": "b"},
            env=["A=1"],
            update_config=docker.types.UpdateConfig(),
            restart_policy=docker.types.RestartPolicy(),
            endpoint_spec=docker.types.EndpointSpec(ports={8080: (80, "tcp", "host")}),
        )
    )
    spec = (await client(lambda c: c.services.get("web"))).attrs["Spec"]
    assert spec["Mode"] == {"Replicated": {"Replicas": 2}}
    assert (spec["UpdateConfig"]["Parallelism"], spec["UpdateConfig"]["FailureAction"]) == (0, "continue")
    assert spec["TaskTemplate"]["RestartPolicy"]["Condition"] == "none"
    assert spec["TaskTemplate"]["ContainerSpec"]["Command"] == ["sleep", "9d"]
    stale = await client(lambda c: c.services.get(created.id))
    assert await client(lambda c: c.services.get(created.id).scale(3))
    with pytest.raises(docker.errors.APIError, match="update out of sequence"):
        await client(lambda c: stale.scale(4))
    assert [service.name for service in await client(lambda c: c.services.list(filters={"label": "a=b"}))] == ["web"]
    assert await client(lambda c: c.services.get("web").tasks()) == []
    assert await client(lambda c: c.services.get("web").remove())
    with pytest.raises(docker.errors.NotFound, match="service web not found"):
        await client(lambda c: c.services.get("web"))


async def test_swarm_and_nodes(swarm: Swarm, client: Client) -> None:
    await swarm.manager.add_node("node-1", hostname="alpha")
    attrs = await client(lambda c: c.swarm.attrs)
    assert {"ID", "Version", "CreatedAt", "UpdatedAt", "Spec", "JoinTokens", "TLSInfo"} <= set(attrs)

    def change(c: Any) -> None:
        c.swarm.reload()
        c.swarm.update(rotate_worker_token=True, task_history_retention_limit=3)

    await client(change)
    assert (await client(lambda c: c.swarm.attrs))["Spec"]["Orchestration"] == {"TaskHistoryRetentionLimit": 3}
    node = await client(lambda c: c.nodes.get("alpha"))
    spec = {"Availability": "pause", "Role": "worker", "Labels": {"zone": "a"}}
    assert await client(lambda c: node.update(spec))
    (paused,) = await client(lambda c: c.nodes.list(filters={"node.label": "zone=a"}))
    assert paused.attrs["Spec"]["Availability"] == "pause"


async def test_secrets_and_configs(client: Client) -> None:
    secret = await client(lambda c: c.secrets.create(name="pw", data=b"hunter2"))
    assert "Data" not in (await client(lambda c: c.secrets.get(secret.id))).attrs["Spec"]
    config = await client(lambda c: c.configs.create(name="cfg", data=b"a=1"))
    assert [found.name for found in await client(lambda c: c.configs.list(filters={"name": "cf"}))] == ["cfg"]
    with pytest.raises(docker.errors.APIError, match="secret pw already exists"):
        await client(lambda c: c.secrets.create(name="pw", data=b"x"))
    assert await client(lambda c: secret.remove())
    assert await client(lambda c: config.remove())
