"""What a page in a browser reaches of a daemon that serves TCP, and that tools are not held up."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import docker
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from api import browsers
from api.application import build
from api.server import ApiServer
from tests.support_addresses import free_port, loopback
from tests.unit.api.fakes import INFO, FakeEngine, LoneHost

HOST = loopback()
DEADLINE_S = 60


@pytest.fixture
async def port(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[int]:
    await engine.start("web")
    server, chosen = ApiServer(engine, LoneHost(), info=INFO), free_port(HOST)
    await server.start([f"unix://{tmp_path}/a.sock", f"tcp://{HOST}:{chosen}"])
    yield chosen
    await server.close()


async def status(url: str, method: str, headers: dict[str, str], path: Path | None = None) -> int:
    connector = aiohttp.UnixConnector(str(path)) if path else None
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(method, url, headers=headers) as answer,
    ):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        return answer.status


PAGES = {
    "a form": {"Origin": "http://evil.test", "Sec-Fetch-Site": "cross-site"},
    "a form without a referrer": {"Origin": "null"},
    "an old browser's form": {"Referer": "http://evil.test/page"},
    "an image": {"Sec-Fetch-Site": "cross-site"},
    "a page of another port": {"Origin": "http://127.0.0.1:8080", "Sec-Fetch-Site": "same-site"},
    "what a container wrote": {"Sec-Fetch-Site": "same-origin"},
    "our own origin": {"Origin": "http://127.0.0.1:2375"},
    "a name led to 127.0.0.1": {"Host": "evil.test:2375"},
    "that name's own page": {"Host": "evil.test:2375", "Origin": "http://evil.test:2375"},
    "the address of no host": {"Host": "0.0.0.0:2375"},
    "a name that begins as ours": {"Host": "localhost.evil.test"},
    "an address with something behind": {"Host": "[::1]evil.test"},
    "no host": {"Host": ""},
}


@pytest.mark.parametrize("page", PAGES)
async def test_a_web_page_can_do_nothing(engine: FakeEngine, port: int, page: str) -> None:
    for path in ("/containers/web/kill", "/v1.44/containers/web/kill", "/containers/prune"):
        assert await status(f"http://{HOST}:{port}{path}", "POST", PAGES[page]) == 403
    for method, path in (
        ("GET", "/containers/web/logs?stdout=1"),
        ("GET", "/v9.99/version"),
        ("GET", "/nothing"),
        ("GET", "/containers/web/attach/ws"),
        ("OPTIONS", "/containers/web"),
        ("DELETE", "/containers/web"),
        ("PUT", "/containers/web/archive"),
    ):
        assert await status(f"http://{HOST}:{port}{path}", method, PAGES[page]) == 403
    assert (engine.calls, len(engine.list())) == ([], 1)


async def test_a_target_with_another_host_than_the_header_is_refused(engine: FakeEngine, port: int) -> None:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(
        b"POST http://evil.test/containers/web/kill HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
        b"Connection: close\r\n\r\n"
    )
    async with asyncio.timeout(DEADLINE_S):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 403")
    assert engine.calls == []


@pytest.mark.parametrize("page", PAGES)
async def test_a_unix_socket_is_not_asked(engine: FakeEngine, port: int, tmp_path: Path, page: str) -> None:
    assert await status("http://d/containers/web/kill", "POST", PAGES[page], tmp_path / "a.sock") == 204
    assert engine.calls == [("kill", "SIGKILL")]


@pytest.mark.parametrize("host", ["localhost:2375", "LocalHost", "127.0.0.1:2375", "127.9.9.9", "[::1]:2375"])
async def test_tools_name_the_loopback_as_they_like(port: int, host: str) -> None:
    assert await status(f"http://{HOST}:{port}/containers/web/kill", "POST", {"Host": host}) == 204
    assert await status(f"http://{HOST}:{port}/version", "GET", {"Host": host, "Sec-Fetch-Site": "none"}) == 200


async def test_a_name_that_the_daemon_listens_on_is_ours() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.host)

    names = browsers.names_of(["unix:///run/a.sock", "tcp://My-Host:2375", "tcp://[::1]:2375"])
    assert names == {"my-host", "::1"}
    app = build([web.get("/here", answer)], server="swarmd/test (linux)", our_names=names)
    async with TestClient(TestServer(app)) as client:
        for host, wanted in (("my-host:2375", 200), ("MY-HOST", 200), ("my-host.evil.test", 403)):
            assert (await client.get("/here", headers={"Host": host})).status == wanted


async def test_docker_docker_py_and_curl_work_over_tcp(engine: FakeEngine, port: int) -> None:
    def use_docker_py() -> None:
        client = docker.DockerClient(base_url=f"tcp://{HOST}:{port}")
        client.containers.get("web").kill("SIGUSR1")
        client.close()

    commands = [
        ["docker", "-H", f"tcp://{HOST}:{port}", "kill", "--signal", "SIGUSR1", "web"],
        ["curl", "--fail", "-sX", "POST", f"http://{HOST}:{port}/containers/web/kill?signal=SIGUSR1"],
    ]
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.to_thread(use_docker_py)
        for command in commands:
            if shutil.which(command[0]):
                run = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
                assert (run.returncode, run.stderr) == (0, "")
    assert {*engine.calls} == {("kill", "SIGUSR1")}
