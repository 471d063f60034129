"""One node's life in one cluster goes on when a part of it fails (worker/membership/participation.py)."""

from __future__ import annotations

import asyncio
import errno
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pki.authority import RootCA
from pki.certificates import Role
from pki.node_certificate import NodeCertificate, issue_credentials, utc_now
from pki.renewal import Renew, Renewer
from proto.ca_pb2 import ManagerAddress, RenewCertificateResponse
from proto.node_pb2 import LocalState, ManagerConfig
from proto.objects_pb2 import Node, NodeDescription
from proto.specs_pb2 import NodeRole
from tests.unit.agent.fakes import FakeExecutor
from tests.waiting import until
from worker.membership import local_state
from worker.membership.cluster_member import LocalNodeState
from worker.membership.host import Host
from worker.membership.participation import Participation
from worker.membership.parts import OnExit, ParticipationParts
from worker.membership.zygote import Zygote


class Agents:
    """``ParticipationParts.agent``: the first ones fail, the next opens a session once ``begin`` is set."""

    def __init__(self, *, failing: int = 0, begins: bool = True) -> None:
        self.made = 0
        self.begin = asyncio.Event()
        self._failing = failing
        if begins:
            self.begin.set()

    def __call__(self, *, listener: Participation, **_more: Any) -> FakeAgent:
        self.made += 1
        return FakeAgent(listener, self.begin, fail=self.made <= self._failing)


class FakeAgent:
    def __init__(self, owner: Participation, begin: asyncio.Event, *, fail: bool) -> None:
        self._owner, self._begin, self._fail = owner, begin, fail

    async def run(self) -> None:
        if self._fail:
            raise OSError("assignments: No space left on device")
        await self._begin.wait()
        self._owner.on_session("")
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass

    async def leave(self) -> None:
        pass


def idle() -> ParticipationParts:
    """Its agent has a session and nothing to do."""
    return ParticipationParts(agent=Agents())


def lonely() -> ParticipationParts:
    """Its agent finds no manager."""
    return ParticipationParts(agent=Agents(begins=False))


async def reached(participation: Participation, state: LocalNodeState) -> None:
    await until(lambda: participation.local_node_state is state)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, tmp_path, Zygote("no:manager"), FakeExecutor(), NodeDescription)


def worker_on(host: Host, parts: ParticipationParts) -> Participation:
    """A worker of some cluster."""
    root = RootCA.create(utc_now())
    credentials = issue_credentials(
        root, node_id="n1", role=Role.WORKER, cluster_id="c", lifetime=timedelta(days=1), now=utc_now()
    )
    certificate = NodeCertificate.create(host.state_dir / "certificates", credentials)
    state = LocalState(node_id="n1", cluster_id="c", listen_addr="0.0.0.0:2377", advertise_addr="127.0.0.1:2377")
    state.role = NodeRole.NODE_ROLE_WORKER
    return Participation(host, state, certificate, parts)


async def test_a_part_that_failed_is_told_of_and_started_again(host: Host) -> None:
    agents = Agents(failing=1, begins=False)
    participation = worker_on(host, ParticipationParts(agent=agents, restart_delay_s_min=0.01))
    await participation.start()
    try:
        await reached(participation, LocalNodeState.ERROR)
        assert "No space left on device" in participation.error
        agents.begin.set()
        await reached(participation, LocalNodeState.ACTIVE)
        assert participation.error == ""
    finally:
        await participation.stop()


class Renewals:
    """``ParticipationParts.renewer``: its first runs fail; what was asked of it."""

    def __init__(self, *, failing: int = 0) -> None:
        self.asked: list[str] = []
        self._failing = failing

    def __call__(self, _source: NodeCertificate, _renew: Renew) -> Renewals:
        return self

    async def run(self) -> None:
        self.asked.append("run")
        if len(self.asked) <= self._failing:
            raise ValueError("broken")
        await asyncio.Event().wait()

    def renew_now(self) -> None:
        self.asked.append("now")

    async def renew_once(self) -> None:
        self.asked.append("once")
        await asyncio.Event().wait()

    async def wait_valid(self) -> None:
        raise NotImplementedError


