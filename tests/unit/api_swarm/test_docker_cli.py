"""The docker command, unmodified, and ours over a unix socket: what they read of a service and send back changes nothing
else."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from manager.model.dirty import DirtyCheck
from manager.model.versions import copy_service, present_version
from proto.objects_pb2 import UPDATE_STATE_PAUSED, Task
from tests.unit.api_swarm.conftest import Swarm

DOCKER = shutil.which("docker")
pytestmark = pytest.mark.skipif(DOCKER is None, reason="no docker command")


class Cli:
    """``await cli("service", "ls")``: output, errors and exit status. ``ours`` does the same with our command."""

    def __init__(self, path: Path, program: Sequence[str]) -> None:
        self._path, self._program = path, program

    @property
    def ours(self) -> Cli:
        return Cli(self._path, (sys.executable, "-c", "from cli.main import main; main()"))

    async def __call__(self, *words: str) -> tuple[str, str, int]:
        process = await asyncio.create_subprocess_exec(
            *(*self._program, "-H", f"unix://{self._path}", *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return out.decode(), err.decode(), process.returncode

    async def done(self, *words: str) -> str:
        """What it writes to stderr; it must succeed."""
        _, err, code = await self(*words)
        assert code == 0, err
        return err


@pytest_asyncio.fixture
async def cli(swarm: Swarm, tmp_path: Path) -> AsyncIterator[Cli]:
    runner = web.AppRunner(swarm.application(None))
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "engine.sock")).start()
    assert DOCKER is not None
    yield Cli(tmp_path / "engine.sock", (DOCKER,))
    await runner.cleanup()


CREATE = ("service", "create", "-d", "--no-resolve-image")
UPDATE = ("service", "update", "-d", "--no-resolve-image")


async def pause_update(swarm: Swarm, name: str) -> None:
    service = swarm.manager.store.view.services.by_name(name)
    assert service is not None
    changed = copy_service(service)
    changed.update_status.state = UPDATE_STATE_PAUSED
    changed.update_status.message = "update paused due to failure or early termination of task t"
    await swarm.manager.commit(lambda working: working.update(changed))


async def test_an_update_that_changes_nothing_keeps_the_way_back(swarm: Swarm, cli: Cli) -> None:
    await cli.done(
        *CREATE,
        *("--name", "web", "--replicas", "2", "--env", "A=1", "--mount", "type=volume,src=v,dst=/v"),
        *("--restart-max-attempts", "3", "--limit-cpu", "0.5", "--constraint", "node.role==worker"),
        *(
            "--publish",
            "mode=host,target=80,published=8080",
            "--update-order",
            "start-first",
            "busybox:1",
            "sleep",
            "9",
        ),
    )
    await cli.done(*UPDATE, "--args", "false", "web")
    await pause_update(swarm, "web")
    before: dict[str, Any] = await swarm.get("/services/web")
    assert "stays paused" in await cli.done(*UPDATE, "web")
    after: dict[str, Any] = await swarm.get("/services/web")
    for key in ("Spec", "PreviousSpec", "UpdateStatus"):
        assert after[key] == before[key], key
    await cli.done("service", "rollback", "-d", "web")
    assert (await swarm.get("/services/web"))["Spec"]["TaskTemplate"]["ContainerSpec"]["Args"] == ["sleep", "9"]


async def test_the_same_stack_again_keeps_the_way_back(swarm: Swarm, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "stack.yml"
    text = (
        "services: {web: {image: 'busybox:1', command: sleep 9, environment: {A: '1'}, network_mode: bridge,"
        " deploy: {replicas: 2}}}\n"
    )
    deploy = ("stack", "deploy", "-d", "--resolve-image", "never", "-c", str(file))
    file.write_text(text)
    await cli.ours.done(*deploy, "s")
    file.write_text(text.replace("sleep 9", "'false'"))
    await cli.ours.done(*deploy, "s")
    await pause_update(swarm, "s_web")
    before = await swarm.get("/services/s_web")
    assert "stays paused" in await cli.ours.done(*deploy, "s")
    after = await swarm.get("/services/s_web")
    for key in ("Spec", "PreviousSpec", "UpdateStatus"):
        assert after[key] == before[key], key


async def test_a_restart_window_that_never_fills_is_told(swarm: Swarm, cli: Cli, tmp_path: Path) -> None:
    policy = ("--restart-max-attempts", "3", "--restart-delay", "5s")
    assert "will never be reached" in await cli.done(
        *CREATE, "--name", "web", *policy, "--restart-window", "10s", "busybox:1"
    )
    assert "will never be reached" not in await cli.done(*UPDATE, "--replicas", "2", "web")
    assert "will never be reached" not in await cli.done(*UPDATE, "--restart-window", "5m", "web")
    assert "will never be reached" in await cli.done(*UPDATE, "--restart-delay", "2m", "web")


@pytest.mark.parametrize("image", ["busybox", "docker.io/library/busybox", "index.docker.io/library/busybox:latest"])
async def test_an_image_named_in_another_way_is_no_other_image(swarm: Swarm, cli: Cli, image: str) -> None:
    """Docker's client writes ``:latest`` into the service with any change of it: no task is replaced for that."""
    body = {"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": image}}, "Mode": {"Replicated": {"Replicas": 1}}}
    await swarm.post("/services/create", body, status=201)
    before = swarm.manager.store.view.services.by_name("web")
    assert before is not None
    await cli.done(*UPDATE, "--label-add", "a=b", "web")
    after = swarm.manager.store.view.services.by_name("web")
    assert after is not None
    assert after.spec.labels == {"a": "b"}
    await swarm.manager.commit(lambda working: working.create(present_version(before)))
    check = DirtyCheck(after, swarm.manager.store.view.spec_versions)
    assert not check.is_dirty(Task(service_id=before.id, spec_version=before.spec_version), None)
    version = after.spec_version
    await cli.ours.done(*UPDATE, "web")
    assert (await swarm.get("/services/web"))["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == "busybox:latest"
    unchanged = swarm.manager.store.view.services.by_name("web")
    assert unchanged is not None
    assert unchanged.spec_version == version


async def test_our_command_names_images_as_dockers_does(swarm: Swarm, cli: Cli) -> None:
    await cli.done(*CREATE, "--name", "theirs", "busybox")
    await cli.ours.done(*CREATE, "--name", "ours", "busybox")
    images = {
        entry["Spec"]["Name"]: entry["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
        for entry in await swarm.get("/services")
    }
    assert images == {"ours": "busybox:latest", "theirs": "busybox:latest"}


@pytest.mark.parametrize("kind", ["secret", "config"])
async def test_what_is_removed_from_a_service_is_found_first(swarm: Swarm, cli: Cli, kind: str) -> None:
    """By name, ID or the beginning of an ID; what the service has not is refused, and nothing is changed."""

    async def references() -> list[str]:
        spec = (await swarm.get("/services/web"))["Spec"]["TaskTemplate"]["ContainerSpec"]
        return [entry[f"{kind.capitalize()}Name"] for entry in spec.get(f"{kind.capitalize()}s") or ()]

    ids = {}
    for name in ("one", "two", "three"):
        made = await swarm.post(f"/{kind}s/create", {"Name": name, "Data": "YQ=="}, status=201)
        ids[name] = made["ID"]
    await cli.ours.done(*CREATE, "--name", "web", f"--{kind}", "source=one,target=/t", "busybox")
    await cli.ours.done(*UPDATE, f"--{kind}-rm", ids["one"], f"--{kind}-add", f"source={ids['two']},target=/t", "web")
    assert await references() == ["two"]
    for unknown in ("nope", "one", ids["three"], ""):
        _, err, code = await cli.ours(*UPDATE, f"--{kind}-rm", unknown, f"--{kind}-add", "three", "web")
        assert code != 0
        assert f"the service has no {kind} {unknown}" in err
        assert await references() == ["two"]
    await cli.ours.done(*UPDATE, f"--{kind}-rm", ids["two"][:12], "web")
    assert await references() == []
