"""/auth against a registry that wants a password."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from runtime.images.credentials import registry_domain
from tests.unit.api.conftest import Client


@pytest.fixture
async def registry() -> AsyncIterator[str]:
    async def base(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") == aiohttp.encode_basic_auth("u", "right"):
            return web.json_response({})
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    app = web.Application()
    app.add_routes([web.get("/v2/", base)])
    async with TestServer(app) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("address", "domain"),
    [
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry:5000", "registry:5000"),
        ("http://registry:5000/v2/", "registry:5000"),
    ],
)
def test_registry_is_named_in_several_ways(address: str, domain: str) -> None:
    assert registry_domain(address) == domain


async def test_login_succeeds_with_the_right_password_only(client: Client, registry: str) -> None:
    body = {"username": "u", "password": "right", "serveraddress": registry}
    answer = await client.post("/auth", json=body)
    assert (answer.status, (await answer.json())["Status"]) == (200, "Login Succeeded")
    refused = await client.post("/auth", json=body | {"password": "wrong"})
    text = await refused.text()
    assert refused.status == 401
    assert "unauthorized" in text
    assert "wrong" not in text
    assert (await client.post("/auth", json={})).status == 400


async def test_registry_that_cannot_be_reached_is_named(client: Client) -> None:
    body = {"username": "u", "password": "p", "serveraddress": "127.0.0.1:1"}
    answer = await client.post("/auth", json=body)
    assert answer.status == 500
    assert "127.0.0.1:1" in (await answer.json())["message"]