class NoProcess:
    """``ParticipationParts.process``: no manager comes, which is waited for."""

    running = False

    def __init__(self) -> None:
        self.awaited = False

    def __call__(self, _zygote: Zygote, _lock: Path, _on_exit: OnExit) -> NoProcess:
        return self

    async def start(self, _config: ManagerConfig) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        pass

    async def wait_running(self) -> None:
        self.awaited = True
        await asyncio.Event().wait()

    async def wait_ended(self) -> None:
        raise NotImplementedError


async def test_an_agent_that_cannot_start_leaves_the_other_parts_alone(host: Host) -> None:
    """Damaged assignments on a manager: its certificate is renewed, and whoever asks it is answered."""
    agents, renewals, process = Agents(failing=1000), Renewals(), NoProcess()
    participation = worker_on(
        host, ParticipationParts(agent=agents, renewer=renewals, process=process, restart_delay_s_min=0.01)
    )
    await participation.start()
    try:
        await until(lambda: agents.made >= 4)
        assert "No space left on device" in participation.error
        promoted = Node(id="n1", role=NodeRole.NODE_ROLE_WORKER)
        promoted.spec.role = NodeRole.NODE_ROLE_MANAGER
        participation.on_node(promoted)
        await until(lambda: len(renewals.asked) == 2)
        assert renewals.asked == ["run", "once"]
        assert process.awaited
    finally:
        await participation.stop()


async def test_the_error_of_a_part_that_is_well_again_goes(host: Host) -> None:
    renewals = Renewals(failing=1)
    parts = ParticipationParts(agent=Agents(begins=False), renewer=renewals, restart_delay_s_min=0.01)
    participation = worker_on(host, parts)
    await participation.start()
    try:
        await until(lambda: participation.error == "broken")
        await until(lambda: len(renewals.asked) == 2)
        assert participation.error == ""
    finally:
        await participation.stop()


async def test_a_worker_with_nothing_to_do_sleeps(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    participation = worker_on(host, idle())
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
    participation, file = worker_on(host, idle()), host.state_dir / local_state.FILE_NAME
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

    participation = worker_on(host, idle())
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
    participation = worker_on(host, idle())
    ours = NodeCertificate.load(host.state_dir / "certificates").current.root.pem
    others = RootCA.create(utc_now()).certificate_pem
    for refused in (others, b"no certificate", b""):
        participation.on_root_ca(refused)
        assert NodeCertificate.load(host.state_dir / "certificates").current.root.pem == ours
    participation.on_root_ca(ours + others)
    assert NodeCertificate.load(host.state_dir / "certificates").current.root.pem == ours + others
    await participation.stop()


async def test_a_clock_that_was_ahead_does_not_end_renewals(host: Host) -> None:
    """It is set right hours later, and the certificate that had run out has not."""
    ahead, asked = timedelta(hours=30), asyncio.Event()

    async def renew(_csr_pem: bytes) -> RenewCertificateResponse:
        asked.set()
        raise ConnectionRefusedError("no manager")

    def renewer(source: NodeCertificate, _renew: Renew) -> Renewer:
        return Renewer(source, renew, clock=lambda: utc_now() + ahead, clock_check_s=0.01)

    participation = worker_on(host, msgspec.structs.replace(lonely(), renewer=renewer))
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
async def test_a_clock_that_is_wrong_is_asked_after(host: Host, jump: timedelta, said: str) -> None:
    off = timedelta(0)
    participation = worker_on(host, msgspec.structs.replace(idle(), clock=lambda: utc_now() + off))
    failure = "UNAVAILABLE: failed to connect to all addresses"
    participation.on_session(failure)
    assert participation.session_error == failure
    off = jump
    assert participation.session_error.startswith(f"{failure} (certificate of node n1 {said}")
    assert participation.session_error.endswith("is the clock of this host right?)")
    participation.on_session("")
    assert participation.session_error == ""
    await participation.stop()


async def test_a_worker_that_is_told_to_be_one_stays_as_it_is(host: Host) -> None:
    participation = worker_on(host, idle())
    await participation.start()
    for _ in range(3):
        participation.on_node(Node(id="n1", role=NodeRole.NODE_ROLE_WORKER))
        for _ in range(20):
            await asyncio.sleep(0)
    assert participation.state.role == NodeRole.NODE_ROLE_WORKER
    assert not (host.state_dir / local_state.FILE_NAME).exists()
    assert participation.error == ""
    await participation.stop()
