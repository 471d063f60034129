"""The swarm half of the Engine API as clients see it: paths, statuses, fields, texts."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestClient, TestServer

from api.application import build
from api.swarm_routes import LogOptions, routes
from proto.objects_pb2 import Task, TaskState
from proto.specs_pb2 import Driver, NodeAvailability, NodeRole
from runtime.types import LogLine
from tests.unit.api_swarm.conftest import NOT_A_MANAGER, Swarm
from worker.membership.cluster_member import (
    AlreadyInSwarmError,
    InitRequest,
    InvalidRequestError,
    JoinRequest,
    LeaveRefusedError,
)

WEB = {
    "Name": "web",
    "TaskTemplate": {"ContainerSpec": {"Image": "busybox:1"}},
    "Mode": {"Replicated": {"Replicas": 2}},
}


async def create(swarm: Swarm, **changes: object) -> str:
    answer = await swarm.post("/v1.47/services/create", WEB | changes, status=201)
    return str(answer["ID"])


# ---------------------------------------------------------------- outside a swarm


@pytest.mark.parametrize(
    "path", ["/swarm", "/swarm/unlockkey", "/nodes", "/nodes/x", "/services", "/services/x", "/tasks", "/secrets", "/configs/x"]
)  # fmt: skip
async def test_who_is_no_manager_gets_503_and_the_text(swarm: Swarm, path: str) -> None:
    swarm.member.stub = None
    assert await swarm.refusal(swarm.client.get, path) == (503, NOT_A_MANAGER)


# ---------------------------------------------------------------- /swarm


async def test_init_takes_the_whole_body_and_answers_the_node_id(swarm: Swarm) -> None:
    body = {
        "listenaddr": "0.0.0.0:2377",
        "AdvertiseAddr": "eth0",
        "DataPathPort": 7777,
        "DefaultAddrPool": ["10.20.0.0/16"],
        "SubnetSize": 26,
        "Availability": "drain",
        "Spec": {"Dispatcher": {"HeartbeatPeriod": 2_000_000_000}, "Labels": None},
    }
    assert await swarm.post("/swarm/init", body) == "node-1"
    (request,) = swarm.member.requests
    assert isinstance(request, InitRequest)
    assert (request.advertise_addr, request.data_path_port, request.subnet_size) == ("eth0", 7777, 26)
    assert request.availability == NodeAvailability.NODE_AVAILABILITY_DRAIN
    assert request.spec.dispatcher.heartbeat_period_ns == 2 * 10**9


async def test_what_the_node_refuses_has_its_status(swarm: Swarm) -> None:
    cases = [(AlreadyInSwarmError("in one"), 503), (InvalidRequestError("bad address"), 400)]
    for refusal, status in cases:
        swarm.member.refusal = refusal
        assert await swarm.refusal(swarm.client.post, "/swarm/init", json={}) == (status, str(refusal))
    swarm.member.refusal = LeaveRefusedError("You are attempting to leave the swarm on a manager")
    assert (await swarm.refusal(swarm.client.post, "/swarm/leave"))[0] == 503
    assert swarm.member.requests[-1] is False


async def test_init_checks_types(swarm: Swarm) -> None:
    post = swarm.client.post
    status, message = await swarm.refusal(post, "/swarm/init", json={"DataPathPort": "x"})
    assert (status, "DataPathPort" in message) == (400, True)
    status, message = await swarm.refusal(post, "/swarm/init", json={"Availability": "asleep"})
    assert (status, message) == (400, 'invalid value "asleep", want one of: active, pause, drain')
    assert not swarm.member.requests


async def test_join_and_leave(swarm: Swarm) -> None:
    await swarm.post("/swarm/join", {"RemoteAddrs": ["10.0.0.1:2377"], "JoinToken": "SWMTKN-1-x"})
    (request,) = swarm.member.requests
    assert isinstance(request, JoinRequest)
    assert list(request.remote_addrs) == ["10.0.0.1:2377"]
    await swarm.post("/swarm/leave", force="1")
    assert swarm.member.requests[-1] is True


async def test_inspect_shows_tokens_and_roots_and_no_key(swarm: Swarm) -> None:
    shown = await swarm.get("/swarm")
    assert set(shown["JoinTokens"]) == {"Worker", "Manager"}
    assert shown["TLSInfo"]["TrustRoot"].startswith("-----BEGIN CERTIFICATE")
    assert base64.b64decode(shown["TLSInfo"]["CertIssuerSubject"])
    assert (shown["DefaultAddrPool"], shown["SubnetSize"], shown["DataPathPort"]) == (["10.0.0.0/8"], 24, 4789)
    assert shown["RootRotationInProgress"] is False
    assert "the key" not in json.dumps(shown)


async def test_update_rotates_a_token_and_refuses_a_stale_version(swarm: Swarm) -> None:
    before = await swarm.get("/swarm")
    version = str(before["Version"]["Index"])
    await swarm.post("/swarm/update", before["Spec"], version=version, rotateWorkerToken="true")
    after = await swarm.get("/swarm")
    assert after["JoinTokens"]["Worker"] != before["JoinTokens"]["Worker"]
    assert after["Spec"]["CAConfig"]["NodeCertExpiry"] == 7776000000000000
    post = swarm.client.post
    assert await swarm.refusal(post, "/swarm/update", json=before["Spec"], params={"version": version}) == (
        500,
        "rpc error: code = Unknown desc = update out of sequence",
    )
    assert await swarm.refusal(post, "/swarm/update", json={}) == (
        400,
        "invalid swarm version '': strconv.ParseUint: parsing \"\": invalid syntax",
    )
    arguments = {"version": "1", "rotateWorkerToken": "perhaps"}
    assert await swarm.refusal(post, "/swarm/update", json={}, params=arguments) == (
        400,
        "invalid value for rotateWorkerToken: perhaps",
    )


async def test_nothing_is_ever_locked(swarm: Swarm) -> None:
    assert await swarm.get("/swarm/unlockkey") == {"UnlockKey": ""}
    status, message = await swarm.refusal(swarm.client.post, "/swarm/unlock", json={"UnlockKey": "SWMKEY-1-x"})
    assert (status, message) == (409, "swarm is not locked")


# ---------------------------------------------------------------- /nodes


async def test_nodes_are_listed_updated_and_removed(swarm: Swarm) -> None:
    await swarm.manager.add_node("node-1", hostname="alpha", role=NodeRole.NODE_ROLE_MANAGER)
    await swarm.manager.add_node("node-2", hostname="beta")
    (leader,) = await swarm.get("/nodes", filters='{"role":{"manager":true}}')
    assert leader["ManagerStatus"] == {"Leader": True, "Reachability": "reachable", "Addr": "127.0.0.1:2377"}
    assert leader["Spec"] == {"Labels": {}, "Role": "manager", "Availability": "active"}
    beta = await swarm.get("/nodes/beta")
    assert (beta["Status"]["State"], beta["Description"]["Hostname"]) == ("ready", "beta")
    await swarm.post(
        "/nodes/beta/update", beta["Spec"] | {"Availability": "Drain"}, version=str(beta["Version"]["Index"])
    )
    assert (await swarm.get("/nodes/node-2"))["Spec"]["Availability"] == "drain"
    delete = swarm.client.delete
    assert await swarm.refusal(delete, "/nodes/beta") == (
        400,
        "rpc error: code = FailedPrecondition desc = node node-2 is not down and can't be removed",
    )
    async with delete("/nodes/beta", params={"force": "1"}) as response:
        assert response.status == 200
    assert await swarm.refusal(swarm.client.get, "/nodes/beta") == (404, "node beta not found")


async def test_a_bad_node_spec_is_refused(swarm: Swarm) -> None:
    await swarm.manager.add_node("node-2")
    post, version = swarm.client.post, {"version": "1"}
    assert await swarm.refusal(post, "/nodes/node-2/update", json={"Role": "king"}, params=version) == (
        400,
        'Role: invalid value "king", want one of: worker, manager',
    )
    assert await swarm.refusal(post, "/nodes/node-2/update", json={"Role": "worker"}, params=version) == (
        400,
        'invalid Availability: ""',
    )


# ---------------------------------------------------------------- /services


async def test_a_service_is_created_seen_updated_and_removed(swarm: Swarm) -> None:
    service_id = await create(swarm)
    shown = await swarm.get("/services/web")
    assert shown["ID"] == service_id
    assert shown["Spec"]["Mode"] == {"Replicated": {"Replicas": 2}}
    assert "UpdateConfig" not in shown["Spec"]
    assert shown["Endpoint"] == {"Spec": {}}
    full = await swarm.get("/services/web", insertDefaults="true")
    assert full["Spec"]["UpdateConfig"]["Parallelism"] == 1
    shown["Spec"]["Mode"]["Replicated"]["Replicas"] = 3
    version = str(shown["Version"]["Index"])
    assert await swarm.post("/services/web/update", shown["Spec"], version=version) == {"Warnings": None}
    changed = await swarm.get(f"/services/{service_id[:8]}")
    assert changed["PreviousSpec"]["Mode"]["Replicated"]["Replicas"] == 2
    answer = await swarm.refusal(
        swarm.client.post, "/services/web/update", json=shown["Spec"], params={"version": version}
    )
    assert answer == (500, "rpc error: code = Unknown desc = update out of sequence")
    await swarm.post("/services/web/update", None, version=str(changed["Version"]["Index"]), rollback="previous")
    assert (await swarm.get("/services/web"))["UpdateStatus"]["State"] == "rollback_started"
    async with swarm.client.delete("/services/web") as response:
        assert response.status == 200
    assert await swarm.get("/services") == []
    assert await swarm.refusal(swarm.client.get, "/services/web") == (404, "service web not found")


async def test_docker_py_spells_the_mode_in_lower_case(swarm: Swarm) -> None:
    await create(swarm, Mode={"global": {}})
    (service,) = await swarm.get("/services", filters='{"mode":["global"]}')
    assert service["Spec"]["Mode"] == {"Global": {}}


async def test_service_status_is_counted_on_request(swarm: Swarm) -> None:
    service_id = await create(swarm)
    await swarm.manager.add_task("t1", service_id)
    (service,) = await swarm.get("/services", status="true")
    assert service["ServiceStatus"] == {"RunningTasks": 1, "DesiredTasks": 2, "CompletedTasks": 0}
    (plain,) = await swarm.get("/services")
    assert "ServiceStatus" not in plain


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (WEB, 409, "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web already exists"),
        ({"Name": "x"}, 400, "rpc error: code = InvalidArgument desc = TaskSpec: missing runtime"),
        ({"Name": 5}, 400, "Name: want a string, got 5"),
        (WEB | {"Name": "job", "Mode": {"ReplicatedJob": {}}}, 501, "rpc error: code = Unimplemented desc = services of mode replicated-job are not served yet"),
        (WEB | {"Name": "x", "TaskTemplate": WEB["TaskTemplate"] | {"Placement": {"Constraints": ["a"]}}}, 400, "rpc error: code = InvalidArgument desc = constraint expected one operator from ==, !="),  # type: ignore[operator]  # the dict's values are of several types
    ],
)  # fmt: skip
async def test_a_service_that_cannot_be_is_refused(swarm: Swarm, body: object, status: int, message: str) -> None:
    await create(swarm)
    assert await swarm.refusal(swarm.client.post, "/services/create", json=body) == (status, message)


async def test_published_host_ports_come_with_a_warning(swarm: Swarm) -> None:
    ports = [{"TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}]
    answer = await swarm.post("/services/create", WEB | {"EndpointSpec": {"Ports": ports}}, status=201)
    assert len(answer["Warnings"]) == 1
    shown = await swarm.get("/services/web")
    assert shown["Endpoint"]["Ports"] == [
        {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}
    ]


async def test_registry_credentials_are_stored_and_never_shown(swarm: Swarm) -> None:
    auth = base64.urlsafe_b64encode(b'{"username":"me","password":"hunter2"}').decode()
    async with swarm.client.post("/services/create", json=WEB, headers={"X-Registry-Auth": auth}) as response:
        service_id = (await response.json())["ID"]
    stored = swarm.manager.store.view.services.get(service_id)
    assert stored is not None
    kept = stored.spec.task_template.registry_auth
    assert json.loads(base64.urlsafe_b64decode(kept)) == {
        "username": "me",
        "password": "hunter2",
        "serveraddress": "docker.io",
    }
    shown = json.dumps(await swarm.get("/services/web"))
    assert auth not in shown
    assert kept not in shown


async def test_registry_credentials_stay_those_of_their_registry_when_the_image_changes(swarm: Swarm) -> None:
    def sent(**fields: str) -> dict[str, str]:
        return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()}

    async def kept_for(image: str, version: int, headers: dict[str, str]) -> str:
        spec = WEB | {"TaskTemplate": {"ContainerSpec": {"Image": image}}}
        url = f"/services/web/update?version={version}"
        async with swarm.client.post(url, json=spec, headers=headers) as response:
            assert response.status == 200, await response.text()
        template = swarm.manager.store.view.services.get(service_id).spec.task_template  # type: ignore[union-attr]  # exists
        return str(json.loads(base64.urlsafe_b64decode(template.registry_auth))["serveraddress"])

    async def version() -> int:
        return int((await swarm.get("/services/web"))["Version"]["Index"])

    headers = sent(username="me", password="hunter2")
    async with swarm.client.post("/services/create", json=WEB, headers=headers) as response:
        service_id = (await response.json())["ID"]
    assert await kept_for("reg.example/app:1", await version(), {}) == "docker.io"
    assert await kept_for("reg.example/app:2", await version(), headers) == "reg.example"
    own = sent(username="me", password="hunter2", serveraddress="https://other.example:5000/v2/")
    assert await kept_for("reg.example/app:3", await version(), own) == "https://other.example:5000/v2/"


async def test_registry_credentials_that_are_none_or_cannot_be_read(swarm: Swarm) -> None:
    cases = [("bnVsbA==", 201), ("e30=", 201), ("e30", 201), ("x", 400), ("WzFd", 400)]
    for number, (text, status) in enumerate(cases):
        spec = WEB | {"Name": f"web-{number}"}
        headers = {"X-Registry-Auth": text}
        async with swarm.client.post("/services/create", json=spec, headers=headers) as response:
            assert response.status == status, await response.text()
    assert {service.spec.task_template.registry_auth for service in swarm.manager.store.view.services} == {""}


async def test_networks_of_this_host_are_named(swarm: Swarm) -> None:
    """The CLI resolves ``--network host`` to an ID that means nothing elsewhere."""
    names = {"ab" * 32: "host"}
    app = build(routes(swarm.member, network_name=names.get), server="swarmd/test (linux)")
    template = {"ContainerSpec": {"Image": "busybox"}, "Networks": [{"Target": "ab" * 32}]}
    async with TestClient(TestServer(app)) as client:
        async with client.post("/services/create", json=WEB | {"TaskTemplate": template}) as response:
            assert response.status == 201
        shown = await swarm.get("/services/web")
        assert shown["Spec"]["TaskTemplate"]["Networks"] == [{"Target": "host"}]
        template["Networks"] = [{"Target": "cd" * 32}]
        body = WEB | {"Name": "other", "TaskTemplate": template}
        status, message = await swarm.refusal(client.post, "/services/create", json=body)
        assert (status, message) == (404, f"network {'cd' * 32} not found")


async def test_bodies_that_are_no_json_are_refused(swarm: Swarm) -> None:
    post = swarm.client.post
    assert await swarm.refusal(post, "/services/create", data=b"{}", headers={"Content-Type": "text/plain"}) == (
        400,
        "unsupported Content-Type header (text/plain): must be 'application/json'",
    )
    headers = {"Content-Type": "application/json"}
    assert await swarm.refusal(post, "/services/create", data=b"", headers=headers) == (
        400,
        "invalid JSON: got EOF while reading request body",
    )
    status, message = await swarm.refusal(post, "/services/create", data=b"[" * 50_000, headers=headers)
    assert (status, message[:12]) == (400, "invalid JSON")


async def test_filters_come_in_two_forms_and_unknown_ones_are_refused(swarm: Swarm) -> None:
    await create(swarm)
    for filters in ('{"name":{"web":true}}', '{"name":["web"]}'):
        assert len(await swarm.get("/services", filters=filters)) == 1
    get = swarm.client.get
    assert await swarm.refusal(get, "/services", params={"filters": '{"colour":["red"]}'}) == (
        400,
        "invalid filter 'colour'",
    )
    assert (await swarm.refusal(get, "/services", params={"filters": "{"}))[0] == 400


# ---------------------------------------------------------------- /tasks


async def test_tasks_carry_their_spec_and_the_services_labels(swarm: Swarm) -> None:
    service_id = await create(swarm, Labels={"tier": "front"})
    await swarm.manager.add_task("t1", service_id, node_id="node-1")
    (task,) = await swarm.get("/tasks", filters='{"service":{"web":true},"_up-to-date":{"true":true}}')
    assert task["Spec"]["ContainerSpec"] == {"Image": "busybox:1"}
    assert task["Labels"] == {"tier": "front"}
    assert (task["DesiredState"], task["Status"]["State"], task["Slot"]) == ("running", "running", 1)
    assert await swarm.get("/tasks/web.1.t1") == task
    assert await swarm.refusal(swarm.client.get, "/tasks/none") == (404, "task none not found")


async def test_a_task_shows_the_log_driver_of_its_service(swarm: Swarm) -> None:
    """As with Docker: the cluster's default (features A1.22) shows in the swarm and in the container, in no task."""
    cluster = await swarm.get("/swarm")
    driver = {"Name": "json-file", "Options": {"max-size": "1m"}}
    spec = cluster["Spec"] | {"TaskDefaults": {"LogDriver": driver}}
    await swarm.post("/swarm/update", spec, version=str(cluster["Version"]["Index"]))
    assert (await swarm.get("/swarm"))["Spec"]["TaskDefaults"] == {"LogDriver": driver}
    plain = await create(swarm, Name="plain")
    own = await create(swarm, Name="own", TaskTemplate={"ContainerSpec": {"Image": "busybox:1"}, "LogDriver": driver})
    await swarm.manager.commit(
        lambda working: working.create(
            Task(id="t1", service_id=plain, spec_version=1, log_driver=Driver(name="json-file"))
        )
    )
    await swarm.manager.add_task("t2", own)
    task = await swarm.get("/tasks/t1")
    assert "LogDriver" not in task
    assert "LogDriver" not in task["Spec"]
    assert (await swarm.get("/tasks/t2"))["Spec"]["LogDriver"] == driver


