"""docker-py against a real engine (features W01, W03, W04, W08, W16)."""

from __future__ import annotations

import docker
import pytest
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound

from tests.conformance.conftest import IMAGE
from tests.conformance.hosts import EngineHost

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_ping_version_info_df(client: docker.DockerClient) -> None:
    assert client.ping()
    assert client.version()["ApiVersion"] == "1.51"
    assert client.info()["Swarm"]["LocalNodeState"] == "inactive"
    usage = client.df()
    assert usage["Images"][0]["RepoTags"] == [IMAGE]
    assert usage["LayersSize"] > 0


def test_run_returns_the_output_and_leaves_nothing(client: docker.DockerClient) -> None:
    assert client.containers.run(IMAGE, "echo hello", remove=True) == b"hello\n"
    assert client.containers.list(all=True) == []


def test_run_raises_with_exit_code_and_stderr(client: docker.DockerClient) -> None:
    with pytest.raises(ContainerError) as caught:
        client.containers.run(IMAGE, ["sh", "-c", "echo wrong >&2; exit 5"], remove=True)
    assert caught.value.exit_status == 5
    assert caught.value.stderr == b"wrong\n"


def test_life_of_a_container(client: docker.DockerClient) -> None:
    container = client.containers.run(IMAGE, "sleep 600", name="box", labels={"a": "b"}, detach=True)
    assert client.containers.list(filters={"label": "a=b"}) == [container]
    container.reload()
    assert container.status == "running"
    assert container.exec_run("echo in").output == b"in\n"
    assert container.exec_run(["sh", "-c", "exit 9"]).exit_code == 9
    container.stop(timeout=0)
    assert container.wait()["StatusCode"] == 137
    container.remove()
    with pytest.raises(NotFound):
        client.containers.get("box")


def test_older_version_finds_the_fields_it_knows(host: EngineHost) -> None:
    client = host.client(version="1.40")
    try:
        container = client.containers.run(IMAGE, "sleep 600", detach=True)
        container.reload()
        settings = container.attrs["NetworkSettings"]
        assert settings["IPAddress"] == settings["Networks"]["bridge"]["IPAddress"]
        assert client.images.get(IMAGE).attrs["VirtualSize"] > 0
    finally:
        client.close()


def test_logs_and_attach_of_both_streams(client: docker.DockerClient) -> None:
    container = client.containers.create(IMAGE, ["sh", "-c", "echo out; echo err >&2"])
    stream = container.attach(stream=True, stdout=True, stderr=True, demux=True)
    container.start()
    outs, errs = zip(*stream, strict=True)  # two pipes: which is read first is the monitor's affair
    assert [b"".join(piece or b"" for piece in pieces) for pieces in (outs, errs)] == [b"out\n", b"err\n"]
    container.wait()
    assert container.logs(stdout=True, stderr=False) == b"out\n"
    assert container.logs(stdout=False, stderr=True) == b"err\n"


def test_errors_have_their_types(client: docker.DockerClient) -> None:
    with pytest.raises(ImageNotFound):
        client.containers.create("nothing:here")
    with pytest.raises(APIError) as caught:
        client.api.create_container(IMAGE, host_config={"Memory": "much"})
    assert caught.value.status_code == 400
    with pytest.raises(APIError) as caught:
        client.containers.list(filters={"colour": "red"})
    assert caught.value.status_code == 400


def test_events_reach_a_listener(client: docker.DockerClient) -> None:
    events = client.events(decode=True, filters={"type": "container", "event": "create"})
    container = client.containers.create(IMAGE, "true")
    event = next(events)
    events.close()
    assert (event["status"], event["id"], event["from"]) == ("create", container.id, IMAGE)
