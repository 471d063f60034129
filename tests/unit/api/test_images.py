"""Image routes over a fake store: references, credentials, progress, archives."""

from __future__ import annotations

import base64
import json

import msgspec

from runtime.errors import ConflictError
from tests.unit.api.conftest import Client
from tests.unit.api.fakes import FakeEngine


def encoded(auth: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(auth)).decode()


async def test_pull_streams_progress_and_passes_credentials_on(client: Client, engine: FakeEngine) -> None:
    images = engine.fake_images
    images.progress = [{"status": "Pulling from library/busybox", "id": "latest"}]
    answer = await client.post(
        "/images/create",
        params={"fromImage": "registry:5000/a/b", "tag": "1", "platform": "linux/amd64"},
        headers={"X-Registry-Auth": encoded({"username": "u", "password": "p"})},
    )
    assert answer.status == 200
    assert json.loads(await answer.read()) == images.progress[0]
    [(reference, platform, auth)] = images.pulled
    assert (reference, platform) == ("registry:5000/a/b:1", "linux/amd64")
    assert auth is not None
    assert (auth.username, auth.password) == ("u", "p")


async def test_pull_error_is_a_status_before_and_a_line_after_the_first_progress(
    client: Client, engine: FakeEngine
) -> None:
    images = engine.fake_images
    images.error = ConflictError("broken")
    answer = await client.post("/images/create", params={"fromImage": "a", "tag": "b"})
    assert (answer.status, await answer.json()) == (409, {"message": "broken"})
    images.error_after_progress, images.progress = True, [{"status": "Downloading"}]
    answer = await client.post("/images/create", params={"fromImage": "a", "tag": "sha256:" + "0" * 64})
    assert answer.status == 200
    lines = [json.loads(line) for line in (await answer.read()).splitlines()]
    assert lines == [{"status": "Downloading"}, {"errorDetail": {"message": "broken"}, "error": "broken"}]
    assert images.pulled[-1][0] == "a@sha256:" + "0" * 64


async def test_image_names_with_slashes_find_their_route(client: Client) -> None:
    answer = await client.get("/v1.43/images/localhost:5000/a/b:c/json")
    assert (answer.status, await answer.json()) == (404, {"message": "No such image: localhost:5000/a/b:c"})
    assert (await (await client.get("/v1.43/images/busybox/json")).json())["VirtualSize"] == 1000
    assert "VirtualSize" not in await (await client.get("/v1.44/images/busybox/json")).json()


async def test_a_client_learns_digest_and_platforms_of_a_name(client: Client, engine: FakeEngine) -> None:
    """Features W09: what ``docker service create`` asks before it creates, with the user's credentials."""
    headers = {"X-Registry-Auth": encoded({"username": "u", "password": "p"})}
    answer = await client.get("/v1.51/distribution/registry:5000/a/b:1/json", headers=headers)
    assert (answer.status, await answer.json()) == (
        200,
        {
            "Descriptor": {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": "sha256:" + "d" * 64,
                "size": 500,
            },
            "Platforms": [{"architecture": "arm64", "os": "linux"}],
        },
    )
    [(reference, _, auth)] = engine.fake_images.pulled
    assert reference == "registry:5000/a/b:1"
    assert auth is not None
    assert auth.username == "u"


async def test_load_reads_the_body_and_names_what_it_loaded(client: Client, engine: FakeEngine) -> None:
    answer = await client.post("/images/load", params={"quiet": "1"}, data=b"tar" * (1 << 20))
    assert json.loads(await answer.read()) == {"stream": "Loaded image: busybox:latest\n"}
    assert len(engine.fake_images.loaded) == 3 << 20


async def test_broken_credentials_are_refused_without_repeating_them(client: Client) -> None:
    answer = await client.post(
        "/images/create", params={"fromImage": "a", "tag": "b"}, headers={"X-Registry-Auth": "c2VjcmV0"}
    )
    assert answer.status == 400
    assert "secret" not in await answer.text()
    assert "c2VjcmV0" not in await answer.text()