async def test_a_list_of_thousands_of_tasks_is_answered(swarm: Swarm) -> None:
    service_id = await create(swarm)
    for start in range(0, 6000, 150):
        await swarm.manager.commit(
            lambda working, start=start: [  # type: ignore[misc]  # the default binds the loop's value
                working.create(Task(id=f"t{start + i}", service_id=service_id, slot=start + i, spec_version=1))
                for i in range(150)
            ]
        )
    tasks = await swarm.get("/tasks")
    assert len(tasks) == 6000


# ---------------------------------------------------------------- secrets, configs


async def test_secrets_hide_and_configs_show_their_data(swarm: Swarm) -> None:
    data = base64.b64encode(b"hunter2").decode()
    secret = await swarm.post("/secrets/create", {"Name": "pw", "Data": data, "Labels": {"a": "b"}}, status=201)
    assert (await swarm.get("/secrets/pw"))["Spec"] == {"Name": "pw", "Labels": {"a": "b"}}
    assert (await swarm.get("/secrets", filters='{"label":{"a":true}}'))[0]["ID"] == secret["ID"]
    await swarm.post("/configs/create", {"Name": "cfg", "Data": data}, status=201)
    config = await swarm.get("/configs/cfg")
    assert config["Spec"]["Data"] == data
    await swarm.post(
        "/configs/cfg/update", {"Name": "cfg", "Labels": {"x": "y"}}, version=str(config["Version"]["Index"])
    )
    assert (await swarm.get("/configs/cfg"))["Spec"]["Labels"] == {"x": "y"}
    for path in ("/secrets/pw", "/configs/cfg"):
        async with swarm.client.delete(path) as response:
            assert response.status == 204
    assert await swarm.refusal(swarm.client.get, "/secrets/pw") == (404, "secret pw not found")
    assert await swarm.refusal(swarm.client.post, "/secrets/create", json={"Name": "pw", "Data": "%"}) == (
        400,
        "Data: want base64",
    )


