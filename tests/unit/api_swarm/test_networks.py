"""/networks where a host and its cluster each have some."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp.test_utils import TestClient, TestServer

from api import engine_routes
from api.application import build
from api.engine_routes.context import EngineContext
from api.errors import ForbiddenError
from api.swarm_routes import engine_network_name
from base.tasks import OwnedTasks
from manager.control.networks import ingress_network
from proto.objects_pb2 import Cluster
from runtime.events import EventBus
from runtime.networks import Networks, predefined
from tests.unit.api.fakes import INFO, FakeEngine
from tests.unit.api_swarm.conftest import NOT_A_MANAGER, Swarm
from tests.unit.networks.fakes import RecordingKernel

VNI = "com.docker.network.driver.overlay.vxlanid_list"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest_asyncio.fixture
async def host(swarm: Swarm, engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Swarm]:
    """A manager's host: its engine is real as far as networks go."""
    kernel, operations = RecordingKernel(), OwnedTasks()
    engine.networks = Networks(
        tmp_path,
        drivers=predefined.drivers(kernel, tmp_path),
        predefined=predefined.networks(bridge="br7", subnet="172.17.0.0/16"),
        events=EventBus(),
        name_of=str,
        kernel=kernel,
    )
    await engine.networks.open()
    context = EngineContext(engine, swarm.member, INFO, operations)
    app = build(engine_routes.routes(context), server="swarmd/test (linux)")
    async with TestClient(TestServer(app)) as client:
        yield Swarm(swarm.manager, swarm.member, client, swarm.application)
    await operations.close(grace_s=0)
    await engine.networks.close()


async def create(host: Swarm, name: str, **body: object) -> str:
    made = await host.post("/networks/create", {"Name": name, **body}, status=201)
    return str(made["Id"])


async def names(host: Swarm, **query: str) -> list[str]:
    return sorted(network["Name"] for network in await host.get("/networks", **query))


async def remove(host: Swarm, ref: str) -> Any:
    return await host.refusal(host.client.delete, f"/networks/{ref}")


async def test_an_overlay_is_made_in_the_cluster_and_shown_with_the_hosts_own(host: Swarm) -> None:
    network_id = await create(
        host,
        "front",
        Driver="overlay",
        Attachable=True,
        Labels={"tier": "front"},
        IPAM={"Config": [{"Subnet": "10.5.0.0/24", "Gateway": "10.5.0.9", "AuxiliaryAddresses": {"nas": "10.5.0.8"}}]},
    )
    assert await names(host) == ["bridge", "front", "host", "none"]
    assert await names(host, filters='{"scope": ["swarm"], "label": ["tier=front"]}') == ["front"]
    found = await host.get(f"/networks/{network_id[:8]}")
    assert found == await host.get("/networks/front", scope="swarm")
    assert {key: found[key] for key in ("Name", "Id", "Scope", "Driver", "Attachable", "Labels", "Options")} == {
        "Name": "front",
        "Id": network_id,
        "Scope": "swarm",
        "Driver": "overlay",
        "Attachable": True,
        "Labels": {"tier": "front"},
        "Options": {VNI: "4096"},
    }
    assert found["IPAM"]["Config"] == [
        {"Subnet": "10.5.0.0/24", "Gateway": "10.5.0.9", "AuxiliaryAddresses": {"nas": "10.5.0.8"}}
    ]
    assert found["Created"].endswith("Z")


async def test_what_managers_refuse_is_told(host: Swarm) -> None:
    body = {"Name": "front", "Driver": "overlay", "IPAM": {"Config": [{"Subnet": "10.5.0.0/33"}]}}
    status, text = await host.refusal(host.client.post, "/networks/create", json=body)
    assert (status, "invalid subnet 10.5.0.0/33" in text) == (400, True)
    await create(host, "front", Driver="overlay")
    status, text = await host.refusal(host.client.post, "/networks/create", json={"Name": "front", "Driver": "overlay"})
    assert (status, "network front already exists" in text) == (409, True)


async def test_a_network_is_removed_where_it_is(host: Swarm) -> None:
    await create(host, "front", Driver="overlay")
    await create(host, "back")
    for name in ("front", "back"):
        async with host.client.delete(f"/networks/{name}") as response:
            assert response.status == 204
    assert await names(host) == ["bridge", "host", "none"]
    assert await remove(host, "front") == (404, "network front not found")


async def test_a_name_of_the_hosts_own_goes_before_the_clusters(host: Swarm) -> None:
    """As in dockerd the two may be called alike; ``scope`` says which is meant."""
    await create(host, "front")
    await create(host, "front", Driver="overlay")
    assert (await host.get("/networks/front"))["Scope"] == "local"
    assert (await host.get("/networks/front", scope="swarm"))["Scope"] == "swarm"


async def test_prune_takes_what_nobody_uses_but_not_the_meshs(host: Swarm) -> None:
    cluster = Cluster()
    cluster.CopyFrom(host.manager.store.view.cluster)
    await host.manager.commit(lambda working: working.create(ingress_network(cluster, "mesh")))
    await create(host, "front", Driver="overlay", Labels={"keep": ""})
    await create(host, "back", Driver="overlay")
    await create(host, "mine")
    report = await host.post("/networks/prune", filters='{"label!": ["keep"]}')
    assert sorted(report["NetworksDeleted"]) == ["back", "mine"]
    assert await names(host) == ["bridge", "front", "host", "ingress", "none"]


async def test_services_are_on_the_clusters_networks_and_the_predefined_ones(host: Swarm, engine: FakeEngine) -> None:
    """Of a network of this host alone other nodes know nothing."""
    mine = await create(host, "mine")
    shared = await create(host, "shared", Driver="overlay")
    name_of = engine_network_name(engine)
    assert (name_of("bridge"), name_of(shared), name_of("nobody")) == ("bridge", None, None)
    for ref in ("mine", mine):
        with pytest.raises(ForbiddenError, match="The network mine cannot be used with services"):
            name_of(ref)


async def test_a_host_that_is_no_manager_has_its_own_alone(host: Swarm) -> None:
    await create(host, "front", Driver="overlay")
    host.member.stub = None
    assert await names(host) == ["bridge", "host", "none"]
    status, text = await host.refusal(host.client.post, "/networks/create", json={"Name": "x", "Driver": "overlay"})
    assert (status, text) == (503, NOT_A_MANAGER)
    assert await remove(host, "front") == (404, "network front not found")


async def test_what_every_node_has_is_of_the_swarm_when_services_ask_for_it(host: Swarm) -> None:
    """``docker service create --network host`` looks for it there."""
    here = await host.get("/networks/host")
    assert await host.get("/networks/host", scope="swarm") == here | {"Scope": "swarm"}
    assert here["Scope"] == "local"
    await create(host, "own", Driver="bridge")
    response = await host.client.get("/networks/own", params={"scope": "swarm"})
    assert response.status == 404
