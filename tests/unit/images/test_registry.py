"""The registry client against a peer that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from runtime.images import (
    AccessDeniedError,
    ContentError,
    DigestMismatchError,
    InvalidArgumentError,
    ManifestError,
    RegistryAuth,
    RegistryError,
    RegistryUnavailableError,
    transport,
)
from runtime.images.challenge import parse_challenges
from runtime.images.content import ContentStore
from runtime.images.endpoints import Endpoint, endpoints_of, is_insecure
from runtime.images.reference import parse_reference
from runtime.images.registry import RegistryClient
from runtime.images.types import Descriptor

BLOB = os.urandom(600_000)
DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"
LAYER = Descriptor(media_type="x", digest=DIGEST, size=len(BLOB))
MANIFEST = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":'
    b'{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":2},"layers":[]}' % DIGEST.encode()
)
KIND = "application/vnd.oci.image.manifest.v1+json"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Peer:
    """A server whose every request is recorded and answered by one function."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self._servers: list[TestServer] = []

    async def serve(self, handler: Handler) -> str:
        """Start answering with ``handler``; returns ``host:port``."""

        async def record(request: web.Request) -> web.StreamResponse:
            self.requests.append(request)
            return await handler(request)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", record)
        server = TestServer(app)
        await server.start_server()
        self._servers.append(server)
        return f"127.0.0.1:{server.port}"

    async def close(self) -> None:
        for server in self._servers:
            await server.close()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    yield peer
    await peer.close()


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    client = RegistryClient()
    yield client
    await client.close()


@pytest.fixture
async def content(tmp_path: Path) -> AsyncIterator[ContentStore]:
    content = ContentStore(tmp_path)
    content.open()
    yield content
    await content.close()


