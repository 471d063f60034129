"""A host becomes what its node object says, whatever happens in between (worker/membership/participation.py; feature A4.05)."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pki.certificates import Role
from pki.node_certificate import NodeCertificate, NodeCredentials
from proto.node_pb2 import LocalState, ManagerConfig
from proto.objects_pb2 import Node, NodeDescription
from proto.specs_pb2 import NodeRole
from tests.unit.agent.fakes import FakeExecutor
from tests.unit.pki.support import Authority
from tests.unit.worker.support import until
from worker.membership import participation as module
from worker.membership.cluster_member import MembershipError
from worker.membership.host import Host
from worker.membership.participation import Participation
from worker.membership.state_folder import CERTIFICATES, RAFT, RAFT_REMOVED, discard_log, erase
from worker.membership.zygote import Zygote

NODE = "n1"
NOON = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)


class Process:
    """The manager process, as far as its node can see."""

    def __init__(self) -> None:
        self.running = self.kept = False
        self.on_wait_cancelled: Callable[[], None] = lambda: None

    async def start(self, _config: ManagerConfig) -> None:
        self.running = self.kept = True

    async def stop(self) -> None:
        self.running = self.kept = False

    async def wait_ended(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.on_wait_cancelled()


class Renewer:
    """Issues certificates of the role that the managers know of."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self.role, self.now = Role.WORKER, NOON
        self.failures: list[Exception] = []
        self.renewed = 0

    async def renew_once(self) -> None:
        self.renewed += 1
        if self.failures:
            raise self.failures.pop()
        self._member.certificate.replace(self._member.credentials(self.role, self.now))


class Member(Participation):
    """A worker whose managers, manager process and certificates are the test's."""

    def __init__(self, folder: Path) -> None:
        self._authority = Authority(now=NOON)
        self.certificate = NodeCertificate.create(folder / CERTIFICATES, self.credentials(Role.WORKER, NOON))
        address = "127.0.0.1:2377"
        state = LocalState(node_id=NODE, cluster_id="c", listen_addr=address, advertise_addr=address)
        host = Host(folder, folder, Zygote("no:manager"), FakeExecutor(), NodeDescription)
        super().__init__(host, state, self.certificate)
        self.process, self.renewer = Process(), Renewer(self)
        self._manager = self.process  # type: ignore[assignment]  # as much of it as is called here
        self._renewer = self.renewer  # type: ignore[assignment]  # likewise

    def credentials(self, role: Role, now: datetime) -> NodeCredentials:
        return self._authority.credentials(role, node_id=NODE, now=now)

    @property
    def role(self) -> Role:
        return self.certificate.identity.role


@pytest.fixture
async def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Member]:
    monkeypatch.setattr(module, "_ROLE_RETRY_S", 0.0)
    monkeypatch.setattr(module, "_RESTART_DELAY_S_MIN", 0.0)
    made = Member(tmp_path)
    following = asyncio.ensure_future(made._keep_going("role", made._follow_role))
    yield made
    following.cancel()
    await asyncio.wait({following})
    await made.stop()


def node(wanted: NodeRole.ValueType, *, void_before: datetime | None = None) -> Node:
    made = Node(id=NODE, role=NodeRole.NODE_ROLE_WORKER)
    made.spec.role = wanted
    if void_before is not None:
        made.manager_certificates_void_before.FromDatetime(void_before)
    return made


async def promoted(member: Member) -> None:
    member.renewer.role = Role.MANAGER
    member.on_node(node(NodeRole.NODE_ROLE_MANAGER))
    await until(lambda: member.process.running)
    assert member.role is Role.MANAGER


async def test_a_renewal_that_was_answered_before_a_promotion_does_not_undo_it(member: Member) -> None:
    """The renewal of every few weeks was on its way: its certificate is written last, and opens no Raft stream."""
    await promoted(member)
    await asyncio.to_thread(member.certificate.replace, member.credentials(Role.WORKER, NOON))
    await until(lambda: member.role is Role.MANAGER)


async def test_a_renewal_that_was_answered_before_a_demotion_does_not_undo_it(member: Member) -> None:
    await promoted(member)
    member.renewer.role = Role.WORKER
    member.on_node(node(NodeRole.NODE_ROLE_WORKER))
    await until(lambda: member.role is Role.WORKER)
    await asyncio.to_thread(member.certificate.replace, member.credentials(Role.MANAGER, NOON))
    await until(lambda: member.role is Role.WORKER)
    assert not member.process.running


async def test_a_change_of_role_that_fails_in_an_unknown_way_is_tried_again(member: Member) -> None:
    """Nobody says it a second time."""
    member.renewer.failures.append(ValueError("unforeseen"))
    await promoted(member)
    assert member.renewer.renewed == 2


async def test_a_manager_begins_with_a_certificate_from_after_its_demotion(member: Member) -> None:
    """The clock of the leader that issues is behind the clock of the one that demoted."""
    member.renewer.role = Role.MANAGER
    member.on_node(node(NodeRole.NODE_ROLE_MANAGER, void_before=NOON + timedelta(minutes=1, microseconds=1)))
    await until(lambda: member.renewer.renewed >= 3)
    assert not member.process.running
    member.renewer.now = NOON + timedelta(minutes=1)  # of the same second: it counts
    await until(lambda: member.process.running)


# Its manager process


async def test_a_manager_that_ended_does_not_answer(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer came just before, and its end is not told yet."""

    async def answers() -> None:
        member.process.running = False

    member.process.running = True
    monkeypatch.setattr(member, "_manager_answers", answers)
    with pytest.raises(MembershipError, match="ended while it started"):
        await member.wait_manager(60)
    assert not member._manager_ready


async def test_a_manager_that_ends_after_its_answer_counts_as_ended(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answers() -> None:
        pass

    def ends() -> None:
        member.process.running = False
        member._on_manager_exit(ManagerConfig())

    member.process.running = True
    member.process.on_wait_cancelled = ends
    monkeypatch.setattr(member, "_manager_answers", answers)
    await member.wait_manager(60)
    assert not member._manager_ready
    member.process.running = True  # started again
    assert not member.control_available


# What a manager leaves


class Killed(BaseException):
    """Ends everything where it is."""


async def test_a_log_whose_removal_is_cut_short_is_gone_for_the_next_promotion(
    member: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await promoted(member)
    (tmp_path / RAFT / "journal").mkdir(parents=True)
    (tmp_path / RAFT / "snapshots").mkdir()
    remove = shutil.rmtree

    def cut_short(path: Path, *, ignore_errors: bool) -> None:
        if path.exists():
            remove(path / "journal")
            raise Killed
        remove(path, ignore_errors=ignore_errors)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut_short)
        with pytest.raises(Killed):
            discard_log(tmp_path)
    assert not (tmp_path / RAFT).exists()
    (tmp_path / RAFT).mkdir()
    discard_log(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(RAFT)] == []
    (tmp_path / RAFT_REMOVED).mkdir()
    erase(tmp_path)
    assert not (tmp_path / RAFT_REMOVED).exists()
