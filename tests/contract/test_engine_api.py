"""What the CLI's tests hear from their fake engine is what the real application says of the same cluster.

The objects that the fake shows are put into a store; the application, over the control service and a log of one
member, is asked what the fake is asked. Answers are equal but for what each side makes up for itself, and that is of
one form.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from api import engine_routes
from api.application import build
from api.engine_routes.context import EngineContext
from api.json_codec import decode
from base.tasks import OwnedTasks
from manager.consensus.inprocess import InProcessConsensus
from manager.consensus.port import Member, NodeID
from manager.model.versions import present_version
from manager.store import Working
from proto.objects_pb2 import Config, Node, Secret, Service, Task
from runtime.images import ImageStore
from runtime.networks.rules import PublishedPort
from tests.support_images import docker_archive, in_chunks
from tests.unit.api.fakes import INFO
from tests.unit.api.fakes import FakeEngine as EngineOfTheAPI
from tests.unit.api_swarm.conftest import Swarm, running_swarm
from tests.unit.cli.fake_engine import Asked, FakeEngine
from tests.unit.cli.sample_cluster import fill, fill_run
from tests.unit.cli.test_stack_parity import routes as routes_of_a_deployment

Answer = tuple[int, Any]
Client = TestClient[web.Request, web.Application]
Object = dict[str, Any]

MADE_UP = {
    *("Index", "CreatedAt", "UpdatedAt", "RunningTasks", "DesiredTasks", "CompletedTasks"),
    *("Worker", "Manager", "UnlockKey", "TrustRoot", "CertIssuerSubject", "CertIssuerPublicKey", "Warnings"),
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d*[1-9])?Z")


@pytest.fixture
def fake(tmp_path: Path) -> FakeEngine:
    engine = FakeEngine(tmp_path / "engine.sock")
    fill(engine)
    return engine


@pytest.fixture
async def swarm(tmp_path: Path, fake: FakeEngine) -> AsyncIterator[Swarm]:
    """The application over the cluster that the fake shows."""
    nodes: list[Object] = shown(fake, "/nodes")
    leader, *managers = [node for node in nodes if "ManagerStatus" in node]
    consensus = InProcessConsensus(NodeID(leader["ID"]), leader["ManagerStatus"]["Addr"])
    async with running_swarm(tmp_path, consensus) as made:
        made.member.node_id = leader["ID"]
        for node in managers:
            await consensus.add_member(Member(NodeID(node["ID"]), node["ManagerStatus"]["Addr"]))

        def create(working: Working) -> None:
            for node in nodes:
                working.create(decode(Node, node))
            for secret in shown(fake, "/secrets"):
                working.create(decode(Secret, secret))
            for config in shown(fake, "/configs"):
                working.create(decode(Config, config))
            for service in (decode(Service, service) for service in shown(fake, "/services")):
                service.spec_version = 1
                working.create(service)
                working.create(present_version(service))
            for task in (decode(Task, task) for task in shown(fake, "/tasks")):
                task.spec_version = 1
                working.create(task)

        await made.manager.commit(create)
        yield made


def ask_fake(fake: FakeEngine, method: str, path: str, body: object = None, **query: str) -> Answer:
    raw = fake.answer(Asked(method, path, query, body))
    return raw.status, json.loads(raw.body) if raw.body else None


def shown(fake: FakeEngine, path: str) -> Any:
    status, answer = ask_fake(fake, "GET", path)
    assert status == 200
    return answer


async def ask(client: Client, method: str, path: str, body: object = None, **query: str) -> Answer:
    async with client.request(method, path, json=body, params=query) as response:
        text = await response.text()
        return response.status, json.loads(text) if text else None


def form(value: Any) -> str:
    return "a time" if isinstance(value, str) and TIME.fullmatch(value) else type(value).__name__


def differences(fake: Any, real: Any, path: str = "") -> Iterator[str]:
    """Each place where two decoded answers are not the same."""
    if isinstance(fake, dict) and isinstance(real, dict):
        for key in sorted({*fake, *real}):
            if key not in fake or key not in real:
                yield f"{path}.{key}: only the {'fake' if key in fake else 'real'} one has it"
            elif key not in MADE_UP:
                yield from differences(fake[key], real[key], f"{path}.{key}")
            elif form(fake[key]) != form(real[key]) and key != "Warnings":
                yield f"{path}.{key}: fake {fake[key]!r}, real {real[key]!r}"
    elif isinstance(fake, list) and isinstance(real, list) and len(fake) == len(real):
        for index, pair in enumerate(zip(fake, real, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif fake != real:
        yield f"{path}: fake {fake!r}, real {real!r}"


def in_order(answer: Answer) -> Answer:
    """Lists of objects come in any order."""
    status, value = answer
    if isinstance(value, list):
        value = sorted(value, key=lambda entry: str(entry["ID"]))
    return status, value


@pytest.mark.parametrize(
    "path",
    [
        *("/nodes", "/nodes/host-9", "/nodes/{node}", "/nodes/gone"),
        *("/services", "/services/web", "/services/{service}", "/services/gone", "/tasks", "/tasks/{task}"),
        *("/secrets", "/secrets/b-9", "/secrets/gone", "/configs", "/configs/b-9", "/configs/gone"),
        *("/swarm", "/swarm/unlockkey"),
    ],
)
async def test_what_is_shown(fake: FakeEngine, swarm: Swarm, path: str) -> None:
    asked = path.format(**{kind: shown(fake, f"/{kind}s")[0]["ID"] for kind in ("node", "service", "task")})
    theirs, ours = in_order(ask_fake(fake, "GET", asked)), in_order(await ask(swarm.client, "GET", asked))
    assert list(differences(list(theirs), list(ours))) == []


async def test_the_numbers_of_tasks_are_shown_where_they_are_asked_for(fake: FakeEngine, swarm: Swarm) -> None:
    theirs = in_order(ask_fake(fake, "GET", "/services", status="true"))
    ours = in_order(await ask(swarm.client, "GET", "/services", status="true"))
    assert all("ServiceStatus" in service for service in ours[1])
    assert list(differences(list(theirs), list(ours))) == []


@pytest.mark.parametrize("path", ["/nodes/host-9", "/services/web", "/swarm"])
async def test_an_update_in_sequence(fake: FakeEngine, swarm: Swarm, path: str) -> None:
    shown_by_fake, (_, shown_by_real) = shown(fake, path), await ask(swarm.client, "GET", path)
    theirs = ask_fake(fake, "POST", f"{path}/update", shown_by_fake["Spec"])
    version = str(shown_by_real["Version"]["Index"])
    ours = await ask(swarm.client, "POST", f"{path}/update", shown_by_fake["Spec"], version=version)
    assert list(differences(list(theirs), list(ours))) == []


@pytest.mark.parametrize("path", ["/nodes/host-1", "/nodes/gone", "/services/web", "/services/gone"])
async def test_a_removal(fake: FakeEngine, swarm: Swarm, path: str) -> None:
    assert ask_fake(fake, "DELETE", path) == await ask(swarm.client, "DELETE", path)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/swarm/init", {"ListenAddr": "0.0.0.0:2377"}),
        ("/swarm/join", {"RemoteAddrs": ["10.0.0.1:2377"], "JoinToken": "x"}),
        ("/swarm/leave", None),
    ],
)
async def test_coming_and_going(fake: FakeEngine, swarm: Swarm, path: str, body: Object | None) -> None:
    assert ask_fake(fake, "POST", path, body) == await ask(swarm.client, "POST", path, body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/services/create", {"Name": "new", "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}}}),
        ("/secrets/create", {"Name": "new", "Data": "eA=="}),
        ("/configs/create", {"Name": "new", "Data": "eA=="}),
    ],
)
async def test_a_creation(fake: FakeEngine, swarm: Swarm, path: str, body: Object) -> None:
    routes_of_a_deployment(fake)
    (status, theirs), ours = ask_fake(fake, "POST", path, body), await ask(swarm.client, "POST", path, body)
    assert (status, set(theirs)) == (ours[0], set(ours[1]))


IMAGE = "localhost:5000/team/web:2"


@dataclass(frozen=True)
class Served:
    """The engine's half of the API: one container that runs, and images in a real store."""

    engine: EngineOfTheAPI
    client: Client


