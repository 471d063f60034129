"""Container routes over a fake engine: what reaches the engine, what comes back."""

from __future__ import annotations

import asyncio
import json

import pytest

from runtime.errors import ConflictError, NetworkNotFoundError
from runtime.types import ContainerConfig, HostConfig, LogLine, PortBinding, RestartPolicy
from tests.unit.api.conftest import Client
from tests.unit.api.fakes import CONTAINER_ID, FakeEngine

DEADLINE_S = 30.0


async def test_create_reads_keys_in_any_case_and_nulls_as_docker_py_sends_them(
    client: Client, engine: FakeEngine
) -> None:
    body = {
        "image": "busybox",
        "Cmd": "true",
        "Hostname": None,
        "Tty": False,
        "Unknown": {"a": 1},
        "HostConfig": {
            "networkmode": "default",
            "Memory": None,
            "PortBindings": {"80/tcp": [{"HostIp": "", "hostport": "8080"}], "81/tcp": None},
        },
        "NetworkingConfig": None,
    }
    answer = await client.post("/containers/create", params={"name": "web"}, json=body)
    assert answer.status == 201
    assert await answer.json() == {"Id": CONTAINER_ID, "Warnings": ["careful"]}
    [(config, host, _networking, name)] = engine.created
    assert type(config) is ContainerConfig
    assert (config.Image, config.Cmd, name) == ("busybox", ["true"], "web")
    assert host == HostConfig(
        NetworkMode="default", PortBindings={"80/tcp": [PortBinding(HostPort="8080")], "81/tcp": None}
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"Image": 3}, "invalid JSON: Expected `str`, got `int` - at `$.Image`"),
        ({"HostConfig": {"Memory": "1g"}}, "invalid JSON: Expected `int`, got `str` - at `$.HostConfig.Memory`"),
        ([], "invalid JSON: want an object, got list"),
    ],
)
async def test_create_names_the_path_of_what_is_wrong(client: Client, body: object, message: str) -> None:
    answer = await client.post("/containers/create", json=body)
    assert answer.status == 400
    assert await answer.json() == {"message": message}


async def test_create_refuses_other_content_types_and_bad_names(client: Client, engine: FakeEngine) -> None:
    answer = await client.post("/containers/create", data='{"Image": "x"}', headers={"Content-Type": "text/plain"})
    assert answer.status == 400
    assert "must be 'application/json'" in (await answer.json())["message"]
    answer = await client.post("/containers/create", params={"name": "-x"}, json={"Image": "x"})
    assert answer.status == 400
    assert "Invalid container name (-x)" in (await answer.json())["message"]
    assert not engine.created


async def test_only_a_missing_image_is_not_found_because_clients_pull_it_then(
    client: Client, engine: FakeEngine
) -> None:
    body = {"Image": "busybox"}
    engine.create_error = NetworkNotFoundError("nowhere")
    answer = await client.post("/containers/create", json=body)
    assert (answer.status, await answer.json()) == (400, {"message": "network nowhere not found"})
    engine.create_error = None
    answer = await client.post("/containers/create", params={"platform": "linux/arm64"}, json=body)
    assert answer.status == 404
    assert "does not match the specified platform (linux/arm64)" in (await answer.json())["message"]
    assert (await client.post("/containers/create", params={"platform": "linux/amd64"}, json=body)).status == 201
    assert len(engine.created) == 1


async def test_update_reads_limits_and_policy_from_one_body(client: Client, engine: FakeEngine) -> None:
    body = {"Memory": 1 << 26, "PidsLimit": None, "RestartPolicy": {"Name": "always", "MaximumRetryCount": 0}}
    answer = await client.post("/containers/web/update", json=body)
    assert (answer.status, await answer.json()) == (200, {"Warnings": None})
    wanted = HostConfig(Memory=1 << 26, RestartPolicy=RestartPolicy(Name="always"))
    assert engine.calls == [("update", CONTAINER_ID, wanted)]
    assert (await client.post("/containers/nobody/update", json=body)).status == 404


async def test_body_that_is_too_large_is_refused_as_json(client: Client) -> None:
    answer = await client.post("/containers/create", json={"Image": "x" * (9 << 20)})
    assert answer.status == 413
    assert "message" in await answer.json()


async def test_start_twice_is_not_modified_without_a_body(client: Client) -> None:
    assert (await client.post("/containers/web/start")).status == 204
    again = await client.post("/containers/web/start")
    assert (again.status, await again.read()) == (304, b"")


async def test_missing_container_and_conflict_get_their_codes(client: Client) -> None:
    answer = await client.get("/containers/nobody/json")
    assert (answer.status, await answer.json()) == (404, {"message": "No such container: nobody"})
    assert (await client.post("/containers/web/kill")).status == 409
    assert (await client.post("/containers/nobody/wait")).status == 404
    assert (await client.get("/containers/nobody/logs", params={"stdout": "1"})).status == 404


