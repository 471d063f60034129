"""A host becomes what its node object says, whatever happens in between (worker/membership/participation.py; feature A4.05)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from base import leftovers
from base.trees import remove_tree
from base.unix_rpc import UnixServer
from pki.certificates import Role
from pki.node_certificate import NodeCertificate, NodeCredentials
from pki.renewal import Renew
from proto.control_pb2 import GetManagerInfoRequest, GetManagerInfoResponse
from proto.control_pb2_grpc import ControlServicer, add_ControlServicer_to_server
from proto.node_pb2 import LocalState, ManagerConfig
from proto.objects_pb2 import Node, NodeDescription
from proto.specs_pb2 import NodeRole
from tests.unit.agent.fakes import FakeExecutor
from tests.unit.pki.support import Authority
from tests.waiting import until
from worker.membership.cluster_member import MembershipError
from worker.membership.host import Host
from worker.membership.participation import Participation
from worker.membership.parts import OnExit, ParticipationParts
from worker.membership.state_folder import CERTIFICATES, MANAGER_SOCKET, RAFT, RAFT_REMOVED, discard_log, erase
from worker.membership.zygote import Zygote

NODE = "n1"
NOON = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)


class Process:
    """The manager process, as far as its node can see."""

    def __init__(self) -> None:
        self.running = False
        self.on_wait_cancelled: Callable[[], None] = lambda: None
        self.on_exit: OnExit = lambda _config: None

    def __call__(self, _zygote: Zygote, _lock: Path, on_exit: OnExit) -> Process:
        self.on_exit = on_exit
        return self

    async def start(self, _config: ManagerConfig) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = False

    async def wait_running(self) -> None:
        await asyncio.Event().wait()  # the tests ask for its answer themselves

    async def wait_ended(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.on_wait_cancelled()


class Renewer:
    """Issues certificates of the role that the managers know of."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self.role, self.now = Role.WORKER, NOON
        self.failures: list[Exception] = []
        self.renewed = 0
        self.answers = asyncio.Event()
        self.answers.set()

    def __call__(self, source: NodeCertificate, _renew: Renew) -> Renewer:
        self.source = source
        return self

    def credentials(self, role: Role) -> NodeCredentials:
        return self._authority.credentials(role, node_id=NODE, now=self.now)

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def wait_valid(self) -> None:
        raise NotImplementedError

    def renew_now(self) -> None:
        raise NotImplementedError

    async def renew_once(self) -> None:
        self.renewed += 1
        await self.answers.wait()
        if self.failures:
            raise self.failures.pop()
        self.source.replace(self.credentials(self.role))


class IdleAgent:
    """``ParticipationParts.agent``: it has nothing to do."""

    def __init__(self, **_more: Any) -> None:
        pass

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass

    async def leave(self) -> None:
        pass


