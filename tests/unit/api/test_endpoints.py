"""Connect and disconnect over HTTP."""

from __future__ import annotations

import pytest

from runtime.types import EndpointIPAMConfig, EndpointSettings
from tests.unit.api.conftest import Client
from tests.unit.api.fakes import CONTAINER_ID, FakeEngine


async def test_a_container_is_put_on_a_network_as_asked(client: Client, engine: FakeEngine) -> None:
    body = {
        "Container": "web",
        "EndpointConfig": {
            "ipamconfig": {"IPv4Address": "10.0.0.9"},
            "Aliases": ["db"],
            "GwPriority": 3,
            "Links": None,
        },
    }
    assert (await client.post("/v1.47/networks/back/connect", json=body)).status == 200
    settings = EndpointSettings(IPAMConfig=EndpointIPAMConfig(IPv4Address="10.0.0.9"), Aliases=["db"], GwPriority=3)
    assert engine.connected == [("back", CONTAINER_ID, settings)]
    assert (await client.post("/networks/back/disconnect", json={"Container": "web", "Force": True})).status == 200
    assert engine.connected == []


@pytest.mark.parametrize(
    ("container", "network", "force", "message"),
    [
        ("web", "nowhere", False, "network nowhere not found"),
        ("nobody", "back", False, "No such container: nobody"),
        ("nobody", "nowhere", True, "network nowhere not found"),
        ("nobody", "back", True, "endpoint nobody not found"),
    ],
)
async def test_what_is_not_there_is_named(
    client: Client, container: str, network: str, force: bool, message: str
) -> None:
    answer = await client.post(f"/networks/{network}/disconnect", json={"Container": container, "Force": force})
    assert (answer.status, (await answer.json())["message"]) == (404, message)


async def test_a_link_is_removed_by_its_name(client: Client, engine: FakeEngine) -> None:
    assert (await client.delete("/v1.47/containers/web/data?link=1")).status == 204
    assert engine.calls[-1] == ("unlink", "web/data")
    assert (await client.delete("/containers/web/logs/more")).status == 404


async def test_several_networks_and_priorities_are_as_the_version_of_the_api_means_them(
    client: Client, engine: FakeEngine
) -> None:
    two = {"Image": "busybox", "NetworkingConfig": {"EndpointsConfig": {"b": {"GwPriority": 1}, "a": {}}}}
    answer = await client.post("/v1.43/containers/create", json=two)
    message = "Container cannot be created with multiple network endpoints: a, b"
    assert (answer.status, (await answer.json())["message"]) == (400, message)
    for version, priority in (("1.47", 0), ("1.48", 1)):
        assert (await client.post(f"/v{version}/containers/create", json=two)).status == 201
        made = engine.created[-1][2]
        assert made is not None
        assert made.EndpointsConfig is not None
        assert made.EndpointsConfig["b"] == EndpointSettings(GwPriority=priority)