async def test_the_hosts_certificates_are_read_once_and_before_the_first_request(
    client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ssl.SSLContext] = []

    def make() -> ssl.SSLContext:
        made.append(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        return made[-1]

    monkeypatch.setattr(ssl, "create_default_context", make)
    await client.warm()
    assert len(made) == 1
    with socket.socket() as unanswered:  # bound, not listening
        unanswered.bind(("127.0.0.1", 0))
        with pytest.raises(RegistryUnavailableError):
            await client.manifest(parse_reference(f"127.0.0.1:{unanswered.getsockname()[1]}/app:1"))
    assert len(made) == 1


def manifest_answer() -> web.Response:
    return web.Response(body=MANIFEST, headers={"Content-Type": KIND})


async def fetch(client: RegistryClient, content: ContentStore, address: str, layer: Descriptor = LAYER) -> None:
    ref = parse_reference(f"{address}/app:1")
    endpoint = (await client.manifest(ref)).endpoint
    await content.ingest(layer.digest, layer.size, lambda at: client.blob(endpoint, ref, layer, None, offset=at))


@pytest.mark.parametrize("ranges", [True, False])
async def test_broken_download_goes_on_where_it_ended(
    peer: Peer, client: RegistryClient, content: ContentStore, ranges: bool
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if "manifests" in request.path:
            return manifest_answer()
        start = int(request.headers["Range"][6:-1]) if ranges and "Range" in request.headers else 0
        response = web.StreamResponse(status=206 if start else 200, headers={"Content-Length": str(len(BLOB) - start)})
        await response.prepare(request)
        blobs = [one for one in peer.requests if "blobs" in one.path]
        end = len(BLOB) if len(blobs) > 2 else 200_000 * len(blobs)
        await response.write(BLOB[start:end])
        if end < len(BLOB) and request.transport is not None:
            request.transport.close()
        return response

    await fetch(client, content, await peer.serve(handler))
    assert content.path(DIGEST).read_bytes() == BLOB
    sent = [one.headers.get("Range") for one in peer.requests if "blobs" in one.path]
    assert len(sent) == 3
    assert sent[0] is None
    assert sent[1] is not None


async def test_partial_file_of_a_former_process_is_used_and_distrusted(
    peer: Peer, client: RegistryClient, content: ContentStore, tmp_path: Path
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if "manifests" in request.path:
            return manifest_answer()
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        return web.Response(body=BLOB[start:], status=206 if start else 200)

    address = await peer.serve(handler)
    partial = tmp_path / "ingest" / DIGEST[7:]
    partial.write_bytes(BLOB[:1000])
    await fetch(client, content, address)
    assert peer.requests[-1].headers["Range"] == "bytes=1000-"
    content.path(DIGEST).unlink()
    partial.write_bytes(bytes(1000))  # what a power cut may leave of a file
    await fetch(client, content, address)
    assert content.path(DIGEST).read_bytes() == BLOB
    assert not partial.exists()


@pytest.mark.parametrize("body", [BLOB[:-1] + bytes([BLOB[-1] ^ 1]), BLOB + b"more"])
async def test_wrong_bytes_are_refused_and_leave_nothing(
    peer: Peer, client: RegistryClient, content: ContentStore, tmp_path: Path, body: bytes
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return manifest_answer() if "manifests" in request.path else web.Response(body=body)

    with pytest.raises(ContentError):
        await fetch(client, content, await peer.serve(handler))
    assert not content.has(DIGEST)
    assert list((tmp_path / "ingest").iterdir()) == []


async def test_two_callers_share_a_download_and_one_may_leave(
    peer: Peer, client: RegistryClient, content: ContentStore
) -> None:
    go = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        if "manifests" in request.path:
            return manifest_answer()
        await go.wait()
        return web.Response(body=BLOB)

    address = await peer.serve(handler)
    ref = parse_reference(f"{address}/app:1")
    endpoint = (await client.manifest(ref)).endpoint

    async def ingest() -> None:
        await content.ingest(DIGEST, len(BLOB), lambda at: client.blob(endpoint, ref, LAYER, None, offset=at))

    callers = [asyncio.ensure_future(ingest()) for _ in range(3)]
    while not any("blobs" in request.path for request in peer.requests):
        await asyncio.sleep(0)
    callers[0].cancel()
    go.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [None, None]
    assert sum("blobs" in request.path for request in peer.requests) == 1


async def test_passing_failures_are_retried_and_lasting_ones_told(peer: Peer, client: RegistryClient) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        failing = len(peer.requests) < 2 or "down" in request.path
        return web.Response(status=503) if failing else manifest_answer()

    address = await peer.serve(handler)
    assert (await client.manifest(parse_reference(f"{address}/app:1"))).data == MANIFEST
    with pytest.raises(RegistryUnavailableError, match="503 Service Unavailable"):
        await client.manifest(parse_reference(f"{address}/down:1"))


async def test_bearer_token_is_asked_for_the_repository(peer: Peer, client: RegistryClient) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return web.json_response({"token": "T", "expires_in": 300})
        if request.headers.get("Authorization") != "Bearer T":
            challenge = f'Bearer realm="http://{request.host}/token",service="reg",scope="repository:app:pull"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if "secret" in request.path:
            challenge = f'Bearer realm="http://{request.host}/token",error="insufficient_scope"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return manifest_answer()

    address = await peer.serve(handler)
    auth = RegistryAuth(username="u", password="p:w")
    for _ in range(2):
        assert (await client.manifest(parse_reference(f"{address}/app:1"), auth)).data == MANIFEST
    tokens = [request for request in peer.requests if request.path == "/token"]
    assert len(tokens) == 1
    assert dict(tokens[0].query) == {"service": "reg", "scope": "repository:app:pull", "account": "u"}
    assert base64.b64decode(tokens[0].headers["Authorization"][6:]) == b"u:p:w"
    with pytest.raises(AccessDeniedError) as denied:
        await client.manifest(parse_reference(f"{address}/secret:1"), auth)
    assert str(denied.value) == (
        f"pull access denied for {address}/secret, repository does not exist or may require 'docker login': "
        "denied: requested access to the resource is denied"
    )


async def test_identity_token_is_exchanged(peer: Peer, client: RegistryClient) -> None:
    forms: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            forms.append({key: str(value) for key, value in (await request.post()).items()})
            return web.json_response({"access_token": "T"})
        if request.headers.get("Authorization") != "Bearer T":
            challenge = f'Bearer realm="http://{request.host}/token",service="reg"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return manifest_answer()

    auth = RegistryAuth(identity_token="refresh")
    await client.manifest(parse_reference(f"{await peer.serve(handler)}/app:1"), auth)
    assert forms[0]["grant_type"] == "refresh_token"
    assert forms[0]["refresh_token"] == "refresh"
    assert "refresh" not in repr(auth)


async def test_credentials_do_not_follow_a_redirection(peer: Peer, client: RegistryClient) -> None:
    async def storage(request: web.Request) -> web.StreamResponse:
        return web.Response(body=BLOB)

    elsewhere = (await peer.serve(storage)).replace("127.0.0.1", "localhost")

    async def handler(request: web.Request) -> web.StreamResponse:
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        if "blobs" in request.path:
            return web.Response(status=307, headers={"Location": f"http://{elsewhere}/data"})
        return manifest_answer()

    auth = RegistryAuth(username="u", password="p")
    ref = parse_reference(f"{await peer.serve(handler)}/app:1")
    endpoint = (await client.manifest(ref, auth)).endpoint
    data = b"".join([chunk async for chunk in client.blob(endpoint, ref, LAYER, auth)])
    assert data == BLOB
    assert peer.requests[-1].path == "/data"
    assert "Authorization" not in peer.requests[-1].headers


async def test_hostile_answers_are_refused(peer: Peer, client: RegistryClient) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        bodies = {"huge": b" " * (5 << 20), "junk": b"<html>", "deep": b"[" * 100_000, "old": b'{"schemaVersion":1}'}
        name = request.path.split("/")[2]
        if name == "loop":
            return web.Response(status=307, headers={"Location": request.path})
        return web.Response(body=bodies[name])

    address = await peer.serve(handler)
    for name, error in (
        ("huge", RegistryError),
        ("junk", ManifestError),
        ("deep", ManifestError),
        ("old", ManifestError),
        ("loop", RegistryError),
    ):
        with pytest.raises(error):
            await client.manifest(parse_reference(f"{address}/{name}:1"))
    with pytest.raises(DigestMismatchError):
        await client.manifest(parse_reference(f"{address}/junk@sha256:{'0' * 64}"))


async def test_mirror_of_docker_hub_comes_first_and_gets_no_credentials(peer: Peer) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return manifest_answer()

    client = RegistryClient(mirrors=[f"http://{await peer.serve(handler)}/"])
    try:
        found = await client.manifest(parse_reference("busybox:1"), RegistryAuth(username="u", password="p"))
    finally:
        await client.close()
    assert found.endpoint.mirror
    assert peer.requests[0].path == "/v2/library/busybox/manifests/1"
    assert "Authorization" not in peer.requests[0].headers


def test_plain_http_only_where_allowed() -> None:
    def urls(domain: str, insecure: tuple[str, ...] = ()) -> list[str]:
        return [endpoint.url for endpoint in endpoints_of(domain, insecure=insecure, mirrors=())]

    assert urls("reg.example:5000") == ["https://reg.example:5000"]
    assert urls("localhost:5000") == ["https://localhost:5000", "http://localhost:5000"]
    assert urls("127.9.9.9") == ["https://127.9.9.9", "http://127.9.9.9"]
    assert urls("[::1]:5000")[1] == "http://[::1]:5000"
    assert len(urls("10.1.2.3:5000", ("10.0.0.0/8",))) == 2
    assert len(urls("reg.example:5000", ("reg.example:5000",))) == 2
    assert urls("docker.io", ("docker.io",)) == ["https://registry-1.docker.io"]
    assert not is_insecure("127.0.0.1.evil.example", ())
    with pytest.raises(InvalidArgumentError, match="invalid mirror"):
        RegistryClient(mirrors=["ftp://x"])


@given(st.text(max_size=300))
def test_any_challenge_is_parsed_in_no_time(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme


def test_challenges_with_quotes_and_several_schemes() -> None:
    found = parse_challenges('Basic realm="a, \\"b\\"", Bearer realm="https://t/x?y=1",service=s')
    assert [(one.scheme, one.parameters) for one in found] == [
        ("basic", {"realm": 'a, "b"'}),
        ("bearer", {"realm": "https://t/x?y=1", "service": "s"}),
    ]


@pytest.mark.parametrize("closes", [True, False])
async def test_a_blob_that_drips_is_given_up_and_what_came_is_kept(
    peer: Peer,
    client: RegistryClient,
    content: ContentStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    closes: bool,
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        response = web.StreamResponse(status=206 if start else 200, headers={"Content-Length": str(len(BLOB) - start)})
        await response.prepare(request)
        await response.write(BLOB[start : start + 1])
        if closes and request.transport is not None:
            request.transport.close()
            return response
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(transport, "BACKOFF_S", 0.0)
    if not closes:
        monkeypatch.setattr(transport, "PROGRESS_PERIOD_S", 0.0)
    ref, endpoint = parse_reference("reg.example/app:1"), Endpoint(f"http://{await peer.serve(handler)}", verify=False)
    with pytest.raises(RegistryUnavailableError, match=None if closes else "the registry is too slow: 1 bytes"):
        await content.ingest(DIGEST, len(BLOB), lambda at: client.blob(endpoint, ref, LAYER, None, offset=at))
    assert len(peer.requests) == transport.ATTEMPTS_MAX
    assert (tmp_path / "ingest" / DIGEST[7:]).exists()
    with pytest.raises(RegistryUnavailableError):
        await client.manifest_at(endpoint, ref, None)


def test_a_slow_line_is_no_drip() -> None:
    shared = transport.Progress()
    for _ in range(10_000):
        shared.received(1024, 18 * 1024 / 5000)  # 5 KB/s, of which seventeen other downloads take their parts
    drip = transport.Progress()
    for _ in range(59):
        drip.received(1, 1.0)
    with pytest.raises(transport.TransientError, match="60 bytes within 60 s"):
        drip.received(1, 1.0)


async def test_credentials_of_one_registry_never_reach_another(peer: Peer, client: RegistryClient) -> None:
    """Whose they are decides, however they came to be used with this image; tokens are kept apart likewise."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return web.json_response({"token": request.headers.get("Authorization", "anonymous")})
        if "Authorization" not in request.headers:
            challenge = f'Bearer realm="http://{request.host}/token",service="reg"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return manifest_answer()

    address = await peer.serve(handler)
    ref = parse_reference(f"{address}/app:1")
    own = RegistryAuth(username="u", password="p", server_address=f"http://{address}/v2/")
    await client.manifest(ref, own)
    assert "Basic dTpw" in {request.headers.get("Authorization") for request in peer.requests}
    for other in ("https://index.docker.io/v1/", "reg.example", "127.0.0.1", f"{address}.evil", f"u@{address}"):
        for fields in ({"username": "u", "password": "p"}, {"identity_token": "p"}, {"registry_token": "p"}):
            peer.requests.clear()
            await client.manifest(ref, RegistryAuth(**fields, server_address=other))
            sent = {request.headers.get("Authorization") for request in peer.requests}
            assert sent <= {None, "Bearer anonymous"}
            assert {request.method for request in peer.requests} == {"GET"}


async def test_redirections_carry_no_credentials_and_are_not_answered_with_any(
    peer: Peer, client: RegistryClient
) -> None:
    """Another port is another server: its challenge is not one of the registry's."""

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        if "back" in request.path:
            return web.Response(status=307, headers={"Location": f"http://{registry}/v2/app/manifests/2"})
        realm = f"http://{request.host}/token"
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}",service="x"'})

    async def handler(request: web.Request) -> web.StreamResponse:
        if "Authorization" not in request.headers and not request.path.endswith("open"):
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return web.Response(status=307, headers={"Location": f"http://{other}/{request.path.rpartition('/')[2]}"})

    other, registry = await peer.serve(elsewhere), await peer.serve(handler)
    auth = RegistryAuth(username="u", password="p")
    for tag, asked in (("1", other), ("open", other), ("back", registry)):
        peer.requests.clear()
        with pytest.raises(RegistryError):
            await client.manifest(parse_reference(f"{registry}/app:{tag}"), auth)
        assert {request.path for request in peer.requests if request.host == other} == {f"/{tag}"}
        assert all("Authorization" not in request.headers for request in peer.requests if request.host == other)
        assert peer.requests[-1].host == asked
        assert "Authorization" not in peer.requests[-1].headers


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_token_is_not_sent_on_to_where_its_server_points(
    peer: Peer, client: RegistryClient, status: int
) -> None:
    async def elsewhere(request: web.Request) -> web.StreamResponse:
        return web.json_response({"access_token": "T"})

    other = await peer.serve(elsewhere)

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return web.Response(status=status, headers={"Location": f"http://{other}/token"})
        challenge = f'Bearer realm="http://{request.host}/token",service="reg"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    address = await peer.serve(handler)
    with pytest.raises(RegistryError, match="redirects a POST"):
        await client.manifest(parse_reference(f"{address}/app:1"), RegistryAuth(identity_token="refresh"))
    assert {request.host for request in peer.requests} == {address}


async def test_neither_netrc_nor_cookies_speak_for_anybody(
    peer: Peer, client: RegistryClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login root password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    async def handler(request: web.Request) -> web.StreamResponse:
        answer = manifest_answer()
        answer.set_cookie("session", "of-the-first")
        return answer

    ref = parse_reference(f"{(await peer.serve(handler)).replace('127.0.0.1', 'localhost')}/app:1")
    for auth in (RegistryAuth(registry_token="mine"), None):
        await client.manifest(ref, auth)
    last = peer.requests[-1].headers
    assert "Authorization" not in last
    assert "Cookie" not in last


def test_proxies_of_the_environment_are_used_and_their_login_is_theirs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://u:p%40w@proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    login = base64.b64encode(b"u:p@w").decode()
    assert transport.proxy_of("https://reg.example/v2/") == (
        "http://proxy.example:3128",
        {"Proxy-Authorization": f"Basic {login}"},
    )
    assert transport.proxy_of("https://inside.example:5000/v2/") == (None, None)
    assert transport.proxy_of("http://reg.example/v2/") == (None, None)


async def test_a_blob_never_grows_past_what_was_announced(peer: Peer, client: RegistryClient) -> None:
    """Whoever reads it: ``/distribution`` reads the configuration into memory."""
    sent = 0
    config = b'{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":10}' % DIGEST.encode()
    manifest = b'{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[]}' % (KIND.encode(), config)

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        if "manifests" in request.path:
            return web.Response(body=manifest, content_type=KIND)
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 64 << 20:
            await response.write(bytes(1 << 16))
            sent += 1 << 16
        return response

    ref = parse_reference(f"{await peer.serve(handler)}/app:1")
    with pytest.raises(ContentError, match="longer than the 10 bytes announced"):
        await client.inspect(ref)
    assert sent < 32 << 20
