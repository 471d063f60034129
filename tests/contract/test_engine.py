"""What the HTTP layer relies on, of both engines: the one without processes and the real one."""

from __future__ import annotations

import asyncio

import pytest

from runtime.engine import Engine
from runtime.errors import ConflictError, ContainerNotFoundError, NotModifiedError
from runtime.events import EventMessage
from runtime.images import ImageNotFoundError
from runtime.types import ContainerConfig, HostConfig
from tests.support_images import BUSYBOX_TAG
from tests.unit.api.fakes import FakeEngine
from tests.unit.engine.conftest import bench, network_namespace  # noqa: F401 - fixtures
from tests.unit.engine.support import Bench

CONFIG = ContainerConfig(Image=BUSYBOX_TAG, Cmd=["sh", "-c", "trap exit TERM; while :; do sleep 0.05; done"])


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.root)])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "fake":
        fake = FakeEngine()
        fake.stop_may_end.set()
        return fake
    found: Bench = request.getfixturevalue("bench")
    return found.engine


@pytest.fixture
async def container_id(engine: Engine) -> str:
    """A created container, web."""
    made, _ = await engine.create(CONFIG, HostConfig(), name="web")
    return made


def status(engine: Engine) -> str:
    return engine.inspect("web").State.Status


async def test_a_life_in_states_and_events(engine: Engine) -> None:
    seen: list[EventMessage] = []
    engine.events.on_event(lambda message: seen.append(message) if message.Type == "container" else None)
    container_id, _ = await engine.create(CONFIG, HostConfig(), name="web")
    assert status(engine) == "created"
    await engine.start("web")
    state = engine.inspect("web").State
    assert (state.Status, state.Running, state.Paused) == ("running", True, False)
    assert state.Pid > 0
    await engine.pause("web")
    state = engine.inspect("web").State
    assert (state.Status, state.Running, state.Paused) == ("paused", True, True)
    await engine.unpause("web")
    await engine.kill("web")
    state = engine.inspect("web").State
    assert (state.Status, state.Running, state.ExitCode, state.Pid) == ("exited", False, 137, 0)
    await engine.start("web")
    await engine.stop("web")
    assert status(engine) == "exited"
    await engine.remove("web")
    said = ["create", "start", "pause", "unpause", "kill", "die", "start", "die", "stop", "destroy"]
    # A stop is told with the signal that it sends, which the fake does not send.
    assert [message.Action for message in seen if message.Action != "kill"] == [each for each in said if each != "kill"]
    assert "kill" in [message.Action for message in seen]
    assert {message.Actor.ID for message in seen} == {container_id}
    assert {message.Actor.Attributes["name"] for message in seen} == {"web"}


async def test_a_name_that_nobody_has(engine: Engine) -> None:
    for call in (engine.start, engine.stop, engine.kill, engine.pause, engine.unpause, engine.wait, engine.remove):
        with pytest.raises(ContainerNotFoundError, match=r"^No such container: nobody$"):
            await call("nobody")
    with pytest.raises(ContainerNotFoundError, match=r"^No such container: nobody$"):
        engine.inspect("nobody")
    with pytest.raises(ContainerNotFoundError, match=r"^No such container: nobody$"):
        await anext(aiter(engine.logs("nobody")))
    with pytest.raises(ImageNotFoundError):
        await engine.create(ContainerConfig(Image="nothing:1"))


async def test_found_by_name_id_and_prefix(engine: Engine, container_id: str) -> None:
    for ref in ("web", "/web", container_id, container_id[:12]):
        assert (engine.inspect(ref).Id, engine.inspect(ref).Name) == (container_id, "/web")


async def test_what_a_state_does_not_allow(engine: Engine, container_id: str) -> None:
    with pytest.raises(NotModifiedError):
        await engine.stop("web")
    with pytest.raises(ConflictError, match=f"cannot kill container: web: container {container_id} is not running"):
        await engine.kill("web")
    with pytest.raises(ConflictError, match=f"container {container_id} is not running"):
        await engine.pause("web")
    with pytest.raises(ConflictError, match=f"container {container_id} is not paused"):
        await engine.unpause("web")
    await engine.start("web")
    with pytest.raises(NotModifiedError):
        await engine.start("web")
    with pytest.raises(ConflictError, match='cannot remove container "/web": container is running: '):
        await engine.remove("web")
    await engine.pause("web")
    with pytest.raises(ConflictError, match=f"container {container_id} is already paused"):
        await engine.pause("web")
    assert status(engine) == "paused"


@pytest.mark.parametrize("condition", ["not-running", "next-exit"])
async def test_waiting_for_an_exit(engine: Engine, container_id: str, condition: str) -> None:
    assert (await engine.wait("web")).StatusCode == 0  # it does not run
    await engine.start("web")
    waiting = asyncio.ensure_future(engine.wait("web", condition))  # type: ignore[arg-type]  # parametrized
    await asyncio.sleep(0)
    assert not waiting.done()
    await engine.kill("web")
    assert (await waiting).StatusCode == 137
    assert (await engine.wait("web")).StatusCode == 137


async def test_a_removal_by_force_answers_who_waits_for_it(engine: Engine, container_id: str) -> None:
    await engine.start("web")
    waiting = asyncio.ensure_future(engine.wait("web", "removed"))
    await asyncio.sleep(0)
    await engine.remove("web", force=True)
    assert (await waiting).StatusCode == 137
    with pytest.raises(ContainerNotFoundError):
        engine.inspect(container_id)
    assert engine.list(all=True) == []


async def test_lists_have_what_runs_unless_all_is_wanted(engine: Engine, container_id: str) -> None:
    assert engine.list() == []
    assert [each.State for each in engine.list(all=True)] == ["created"]
    assert [each.Id for each in engine.list({"status": ["created"]})] == [container_id]
    await engine.start("web")
    assert [(each.Id, each.Names, each.State) for each in engine.list()] == [(container_id, ["/web"], "running")]
    assert engine.list({"name": ["other"]}, all=True) == []


async def test_an_address_is_shown_while_it_runs(engine: Engine, container_id: str) -> None:
    assert engine.inspect("web").NetworkSettings.Networks["bridge"].IPAddress == ""
    await engine.start("web")
    assert engine.inspect("web").NetworkSettings.Networks["bridge"].IPAddress == "172.17.0.2"
    await engine.kill("web")
    assert engine.inspect("web").NetworkSettings.Networks["bridge"].IPAddress == ""
