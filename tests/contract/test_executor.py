"""What the agent relies on, of both executors: the one without containers and the one on the engine."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from proto.objects_pb2 import Config, Secret
from proto.specs_pb2 import ConfigReference, SecretReference
from runtime.types import ContainerConfig, ExecConfig, HostConfig
from tests.support_images import BUSYBOX_TAG
from tests.unit.agent.engines import engine_executor
from tests.unit.agent.fakes import FakeExecutor
from tests.unit.dispatcher.support import make_spec_version, make_task
from tests.unit.engine.conftest import bench, network_namespace  # noqa: F401 - fixtures
from tests.unit.engine.support import Bench
from worker.agent.contents import Contents
from worker.agent.executor import Assignment, ContainerPhase, Executor, ExecutorError, Observation

DEADLINE_S = 30.0
Reopen = Callable[[], Awaitable[Executor]]


@pytest.fixture(params=["fake", pytest.param("engine", marks=pytest.mark.root)])
def host(request: pytest.FixtureRequest) -> Bench | None:
    """A host with an engine, or none."""
    if request.param == "fake":
        return None
    found: Bench = request.getfixturevalue("bench")
    return found


@pytest.fixture
async def reopen(host: Bench | None, memory: Path) -> AsyncIterator[Reopen]:
    """Makes an executor; called again, the same host's after a restart of the daemon."""
    opened: list[Executor] = []
    rows: dict[str, Observation] = {}

    async def make() -> Executor:
        if host is None:
            opened.append(FakeExecutor(rows))
            return opened[-1]
        executor = engine_executor(host.engine, memory)
        await executor.open()
        opened.append(executor)
        return executor

    yield make
    for executor in opened:
        await executor.close()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder on a tmpfs, so that no mount is needed."""
    path = Path("/dev/shm") / f"executor-{secrets.token_hex(4)}"
    yield path
    shutil.rmtree(path, ignore_errors=True)


def make_assignment(task_id: str = "t1", *command: str, image: str = BUSYBOX_TAG) -> Assignment:
    version = make_spec_version("web", image=image, command=list(command or ("sleep", "1000")))
    return Assignment(make_task(task_id, "n1"), version)


async def phase(executor: Executor, task_id: str, wanted: ContainerPhase) -> Observation:
    """Wait until the task's container is in that phase."""
    end = time.monotonic() + DEADLINE_S
    while True:
        found = executor.observe(task_id)
        if found is not None and found.phase is wanted:
            return found
        assert time.monotonic() < end, f"{task_id} is {found}, not {wanted}"
        await asyncio.sleep(0.01)


async def test_a_container_lives_and_goes(reopen: Reopen) -> None:
    executor = await reopen()
    changed: list[str] = []
    executor.on_change(changed.append)
    assignment = make_assignment()
    await executor.prepare(assignment)
    created = await phase(executor, "t1", ContainerPhase.CREATED)
    await executor.prepare(assignment)
    again = executor.observe("t1")
    assert again is not None
    assert again.container_id == created.container_id
    await executor.start(assignment)
    running = await phase(executor, "t1", ContainerPhase.RUNNING)
    assert running.pid > 0
    assert running.attachments[0].network_id == "bridge"
    await executor.start(assignment)  # it runs already
    assert executor.task_ids() == ["t1"]
    await executor.stop("t1", 0.2)
    ended = await phase(executor, "t1", ContainerPhase.EXITED)
    assert ended.exit_code != 0  # 143, 137, or 2 when the signal met runc before it had made way for the command
    await executor.stop("t1", 0.2)
    await executor.remove("t1")
    assert executor.observe("t1") is None
    assert executor.task_ids() == []
    assert set(changed) == {"t1"}


@pytest.mark.root
async def test_a_label_that_no_task_can_have_makes_no_container_a_tasks(bench: Bench, memory: Path) -> None:  # noqa: F811
    executor = engine_executor(bench.engine, memory / "payloads")
    await executor.open()
    for label in ("../kept", ""):
        labels = {"com.docker.swarm.task.id": label}
        await bench.engine.create(ContainerConfig(Image=BUSYBOX_TAG, Cmd=["true"], Labels=labels), HostConfig())
    assert executor.task_ids() == []
    await executor.close()
    await executor.open()
    assert executor.task_ids() == []
    await executor.close()


async def test_an_exit_is_noticed_with_its_code(reopen: Reopen) -> None:
    executor = await reopen()
    changed = asyncio.Event()
    executor.on_change(lambda task_id: changed.set())
    assignment = make_assignment("t1", "sh", "-c", "exit 3")
    await executor.prepare(assignment)
    await executor.start(assignment)
    ended = await phase(executor, "t1", ContainerPhase.EXITED)
    assert (ended.exit_code, ended.pid) == (3, 0)
    assert changed.is_set()
    await executor.remove("t1")


async def test_what_is_not_there_needs_no_stopping(reopen: Reopen) -> None:
    executor = await reopen()
    assert executor.observe("t1") is None
    await executor.stop("t1", None)
    await executor.remove("t1")


async def test_an_image_that_is_nowhere_rejects(reopen: Reopen) -> None:
    executor = await reopen()
    with pytest.raises(ExecutorError):
        await executor.prepare(make_assignment(image="missing.invalid/nothing:1"))
    assert executor.observe("t1") is None