class Member:
    """A worker whose managers, manager process and certificates are the test's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process, self.renewer = Process(), Renewer(Authority(now=NOON))
        self.certificate = NodeCertificate.create(folder / CERTIFICATES, self.renewer.credentials(Role.WORKER))
        address = "127.0.0.1:2377"
        state = LocalState(node_id=NODE, cluster_id="c", listen_addr=address, advertise_addr=address)
        host = Host(folder, folder, Zygote("no:manager"), FakeExecutor(), NodeDescription)
        parts = ParticipationParts(
            agent=IdleAgent,
            renewer=self.renewer,
            process=self.process,
            role_retry_s=0.0,
            restart_delay_s_min=0.0,
        )
        self.participation = Participation(host, state, self.certificate, parts)

    @property
    def role(self) -> Role:
        return self.certificate.identity.role

    @contextlib.asynccontextmanager
    async def serves(self, on_call: Callable[[], None]) -> AsyncIterator[None]:
        """Its manager answers, and ``on_call`` happens just before."""
        server = UnixServer()
        add_ControlServicer_to_server(Answering(on_call), server)  # type: ignore[abstract]  # as much of it as is called here
        server.add_insecure_port(f"unix:{self.folder / MANAGER_SOCKET}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)


class Answering(ControlServicer):
    def __init__(self, on_call: Callable[[], None]) -> None:
        self._on_call = on_call

    async def GetManagerInfo(  # noqa: N802 - the RPC's name
        self, request: GetManagerInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> GetManagerInfoResponse:
        self._on_call()
        return GetManagerInfoResponse()


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[Member]:
    made = Member(tmp_path)
    await made.participation.start()
    yield made
    await made.participation.stop()


def node(wanted: NodeRole.ValueType, *, void_before: datetime | None = None) -> Node:
    made = Node(id=NODE, role=NodeRole.NODE_ROLE_WORKER)
    made.spec.role = wanted
    if void_before is not None:
        made.manager_certificates_void_before.FromDatetime(void_before)
    return made


async def promoted(member: Member) -> None:
    member.renewer.role = Role.MANAGER
    member.participation.on_node(node(NodeRole.NODE_ROLE_MANAGER))
    await until(lambda: member.process.running)
    assert member.role is Role.MANAGER


async def test_a_renewal_that_was_answered_before_a_promotion_does_not_undo_it(member: Member) -> None:
    """The renewal of every few weeks was on its way: its certificate is written last, and opens no Raft stream."""
    await promoted(member)
    await asyncio.to_thread(member.certificate.replace, member.renewer.credentials(Role.WORKER))
    await until(lambda: member.role is Role.MANAGER)


async def test_a_renewal_that_was_answered_before_a_demotion_does_not_undo_it(member: Member) -> None:
    await promoted(member)
    member.renewer.role = Role.WORKER
    member.participation.on_node(node(NodeRole.NODE_ROLE_WORKER))
    await until(lambda: member.role is Role.WORKER)
    await asyncio.to_thread(member.certificate.replace, member.renewer.credentials(Role.MANAGER))
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
    member.participation.on_node(
        node(NodeRole.NODE_ROLE_MANAGER, void_before=NOON + timedelta(minutes=1, microseconds=1))
    )
    await until(lambda: member.renewer.renewed >= 3)
    assert not member.process.running
    member.renewer.now = NOON + timedelta(minutes=1)  # of the same second: it counts
    await until(lambda: member.process.running)


async def test_a_leave_wins_over_a_promotion(member: Member) -> None:
    member.renewer.answers.clear()
    member.participation.on_node(node(NodeRole.NODE_ROLE_MANAGER))
    await until(lambda: member.renewer.renewed == 1)
    await member.participation.leave()
    assert not member.process.running
    assert not (member.folder / CERTIFICATES).exists()


# Its manager process


async def test_a_manager_that_ended_does_not_answer(member: Member) -> None:
    """Its answer came just before, and its end is not told yet."""

    def ends() -> None:
        member.process.running = False

    await promoted(member)
    async with member.serves(ends):
        with pytest.raises(MembershipError, match="ended while it started"):
            await member.participation.wait_manager(60)
    member.process.running = True
    assert not member.participation.control_available


async def test_a_manager_that_ends_after_its_answer_counts_as_ended(member: Member) -> None:
    def ends() -> None:
        member.process.running = False
        assert member.process.on_exit(ManagerConfig()) is not None

    await promoted(member)
    member.process.on_wait_cancelled = ends
    async with member.serves(lambda: None):
        await member.participation.wait_manager(60)
    member.process.running = True  # started again
    assert not member.participation.control_available


async def test_a_manager_that_answers_can_be_asked(member: Member) -> None:
    await promoted(member)
    async with member.serves(lambda: None):
        await member.participation.wait_manager(60)
    assert member.participation.control_available


async def test_what_a_manager_ended_with_is_not_told_of_the_worker_that_follows(member: Member) -> None:
    """One that was taken out of the Raft group ends by itself before it is stopped."""
    await promoted(member)
    member.process.on_exit(ManagerConfig())
    assert member.participation.manager_failure
    member.renewer.role = Role.WORKER
    member.participation.on_node(node(NodeRole.NODE_ROLE_WORKER))
    await until(lambda: member.role is Role.WORKER)
    assert member.participation.manager_failure == ""


# What a manager leaves


class Killed(BaseException):
    """Ends everything where it is."""


async def test_a_log_whose_removal_is_cut_short_is_gone_for_the_next_promotion(
    member: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await promoted(member)
    (tmp_path / RAFT / "journal").mkdir(parents=True)
    (tmp_path / RAFT / "snapshots").mkdir()

    def cut_short(path: Path) -> None:
        if path.exists():
            remove_tree(path / "journal")
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(leftovers, "remove_tree", cut_short)
        with pytest.raises(Killed):
            discard_log(tmp_path)
    assert not (tmp_path / RAFT).exists()
    (tmp_path / RAFT).mkdir()
    discard_log(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(RAFT)] == []
    (tmp_path / RAFT_REMOVED).mkdir()
    erase(tmp_path)
    assert not (tmp_path / RAFT_REMOVED).exists()
