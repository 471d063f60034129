"""One node's life in one cluster goes on when a part of it fails (worker/participation.py)."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from pathlib import Path

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


def never_a_manager(payload: bytes) -> int:
    raise AssertionError(ManagerConfig.FromString(payload))


class BrokenOnce(Participation):
    """Its first agent fails, the next one runs and opens a session."""

    agents = 0

    def _new_agent(self) -> Agent:
        self.agents += 1
        return FakeAgent(self, fail=self.agents == 1)  # type: ignore[return-value]  # as much of it as is called here


class FakeAgent:
    def __init__(self, owner: Participation, *, fail: bool) -> None:
        self._owner, self._fail = owner, fail

    async def run(self) -> None:
        if self._fail:
            raise OSError("assignments: No space left on device")
        await asyncio.sleep(0.05)  # long enough for the error to be seen
        self._owner.on_session("")
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


async def reached(participation: Participation, state: LocalNodeState) -> None:
    async with asyncio.timeout(10):
        while participation.local_node_state is not state:
            await asyncio.sleep(0.001)


async def test_a_part_that_failed_is_told_of_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RESTART_DELAY_S_MIN", 0.01)
    zygote = Zygote.fork("tests.unit.worker.test_participation:never_a_manager")
    root = RootCA.create(utc_now())
    credentials = issue_credentials(
        root, node_id="n1", role=Role.WORKER, cluster_id="c", lifetime=timedelta(days=1), now=utc_now()
    )
    certificate = NodeCertificate.create(tmp_path / "certificates", credentials)
    host = Host(tmp_path, tmp_path, zygote, FakeExecutor(), NodeDescription)
    state = LocalState(node_id="n1", cluster_id="c", listen_addr="0.0.0.0:2377", advertise_addr="127.0.0.1:2377")
    participation = BrokenOnce(host, state, certificate)
    await participation.start()
    try:
        await reached(participation, LocalNodeState.ERROR)
        assert "No space left on device" in participation.error
        await reached(participation, LocalNodeState.ACTIVE)
        assert participation.error == ""
    finally:
        await participation.stop()
        zygote.close()
        os.waitpid(zygote.pid, 0)
