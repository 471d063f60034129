"""Version prefix, headers, unknown and unserved routes (features W01, W02, W05)."""

from __future__ import annotations

import pytest

from api.versions import MAX_VERSION, APIVersion, split_version
from tests.unit.api.conftest import Client


@pytest.mark.parametrize(
    ("path", "version", "rest"),
    [
        ("/info", None, "/info"),
        ("/v1.44/info", (1, 44), "/info"),
        ("/v1.44", (1, 44), "/"),
        ("/v1.44.1/info", (1, 44), "/info"),
        ("/volumes", None, "/volumes"),
        ("/v1.44x/info", None, "/v1.44x/info"),
        ("/v1/info", None, "/v1/info"),
    ],
)
def test_version_prefix_is_split_off(path: str, version: tuple[int, int] | None, rest: str) -> None:
    assert split_version(path) == (version and APIVersion(*version), rest)


async def test_bare_and_versioned_paths_reach_the_same_route(client: Client) -> None:
    for prefix in ("", "/v1.24", f"/v{MAX_VERSION}"):
        answer = await client.get(f"{prefix}/containers/web/json")
        assert answer.status == 200
        assert (await answer.json())["Name"] == "/web"


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("1.99", f"client version 1.99 is too new. Maximum supported API version is {MAX_VERSION}"),
        (
            "1.12",
            "client version 1.12 is too old. Minimum supported API version is 1.24, "
            "please upgrade your client to a newer version",
        ),
    ],
)
async def test_version_out_of_range_is_refused(client: Client, version: str, message: str) -> None:
    answer = await client.get(f"/v{version}/info")
    assert answer.status == 400
    assert await answer.json() == {"message": message}


@pytest.mark.parametrize(("method", "path"), [("GET", "/nowhere"), ("PUT", "/containers/json"), ("GET", "/v1.x/info")])
async def test_unknown_route_and_method_are_not_found(client: Client, method: str, path: str) -> None:
    answer = await client.request(method, path)
    assert answer.status == 404
    assert await answer.json() == {"message": "page not found"}


async def test_route_that_is_not_served_says_so(client: Client) -> None:
    for method, path in (("POST", "/v1.44/build"), ("GET", "/containers/web/archive"), ("POST", "/plugins/pull")):
        answer = await client.request(method, path)
        assert answer.status == 501
        assert "not served" in (await answer.json())["message"]


async def test_ping_has_the_headers_that_clients_negotiate_by(client: Client) -> None:
    for method in ("HEAD", "GET"):
        answer = await client.request(method, "/_ping")
        assert answer.status == 200
        assert answer.headers["Api-Version"] == str(MAX_VERSION)
        assert answer.headers["Ostype"] == "linux"
        assert answer.headers["Docker-Experimental"] == "false"
        assert answer.headers["Builder-Version"] == "1"
        assert answer.headers["Swarm"] == "inactive"
        assert answer.headers["Server"].startswith("swarmd/")
        assert await answer.read() == (b"" if method == "HEAD" else b"OK")