@pytest.fixture
async def served(tmp_path: Path, swarm: Swarm) -> AsyncIterator[Served]:
    engine = EngineOfTheAPI()
    store = ImageStore(tmp_path / "engine", users=lambda image_id: ())
    await store.open()
    await store.load(in_chunks(docker_archive([b""], [IMAGE])))
    await engine.start("web")
    assert engine.container is not None
    published = PublishedPort("tcp", "0.0.0.0", 8080, "172.17.0.2", 80)
    endpoints = engine.container.state.Endpoints
    endpoints["bridge"] = msgspec.structs.replace(endpoints["bridge"], Ports=[published])
    engine.images = store
    operations = OwnedTasks()
    context = EngineContext(engine, swarm.member, INFO, operations)
    async with TestClient(TestServer(build(engine_routes.routes(context), server="swarmd/test (linux)"))) as client:
        yield Served(engine, client)
    await operations.close(grace_s=0)
    await store.close()


def wrong_forms(fake: Any, real: Any, path: str = "") -> Iterator[str]:
    """Each place where the fake answer has what the real one has not, or in another form."""
    if isinstance(fake, dict) and isinstance(real, dict):
        for key, value in fake.items():
            if key in real:
                yield from wrong_forms(value, real[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}: only the fake one has it"
    elif isinstance(fake, list) and isinstance(real, list):
        for value in fake if real else ():
            yield from wrong_forms(value, real[0], f"{path}[]")
    elif type(fake) is not type(real) and None not in (fake, real):
        yield f"{path}: fake {fake!r}, real {real!r}"


@pytest.mark.parametrize("path", ["/info", "/images/json", "/containers/json"])
async def test_what_the_engine_shows_of_itself(fake: FakeEngine, served: Served, path: str) -> None:
    status, real = await ask(served.client, "GET", path)
    assert (status, bool(real)) == (200, True)
    assert list(wrong_forms(shown(fake, path), real)) == []


async def test_a_run(fake: FakeEngine, served: Served) -> None:
    fill_run(fake)
    client, stream = served.client, served.engine.stream
    body = {"Image": IMAGE}
    (status, theirs), ours = (
        ask_fake(fake, "POST", "/containers/create", body),
        await ask(client, "POST", "/containers/create", body),
    )
    assert (status, list(wrong_forms(theirs, ours[1])), set(theirs)) == (ours[0], [], set(ours[1]))
    path, path_of_fake = f"/containers/{ours[1]['Id']}", f"/containers/{theirs['Id']}"
    stream.say("stdout", b"out\n")
    stream.say("stderr", b"err\n")
    stream.finish()
    options = {"stream": "1", "stdout": "1", "stderr": "1"}
    attached = fake.answer(Asked("POST", f"{path_of_fake}/attach", options))
    async with client.post(f"{path}/attach", params=options) as response:
        assert (response.status, response.content_type) == (attached.status, attached.content_type)
        assert await response.read() == attached.body
    started = ask_fake(fake, "POST", f"{path_of_fake}/start"), await ask(client, "POST", f"{path}/start")
    assert started[0] == started[1]
    served.engine.end(3)
    ended = ask_fake(fake, "POST", f"{path_of_fake}/wait"), await ask(client, "POST", f"{path}/wait")
    assert ended[0] == ended[1]