@pytest.mark.parametrize(
    ("kind", "shown_data", "too_large"),
    [
        (
            "secret",
            {},
            "rpc error: code = InvalidArgument desc = secret data must be larger than 0 and less than 512000 bytes",
        ),
        (
            "config",
            {"Data": "aA=="},
            "rpc error: code = InvalidArgument desc = config data must be larger than 0 and less than 1024000 bytes",
        ),
    ],
)
async def test_secrets_and_configs_live_alike(
    swarm: Swarm, kind: str, shown_data: dict[str, str], too_large: str
) -> None:
    """Features A10.14, A10.16: every route, and every refusal in the kind's own words."""
    path, post = f"/{kind}s", swarm.client.post
    body = {"Name": "one", "Data": "aA=="}
    answer = await swarm.post(f"{path}/create", body, status=201)
    assert set(answer) == {"ID"}
    await swarm.post(f"{path}/create", body | {"Name": "two"}, status=201)
    shown = await swarm.get(f"{path}/one")
    assert set(shown) == {"ID", "Version", "CreatedAt", "UpdatedAt", "Spec"}
    assert shown["Spec"] == {"Name": "one", "Labels": {}} | shown_data
    assert await swarm.get(f"{path}/{answer['ID'][:8]}") == shown
    listed = await swarm.get(path)
    assert sorted(entry["Spec"]["Name"] for entry in listed) == ["one", "two"]
    assert shown in listed
    assert await swarm.get(path, filters='{"name":["on"]}') == [shown]
    assert await swarm.refusal(swarm.client.get, path, params={"filters": '{"colour":["red"]}'}) == (
        400,
        "invalid filter 'colour'",
    )

    assert await swarm.refusal(post, f"{path}/create", json=body) == (
        409,
        f"rpc error: code = AlreadyExists desc = {kind} one already exists",
    )
    empty = body | {"Name": "three", "Data": ""}
    assert await swarm.refusal(post, f"{path}/create", json=empty) == (400, too_large)
    templated = body | {"Name": "three", "Templating": {"Name": "golang"}}
    assert (await swarm.refusal(post, f"{path}/create", json=templated))[1].endswith(
        f"{kind}s with templates are not served yet"
    )

    version = str(shown["Version"]["Index"])
    update = f"{path}/one/update"
    assert await swarm.refusal(post, update, json=body) == (
        400,
        f"invalid {kind} version '': strconv.ParseUint: parsing \"\": invalid syntax",
    )
    assert (await swarm.refusal(post, update, json=body | {"Data": "aQ=="}, params={"version": version}))[1].endswith(
        "only updates to Labels are allowed"
    )
    assert await swarm.post(update, body | {"Labels": {"a": "b"}}, version=version) is None
    assert (await swarm.get(f"{path}/one"))["Spec"] == shown["Spec"] | {"Labels": {"a": "b"}}
    assert (await swarm.refusal(post, update, json=body, params={"version": version}))[1].endswith(
        "update out of sequence"
    )

    word = kind.capitalize()
    reference = {f"{word}ID": answer["ID"], f"{word}Name": "one", "File": {"Name": "one", "Mode": 292}}
    await create(swarm, TaskTemplate={"ContainerSpec": {"Image": "busybox", f"{word}s": [reference]}})
    assert await swarm.refusal(swarm.client.delete, f"{path}/one") == (
        400,
        f"rpc error: code = InvalidArgument desc = {kind} 'one' is in use by the following service: web",
    )
    async with swarm.client.delete(f"{path}/two") as response:
        assert (response.status, await response.read()) == (204, b"")
    for call in (swarm.client.get, swarm.client.delete):
        assert await swarm.refusal(call, f"{path}/two") == (404, f"{kind} two not found")


