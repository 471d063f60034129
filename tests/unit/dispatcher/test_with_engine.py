"""Dispatcher, agent and the real engine: containers of a service on this host (issue items 5 and 6)."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proto.objects_pb2 import NodeState, TaskState
from tests.support_images import BUSYBOX_TAG
from tests.unit.agent.engines import engine_executor
from tests.unit.dispatcher.support import AgentHost, Manager, leading_manager, make_node, make_spec_version, make_task
from tests.unit.engine.conftest import bench, network_namespace  # noqa: F401 - fixtures
from tests.unit.engine.support import Bench
from worker.agent.engine_executor import EngineExecutor

pytestmark = pytest.mark.root
RUNNING = TaskState.TASK_STATE_RUNNING
DEADLINE_S = 30.0


@pytest.fixture
def memory() -> Iterator[Path]:
    path = Path("/dev/shm") / f"agent-{secrets.token_hex(4)}"
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    # On a unix socket: gRPC's threads live as long as the process, in whatever network namespace they were started.
    async with leading_manager(socket=tmp_path / "manager.sock") as manager:
        await manager.add(make_node("n1"))
        await manager.add(
            make_spec_version("web", image=BUSYBOX_TAG, command=["sleep", "1000"], stop_grace_period_ns=100_000_000)
        )
        yield manager


async def until_state(manager: Manager, task_ids: list[str], state: TaskState.ValueType) -> None:
    end = time.monotonic() + DEADLINE_S
    while not all(manager.task(task_id).status.state == state for task_id in task_ids):
        assert time.monotonic() < end, [str(manager.task(task_id).status) for task_id in task_ids]
        await asyncio.sleep(0.01)


async def open_executor(bench: Bench, memory: Path) -> EngineExecutor:  # noqa: F811
    executor = engine_executor(bench.engine, memory)
    await executor.open()
    return executor


async def test_tasks_run_survive_the_daemon_and_go(
    bench: Bench,  # noqa: F811
    manager: Manager,
    memory: Path,
    tmp_path: Path,
) -> None:
    host = AgentHost("n1", tmp_path / "agent", [manager.addr])
    executor = await open_executor(bench, memory)
    host.start(executor)
    ids = [f"t{number}" for number in range(4)]
    await manager.add(*[make_task(task_id, "n1") for task_id in ids])
    await until_state(manager, ids, RUNNING)
    pids = {task_id: manager.task(task_id).status.container_status.pid for task_id in ids}
    assert all(Path(f"/proc/{pid}").exists() for pid in pids.values())
    assert manager.task("t0").networks_attachments[0].addresses[0].startswith("172.17.")

    await host.kill()
    await executor.close()
    await bench.engine.close()
    os.kill(pids["t3"], 9)
    bench.engine = bench.make()
    await bench.engine.open()
    executor = await open_executor(bench, memory)
    host.start(executor)
    await until_state(manager, ["t3"], TaskState.TASK_STATE_FAILED)
    assert manager.task("t3").status.err == "task: non-zero exit (137)"
    assert manager.node("n1").status.state == NodeState.NODE_STATE_READY
    for task_id in ids[:3]:
        found = executor.observe(task_id)
        assert found is not None
        assert found.pid == pids[task_id]

    for task_id in ids[:3]:
        await manager.set_desired(task_id, TaskState.TASK_STATE_SHUTDOWN)
    await until_state(manager, ids[:3], TaskState.TASK_STATE_SHUTDOWN)
    assert len(executor.task_ids()) == 4
    assert host.agent is not None
    await host.agent.leave()
    assert bench.engine.list(all=True) == []
    await executor.close()


async def test_what_cannot_run_says_why(
    bench: Bench,  # noqa: F811
    manager: Manager,
    memory: Path,
    tmp_path: Path,
) -> None:
    await manager.add(
        make_spec_version("nowhere", image="missing.invalid/nothing:1"),
        make_spec_version("nocommand", image=BUSYBOX_TAG, command=["/nothing"]),
        make_spec_version("failing", image=BUSYBOX_TAG, command=["false"]),
        make_spec_version("done", image=BUSYBOX_TAG, command=["true"]),
    )
    sick = make_spec_version("sick", image=BUSYBOX_TAG, command=["sleep", "1000"], stop_grace_period_ns=0)
    check = sick.spec.task_template.container_spec.healthcheck
    check.test.extend(["CMD", "false"])
    check.interval_ns, check.retries = 20_000_000, 1
    await manager.add(sick)
    host = AgentHost("n1", tmp_path / "agent", [manager.addr])
    executor = await open_executor(bench, memory)
    host.start(executor)
    services = ["nowhere", "nocommand", "failing", "done", "sick"]
    await manager.add(*[make_task(f"t-{service}", "n1", service_id=service) for service in services])
    await until_state(manager, ["t-nowhere"], TaskState.TASK_STATE_REJECTED)
    await until_state(manager, ["t-nocommand", "t-failing", "t-sick"], TaskState.TASK_STATE_FAILED)
    await until_state(manager, ["t-done"], TaskState.TASK_STATE_COMPLETE)
    errors = {service: manager.task(f"t-{service}").status.err for service in services}
    assert errors["nowhere"].startswith("No such image: missing.invalid/nothing:1: ")
    assert errors["nocommand"].startswith("starting container failed: ")
    assert errors["failing"] == "task: non-zero exit (1)"
    assert errors["done"] == ""
    assert errors["sick"] == "dockerexec: unhealthy container"
    assert host.agent is not None
    await host.agent.leave()
    await executor.close()
