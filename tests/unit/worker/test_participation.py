"""One node's life in one cluster goes on when a part of it fails (worker/membership/participation.py)."""

from __future__ import annotations

import asyncio
import errno
import functools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pki import renewal
from pki.authority import RootCA
from pki.certificates import Role
from pki.node_certificate import NodeCertificate, issue_credentials, utc_now
from pki.renewal import Renewer
from proto.ca_pb2 import ManagerAddress, RenewCertificateResponse
from proto.node_pb2 import LocalState
from proto.objects_pb2 import Node, NodeDescription
from proto.specs_pb2 import NodeRole
from tests.unit.agent.fakes import FakeExecutor
from worker.agent.agent import Agent
from worker.membership import local_state
from worker.membership import participation as module
from worker.membership.cluster_member import LocalNodeState
from worker.membership.host import Host
from worker.membership.participation import Participation
from worker.membership.zygote import Zygote

T = TypeVar("T", bound=Participation)


class BrokenOnce(Participation):
    """Its first agent fails, the next one runs and opens a session."""

    agents = 0

    def __init__(self, *arguments: Any) -> None:
        self.go_on = asyncio.Event()
        super().__init__(*arguments)

    def _new_agent(self) -> Agent:
        self.agents += 1
        return FakeAgent(self, fail=self.agents == 1, begin=self.go_on)  # type: ignore[return-value]  # as much of it as is called here


class BrokenAlways(Participation):
    """None of its agents comes up."""

    agents = 0

    def _new_agent(self) -> Agent:
        self.agents += 1
        return FakeAgent(self, fail=True)  # type: ignore[return-value]  # as much of it as is called here


class Idle(Participation):
    """Its agent has a session and nothing to do."""

    def _new_agent(self) -> Agent:
        return FakeAgent(self)  # type: ignore[return-value]  # as much of it as is called here


class Lonely(Participation):
    """Its agent finds no manager."""

    def _new_agent(self) -> Agent:
        return FakeAgent(self, begin=asyncio.Event())  # type: ignore[return-value]  # as much of it as is called here


class FakeAgent:
    """An error of before can be seen until ``begin``, if there is one."""

    def __init__(self, owner: Participation, *, fail: bool = False, begin: asyncio.Event | None = None) -> None:
        self._owner, self._fail, self._begin = owner, fail, begin

    async def run(self) -> None:
        if self._fail:
            raise OSError("assignments: No space left on device")
        if self._begin is not None:
            await self._begin.wait()
        self._owner.on_session("")
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def reached(participation: Participation, state: LocalNodeState) -> None:
    await until(lambda: participation.local_node_state is state)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, tmp_path, Zygote("no:manager"), FakeExecutor(), NodeDescription)


def worker_on(host: Host, kind: type[T]) -> T:
    """A worker of some cluster."""
    root = RootCA.create(utc_now())
    credentials = issue_credentials(
        root, node_id="n1", role=Role.WORKER, cluster_id="c", lifetime=timedelta(days=1), now=utc_now()
    )
    certificate = NodeCertificate.create(host.state_dir / "certificates", credentials)
    state = LocalState(node_id="n1", cluster_id="c", listen_addr="0.0.0.0:2377", advertise_addr="127.0.0.1:2377")
    state.role = NodeRole.NODE_ROLE_WORKER
    return kind(host, state, certificate)


async def test_a_part_that_failed_is_told_of_and_started_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RESTART_DELAY_S_MIN", 0.01)
    participation = worker_on(host, BrokenOnce)
    await participation.start()
    try:
        await reached(participation, LocalNodeState.ERROR)
        assert "No space left on device" in participation.error
        participation.go_on.set()
        await reached(participation, LocalNodeState.ACTIVE)
        assert participation.error == ""
    finally:
        await participation.stop()