# ---------------------------------------------------------------- logs


async def local_logs(task: Task, options: LogOptions) -> AsyncIterator[LogLine]:
    if options.stdout:
        yield LogLine(stream="stdout", timestamp_ns=1_700_000_000_000_000_001, data=f"hello from {task.id}\n".encode())


async def test_logs_of_local_tasks_carry_their_origin(swarm: Swarm) -> None:
    service_id = await create(swarm)
    await swarm.manager.add_task("t1", service_id, slot=1, node_id="node-1")
    await swarm.manager.add_task("t2", service_id, slot=2, node_id="node-2")
    await swarm.manager.add_task("t3", service_id, slot=3, state=TaskState.TASK_STATE_PENDING)
    query = {"stdout": "1", "stderr": "1", "details": "1", "timestamps": "1"}
    async with (
        TestClient(TestServer(swarm.application(local_logs))) as client,
        client.get("/services/web/logs", params=query) as response,
    ):
        assert response.content_type == "application/vnd.docker.multiplexed-stream"
        body = await response.read()
    line = (
        "2023-11-14T22:13:20.000000001Z com.docker.swarm.node.id=node-1,"
        f"com.docker.swarm.service.id={service_id},com.docker.swarm.task.id=t1 hello from t1\n"
    ).encode()
    assert bytes([1, 0, 0, 0]) + len(line).to_bytes(4, "big") + line in body
    assert b"task.id=t2 logs of tasks on other nodes are not served yet" in body


async def test_logs_that_cannot_be_read_here_are_refused(swarm: Swarm) -> None:
    service_id = await create(swarm)
    await swarm.manager.add_task("t2", service_id, node_id="node-2")
    get = swarm.client.get
    assert (await swarm.refusal(get, "/services/web/logs"))[0] == 400
    assert (await swarm.refusal(get, "/services/web/logs", params={"stdout": "1", "tail": "few"}))[0] == 400
    assert (await swarm.refusal(get, "/tasks/t2/logs", params={"stdout": "1"}))[0] == 501
    async with TestClient(TestServer(swarm.application(local_logs))) as client:
        assert (await swarm.refusal(client.get, "/services/web/logs", params={"stdout": "1"}))[0] == 501