async def test_inspect_has_the_fields_of_older_clients(client: Client, engine: FakeEngine) -> None:
    await engine.start("web")
    found = await (await client.get("/containers/web/json")).json()
    assert found["NetworkSettings"]["IPAddress"] == "172.17.0.2"
    assert found["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] == "172.17.0.2"
    assert "SizeRw" not in found
    sized = await (await client.get("/containers/web/json", params={"size": "1"})).json()
    assert (sized["SizeRw"], sized["SizeRootFs"]) == (10, 1010)


async def test_filters_in_both_forms_reach_the_engine(client: Client, engine: FakeEngine) -> None:
    for form in ({"label": {"x": True}}, {"label": ["x"]}):
        await client.get("/containers/json", params={"filters": json.dumps(form)})
        assert engine.filters == {"label": ["x"]}
    for wrong in ("[", "[]", '{"label": 3}', '{"label": [3]}'):
        answer = await client.get("/containers/json", params={"filters": wrong})
        assert answer.status == 400
        assert "invalid filter" in (await answer.json())["message"]


async def test_wait_sends_its_head_before_the_end_is_known(client: Client, engine: FakeEngine) -> None:
    await engine.start("web")
    async with asyncio.timeout(DEADLINE_S):
        answer = await client.post("/containers/web/wait", params={"condition": "next-exit"})
        assert answer.status == 200
        engine.end(3)
        assert await answer.json() == {"StatusCode": 3}
    wrong = await client.post("/containers/web/wait", params={"condition": "never"})
    assert wrong.status == 400


async def test_change_goes_on_when_its_client_leaves(client: Client, engine: FakeEngine) -> None:
    await engine.start("web")
    request = asyncio.ensure_future(client.post("/containers/web/stop", params={"t": "3", "signal": "SIGINT"}))
    async with asyncio.timeout(DEADLINE_S):
        await engine.stop_called.wait()
        request.cancel()
        await asyncio.wait([request])
        engine.stop_may_end.set()
        await engine.stopped.wait()
    assert engine.calls == [("stop", CONTAINER_ID, 3.0, "SIGINT")]


async def test_prune_removes_what_the_filters_leave(client: Client, engine: FakeEngine) -> None:
    kept = await client.post("/containers/prune", params={"filters": json.dumps({"label!": ["a=b"]})})
    assert await kept.json() == {"ContainersDeleted": None, "SpaceReclaimed": 0}
    kept = await client.post("/containers/prune", params={"filters": json.dumps({"until": ["0.5"]})})
    assert (await kept.json())["ContainersDeleted"] is None
    gone = await client.post("/containers/prune", params={"filters": json.dumps({"until": ["1h"]})})
    assert await gone.json() == {"ContainersDeleted": [CONTAINER_ID], "SpaceReclaimed": 10}
    wrong = await client.post("/containers/prune", params={"filters": json.dumps({"until": ["soon"]})})
    assert wrong.status == 400


# ---------------------------------------------------------------- logs


async def test_logs_are_framed_with_timestamps(client: Client, engine: FakeEngine) -> None:
    engine.lines = [
        LogLine("stdout", 1_700_000_000_000_000_005, b"one "),
        LogLine("stderr", 1_700_000_000_000_000_006, b"two", partial=True),
        LogLine("stderr", 1_700_000_000_000_000_007, b" end\n"),
    ]
    answer = await client.get("/containers/web/logs", params={"stdout": "1", "stderr": "1", "timestamps": "1"})
    assert answer.headers["Content-Type"] == "application/vnd.docker.multiplexed-stream"
    first, second = b"2023-11-14T22:13:20.000000005Z one ", b"2023-11-14T22:13:20.000000006Z two"
    assert await answer.read() == (
        b"\x01\x00\x00\x00" + len(first).to_bytes(4, "big") + first
        + b"\x02\x00\x00\x00" + len(second).to_bytes(4, "big") + second
        + b"\x02\x00\x00\x00\x00\x00\x00\x05 end\n"
    )  # fmt: skip


async def test_logs_of_a_terminal_are_raw(client: Client, engine: FakeEngine) -> None:
    engine.set_tty()
    engine.lines = [LogLine("stdout", 0, b"hello\r\n")]
    answer = await client.get("/containers/web/logs", params={"stdout": "true"})
    assert answer.headers["Content-Type"] == "application/vnd.docker.raw-stream"
    assert await answer.read() == b"hello\r\n"


async def test_logs_parameters_reach_the_engine(client: Client, engine: FakeEngine) -> None:
    params = {"stderr": "1", "since": "1700000000.5", "until": "1700000001", "tail": "7"}
    await client.get("/containers/web/logs", params=params)
    assert engine.calls == [("logs", False, True, False, 1_700_000_000_500_000_000, 1_700_000_001_000_000_000, 7)]
    assert (await client.get("/containers/web/logs")).status == 400
    assert (await client.get("/containers/web/logs", params={"stdout": "1", "since": "noon"})).status == 400


async def test_logs_that_cannot_be_read_are_refused_before_the_head(client: Client, engine: FakeEngine) -> None:
    engine.log_error = ConflictError("configured logging driver does not support reading")
    for follow in ("0", "1"):
        answer = await client.get("/containers/web/logs", params={"stdout": "1", "follow": follow})
        assert answer.status == 409


async def test_follower_of_a_silent_container_gets_its_head_at_once(client: Client, engine: FakeEngine) -> None:
    async with asyncio.timeout(DEADLINE_S):
        answer = await client.get("/containers/web/logs", params={"stdout": "1", "follow": "1"})
        assert answer.status == 200
        engine.follow_ended.set()
        assert await answer.read() == b""
