"""One node's life in one cluster goes on when a part of it fails (worker/participation.py)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pki.authority import RootCA
from pki.certificates import Role
from pki.node_certificate import NodeCertificate, issue_credentials, utc_now
from proto.node_pb2 import LocalState, ManagerConfig
from proto.objects_pb2 import NodeDescription
from tests.unit.agent.fakes import FakeExecutor
from worker import participation as module
from worker.agent.agent import Agent
from worker.membership import LocalNodeState
from worker.participation import Host, Participation
from worker.zygote import Zygote

T = TypeVar("T", bound=Participation)


def never_a_manager(payload: bytes) -> int:
    raise AssertionError(ManagerConfig.FromString(payload))


class BrokenOnce(Participation):
    """Its first agent fails, the next one runs and opens a session."""

    agents = 0

    def _new_agent(self) -> Agent:
        self.agents += 1
        return FakeAgent(self, fail=self.agents == 1, pause_s=0.05)  # type: ignore[return-value]  # as much of it as is called here


class Idle(Participation):
    """Its agent has a session and nothing to do."""

    def _new_agent(self) -> Agent:
        return FakeAgent(self)  # type: ignore[return-value]  # as much of it as is called here


class FakeAgent:
    """``pause_s`` is how long an error of before can be seen."""

    def __init__(self, owner: Participation, *, fail: bool = False, pause_s: float = 0) -> None:
        self._owner, self._fail, self._pause_s = owner, fail, pause_s

    async def run(self) -> None:
        if self._fail:
            raise OSError("assignments: No space left on device")
        await asyncio.sleep(self._pause_s)
        self._owner.on_session("")
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


async def reached(participation: Participation, state: LocalNodeState) -> None:
    async with asyncio.timeout(10):
        while participation.local_node_state is not state:
            await asyncio.sleep(0.001)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    zygote = Zygote.fork("tests.unit.worker.test_participation:never_a_manager")
    yield Host(tmp_path, tmp_path, zygote, FakeExecutor(), NodeDescription)
    zygote.close()
    os.waitpid(zygote.pid, 0)


def worker_on(host: Host, kind: type[T]) -> T:
    """A worker of some cluster."""
    root = RootCA.create(utc_now())
    credentials = issue_credentials(
        root, node_id="n1", role=Role.WORKER, cluster_id="c", lifetime=timedelta(days=1), now=utc_now()
    )
    certificate = NodeCertificate.create(host.state_dir / "certificates", credentials)
    state = LocalState(node_id="n1", cluster_id="c", listen_addr="0.0.0.0:2377", advertise_addr="127.0.0.1:2377")
    return kind(host, state, certificate)


async def test_a_part_that_failed_is_told_of_and_started_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RESTART_DELAY_S_MIN", 0.01)
    participation = worker_on(host, BrokenOnce)
    await participation.start()
    try:
        await reached(participation, LocalNodeState.ERROR)
        assert "No space left on device" in participation.error
        await reached(participation, LocalNodeState.ACTIVE)
        assert participation.error == ""
    finally:
        await participation.stop()


async def test_a_worker_with_nothing_to_do_sleeps(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    participation = worker_on(host, Idle)
    loop, timers = asyncio.get_running_loop(), dict[str, float]()
    call_at = loop.call_at

    def recorded(when: float, *arguments: Any, **more: Any) -> asyncio.TimerHandle:
        task = asyncio.current_task()
        timers[task.get_name() if task is not None else ""] = when - loop.time()
        return call_at(when, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_at", recorded)
        await participation.start()
        for _ in range(100):
            await asyncio.sleep(0)
    try:
        assert participation.local_node_state is LocalNodeState.ACTIVE
        parts = {"agent", "certificate.renewal", "role", "manager.ready"}
        assert parts <= {task.get_name() for task in asyncio.all_tasks()}
        assert {name for name in parts & timers.keys() if timers[name] < 10} == set()
    finally:
        await participation.stop()
