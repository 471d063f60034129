"""One node's life in one cluster goes on when a part of it fails (worker/membership/participation.py)."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from base.files import write_atomic
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


MANAGERS = [ManagerAddress(node_id="m1", grpc_addr="10.0.0.1:7946", raft_addr="10.0.0.1:2377")]


class Disk:
    """What node.json is written to: which threads do, and whether it is full."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.full = False

    def write(self, path: Path, data: bytes, *, durable: bool) -> None:
        self.threads.append(threading.current_thread().name)
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_atomic(path, data, durable=durable)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr("base.records.write_atomic", disk.write)
    return disk


def saved_managers(host: Host) -> list[str] | None:
    saved = local_state.load(host.state_dir)
    return None if saved is None else [manager.node_id for manager in saved.managers]


async def test_the_list_of_managers_is_written_when_it_is_another(host: Host, disk: Disk) -> None:
    participation = worker_on(host, idle())
    participation.on_managers(MANAGERS)
    await until(lambda: saved_managers(host) == ["m1"], what="the list to be saved")
    participation.on_managers(list(MANAGERS))
    participation.on_managers([*MANAGERS, ManagerAddress(node_id="m2")])
    participation.on_managers([*MANAGERS, ManagerAddress(node_id="m3")])
    await until(lambda: saved_managers(host) == ["m1", "m3"], what="the last one to be saved")
    await participation.stop()
    assert len(disk.threads) in (2, 3)  # the last two may be one
    assert threading.main_thread().name not in disk.threads  # no session waits for the disk


async def test_a_list_of_managers_is_written_once_there_is_room(host: Host, disk: Disk) -> None:
    """On a full disk the session goes on; a list that stays unwritten would be missed at the next start."""
    participation = worker_on(host, idle())
    disk.full = True
    participation.on_managers(MANAGERS)
    await until(lambda: disk.threads, what="a try")
    assert list(participation.state.managers) == MANAGERS
    disk.full = False
    await until(lambda: saved_managers(host) == ["m1"], what="the list to be saved")
    await participation.stop()


async def left_unsaved(host: Host, disk: Disk) -> Participation:
    """One whose list of managers found no room, where there is room again."""
    participation = worker_on(host, idle())
    await participation.start()
    disk.full = True
    participation.on_managers(MANAGERS)
    await until(lambda: disk.threads, what="a try")
    disk.full = False
    return participation


async def test_a_list_of_managers_is_written_at_an_orderly_end(host: Host, disk: Disk) -> None:
    participation = await left_unsaved(host, disk)
    await participation.stop()
    assert saved_managers(host) == ["m1"]


async def test_what_waits_for_room_does_not_bring_a_left_cluster_back(host: Host, disk: Disk) -> None:
    participation = await left_unsaved(host, disk)
    await participation.leave()
    assert not (host.state_dir / local_state.FILE_NAME).exists()


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