async def test_a_command_that_is_not_there_fails_to_start(reopen: Reopen) -> None:
    executor = await reopen()
    assignment = make_assignment("t1", "/cannot-start")
    await executor.prepare(assignment)
    with pytest.raises(ExecutorError, match="starting container failed"):
        await executor.start(assignment)
    await executor.remove("t1")
    assert executor.observe("t1") is None


async def test_a_secret_that_does_not_exist_rejects(reopen: Reopen) -> None:
    executor = await reopen()
    assignment = make_assignment()
    ref = SecretReference(secret_id="s1", secret_name="password")
    ref.file.name = "password"
    assignment.spec_version.spec.task_template.container_spec.secrets.append(ref)
    with pytest.raises(ExecutorError, match="secret password not found"):
        await executor.prepare(assignment)


async def test_a_restarted_daemon_finds_its_containers(reopen: Reopen) -> None:
    executor = await reopen()
    assignment = make_assignment()
    await executor.prepare(assignment)
    await executor.start(assignment)
    before = await phase(executor, "t1", ContainerPhase.RUNNING)
    await executor.close()
    executor = await reopen()
    assert executor.task_ids() == ["t1"]
    assert executor.observe("t1") == before
    await executor.remove("t1")


async def test_many_at_once(reopen: Reopen) -> None:
    executor = await reopen()

    async def one(task_id: str) -> None:
        assignment = make_assignment(task_id)
        await executor.prepare(assignment)
        await executor.start(assignment)
        await phase(executor, task_id, ContainerPhase.RUNNING)
        await executor.remove(task_id)

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(one(f"t{number}"))
    assert executor.task_ids() == []


@pytest.mark.root
async def test_a_container_sees_its_secrets_in_memory(bench: Bench, memory: Path) -> None:  # noqa: F811
    secret, config = Secret(id="s1"), Config(id="c1")
    secret.spec.data, config.spec.data = b"hunter2", b"x=1"
    script = "cat /run/secrets/pw /settings; stat -c '%u %a' /run/secrets/pw; grep secrets /proc/mounts; echo $SLOT; hostname"
    bare = make_assignment("t1", "sh", "-c", script)
    spec = bare.spec_version.spec.task_template.container_spec
    secret_ref, config_ref = SecretReference(secret_id="s1"), ConfigReference(config_id="c1")
    secret_ref.file.name, secret_ref.file.uid, secret_ref.file.mode = "pw", "1000", 0o440
    config_ref.file.name, config_ref.file.mode = "settings", 0o444
    spec.secrets.append(secret_ref)
    spec.configs.append(config_ref)
    spec.env.append("SLOT={{.Task.Slot}}")
    spec.hostname = "{{.Node.Hostname}}-{{.Task.Slot}}"
    assignment = Assignment(bare.task, bare.spec_version, Contents(secret, config))
    executor = engine_executor(bench.engine, memory)
    await executor.open()
    await executor.prepare(assignment)
    await executor.start(assignment)
    ended = await phase(executor, "t1", ContainerPhase.EXITED)
    output = b"".join([line.data async for line in bench.engine.logs(ended.container_id)]).decode()
    assert ended.exit_code == 0, output
    assert output.startswith("hunter2x=1")
    assert "1000 440\n" in output
    assert "tmpfs /run/secrets/pw tmpfs ro" in output
    assert output.endswith("1\nhost-1\n")
    found = bench.engine.inspect(ended.container_id)
    assert found.Name == "/name-web.1.t1"
    assert (found.Config.Labels or {})["com.docker.swarm.task.id"] == "t1"
    await executor.remove("t1")
    assert list(memory.iterdir()) == []
    await executor.close()


@pytest.mark.root
async def test_what_this_host_cannot_give_rejects_with_the_engine_s_words(
    bench: Bench,  # noqa: F811 - fixture
    memory: Path,
) -> None:
    executor = engine_executor(bench.engine, memory)
    await executor.open()
    assignment = make_assignment()
    template = assignment.spec_version.spec.task_template
    template.resources.limits.nano_cpus = 100_000 * 10**9
    with pytest.raises(ExecutorError, match=r"^range of CPUs is from 0.01 to [0-9]+.00, as there are only"):
        await executor.prepare(assignment)
    template.ClearField("resources")
    template.container_spec.dir = "/proc/self/fd/7"
    with pytest.raises(
        ExecutorError, match=r"^the working directory '/proc/self/fd/7' is invalid: it leads into /proc$"
    ):
        await executor.prepare(assignment)
    assert executor.observe("t1") is None
    assert bench.engine.list(all=True) == []
    template.container_spec.dir = ""
    template.container_spec.groups.append("1234")
    await executor.prepare(assignment)
    await executor.start(assignment)
    (container,) = bench.engine.list()
    exec_id = await bench.engine.exec_create(container.Id, ExecConfig(Cmd=["id", "-G"], User="5:6", AttachStdout=True))
    stream = await bench.engine.exec_start(exec_id)
    assert stream is not None
    async with stream:
        piece = await stream.read()
    assert piece is not None
    assert piece[1] == b"6 1234\n"
    await executor.remove("t1")
    await executor.close()