async def test_an_agent_that_cannot_start_leaves_the_other_parts_alone(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged assignments on a manager: its certificate is renewed, and whoever asks it is answered."""
    monkeypatch.setattr(module, "_RESTART_DELAY_S_MIN", 0.01)
    participation, started = worker_on(host, BrokenAlways), list[str]()

    async def part(name: str) -> None:
        started.append(name)
        await asyncio.Event().wait()

    for name in ("_keep_certificate", "_follow_role", "_watch_manager"):
        monkeypatch.setattr(participation, name, functools.partial(part, name))
    await participation.start()
    try:
        await until(lambda: participation.agents >= 4)
        assert "No space left on device" in participation.error
        assert sorted(started) == ["_follow_role", "_keep_certificate", "_watch_manager"]
    finally:
        await participation.stop()


async def test_the_error_of_a_part_that_is_well_again_goes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RESTART_DELAY_S_MIN", 0.01)
    participation, runs = worker_on(host, Lonely), list[str]()
    seen: list[str] = []

    async def once_broken() -> None:
        runs.append(participation.error)
        if len(runs) == 1:
            asyncio.get_running_loop().call_soon(lambda: seen.append(participation.error))
            raise ValueError("broken")
        await asyncio.Event().wait()

    monkeypatch.setattr(participation, "_follow_role", once_broken)
    await participation.start()
    try:
        await until(lambda: len(runs) == 2)
        assert seen == ["broken"]
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
        await reached(participation, LocalNodeState.ACTIVE)
        for _ in range(100):
            await asyncio.sleep(0)
    try:
        parts = {"agent", "certificate.renewal", "role", "manager.ready"}
        assert parts <= {task.get_name() for task in asyncio.all_tasks()}
        assert {name for name in parts & timers.keys() if timers[name] < 10} == set()
    finally:
        await participation.stop()


async def test_the_list_of_managers_is_written_when_it_is_another(host: Host) -> None:
    participation, file = worker_on(host, Idle), host.state_dir / local_state.FILE_NAME
    managers = [ManagerAddress(node_id="m1", grpc_addr="10.0.0.1:7946", raft_addr="10.0.0.1:2377")]
    participation.on_managers(managers)
    written = file.stat()
    participation.on_managers(list(managers))
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    participation.on_managers([*managers, ManagerAddress(node_id="m2")])
    saved = local_state.load(host.state_dir)
    assert saved is not None
    assert [manager.node_id for manager in saved.managers] == ["m1", "m2"]
    await participation.stop()


async def test_a_list_of_managers_that_could_not_be_written_is_written_with_the_next_session(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the session goes on; a list that stays unwritten would be missed at the next start."""

    def full(_state_dir: Path, _state: LocalState) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    participation = worker_on(host, Idle)
    managers = [ManagerAddress(node_id="m1", grpc_addr="10.0.0.1:7946", raft_addr="10.0.0.1:2377")]
    with monkeypatch.context() as patch:
        patch.setattr(local_state, "save", full)
        participation.on_managers(managers)
    assert local_state.load(host.state_dir) is None
    assert list(participation.state.managers) == managers
    participation.on_managers(managers)
    saved = local_state.load(host.state_dir)
    assert saved is not None
    assert list(saved.managers) == managers
    await participation.stop()


async def test_roots_are_taken_that_cover_the_own_certificate_and_no_others(host: Host) -> None:
    participation = worker_on(host, Idle)
    ours = NodeCertificate.load(host.state_dir / "certificates").current.root.pem
    others = RootCA.create(utc_now()).certificate_pem
    for refused in (others, b"no certificate", b""):
        participation.on_root_ca(refused)
        assert NodeCertificate.load(host.state_dir / "certificates").current.root.pem == ours
    participation.on_root_ca(ours + others)
    assert NodeCertificate.load(host.state_dir / "certificates").current.root.pem == ours + others
    await participation.stop()


async def test_a_clock_that_was_ahead_does_not_end_renewals(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is set right hours later, and the certificate that had run out has not."""
    ahead, asked = timedelta(hours=30), asyncio.Event()
    monkeypatch.setattr(renewal, "_CLOCK_CHECK_S", 0.01)
    participation = worker_on(host, Lonely)

    async def renew(_csr_pem: bytes) -> RenewCertificateResponse:
        asked.set()
        raise ConnectionRefusedError("no manager")

    certificate = NodeCertificate.load(host.state_dir / "certificates")
    participation._renewer = Renewer(certificate, renew, clock=lambda: utc_now() + ahead)
    await participation.start()
    try:
        await until(lambda: participation.error.startswith("Swarm certificates have expired"))
        ahead = timedelta(0)
        await until(lambda: participation.error == "")
        ahead = timedelta(hours=23)  # time to renew
        async with asyncio.timeout(30):
            await asked.wait()
    finally:
        await participation.stop()


@pytest.mark.parametrize(
    ("jump", "said"), [(timedelta(hours=-2), "is not valid before"), (timedelta(hours=26), "expired at")]
)
async def test_a_clock_that_is_wrong_is_asked_after(
    host: Host, monkeypatch: pytest.MonkeyPatch, jump: timedelta, said: str
) -> None:
    participation = worker_on(host, Idle)
    failure = "UNAVAILABLE: failed to connect to all addresses"
    participation.on_session(failure)
    assert participation.session_error == failure
    monkeypatch.setattr(module, "utc_now", lambda: utc_now() + jump)
    assert participation.session_error.startswith(f"{failure} (certificate of node n1 {said}")
    assert participation.session_error.endswith("is the clock of this host right?)")
    participation.on_session("")
    assert participation.session_error == ""
    await participation.stop()


async def test_a_worker_that_is_told_to_be_one_stays_as_it_is(host: Host) -> None:
    participation = worker_on(host, Idle)
    await participation.start()
    for _ in range(3):
        participation.on_node(Node(id="n1", role=NodeRole.NODE_ROLE_WORKER))
        for _ in range(20):
            await asyncio.sleep(0)
    assert participation.state.role == NodeRole.NODE_ROLE_WORKER
    assert not (host.state_dir / local_state.FILE_NAME).exists()
    assert participation.error == ""
    await participation.stop()
