"""When a certificate renews itself, and what happens when it cannot (A2.02)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pki.authority import RootCA
from pki.certificates import Identity, Role
from pki.errors import InvalidCertificateError, NodeCertificateExpiredError
from pki.identifiers import new_id
from pki.node_certificate import NodeCertificate
from pki.renewal import RETRY_DELAY_S_MAX, Renewer, follow, renewal_time, retry_delay_s
from proto.ca_pb2 import RenewCertificateResponse
from tests.unit.pki.support import NOON, Authority
from tests.waiting import until

DEADLINE_S = 30.0


def identity(lifetime: timedelta) -> Identity:
    return Identity(
        node_id="n",
        role=Role.WORKER,
        cluster_id="c",
        serial=1,
        not_before=NOON - timedelta(hours=1),
        not_after=NOON + lifetime,
    )


@given(chance=st.floats(0, 1), hours=st.integers(1, 10_000))
def test_renewal_is_between_half_and_four_fifths_of_the_life(chance: float, hours: int) -> None:
    lifetime = timedelta(hours=hours)
    share = (renewal_time(identity(lifetime), chance) - NOON) / lifetime
    assert 0.4999 <= share <= 0.8001


@given(failures=st.integers(1, 10_000), hours=st.integers(1, 10_000), elapsed=st.floats(0, 1))
def test_retries_are_bounded_and_never_wait_past_the_end(failures: int, hours: int, elapsed: float) -> None:
    certificate = identity(timedelta(hours=hours))
    now = NOON + timedelta(hours=hours) * elapsed
    delay_s = retry_delay_s(certificate, failures, now)
    left_s = (certificate.not_after - now).total_seconds()
    assert 0 < delay_s <= RETRY_DELAY_S_MAX
    assert delay_s <= max(left_s / 5, 0.2)


def test_the_first_retries_come_soon() -> None:
    certificate = identity(timedelta(days=90))
    assert [retry_delay_s(certificate, n, NOON) for n in (1, 2, 3)] == [5.0, 10.0, 20.0]


class Server:
    """Signs for one node, or fails. ``now`` is the time for both."""

    def __init__(self, authority: Authority, node_id: str, lifetime: timedelta) -> None:
        self.authority, self.node_id, self.lifetime = authority, node_id, lifetime
        self.now = authority.now
        self.role, self.failing, self.attempts = Role.WORKER, False, 0

    async def renew(self, csr_pem: bytes) -> RenewCertificateResponse:
        self.attempts += 1
        if self.failing:
            raise ConnectionRefusedError("no manager")
        issued = self.authority.root.issue(
            csr_pem,
            node_id=self.node_id,
            role=self.role,
            cluster_id=self.authority.cluster_id,
            lifetime=self.lifetime,
            now=self.now,
        )
        return RenewCertificateResponse(
            certificate_chain_pem=issued.chain_pem, root_ca_pem=self.authority.root.certificate_pem
        )


def node(directory: Path, lifetime: timedelta) -> tuple[NodeCertificate, Server]:
    authority = Authority()
    source = NodeCertificate.create(directory, authority.credentials(Role.WORKER, node_id="n", lifetime=lifetime))
    return source, Server(authority, "n", lifetime)


LOOK_S = 0.005
"""At the clock, which the test moves."""


async def test_a_certificate_is_renewed_again_and_again(tmp_path: Path) -> None:
    source, server = node(tmp_path, timedelta(hours=3))
    other_process = NodeCertificate.load(tmp_path)
    serials = {source.identity.serial}
    source.on_change(lambda credentials: serials.add(credentials.identity.serial))
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(
                Renewer(source, server.renew, clock=lambda: server.now, chance=lambda: 0.0, clock_check_s=LOOK_S).run()
            ),
            group.create_task(follow(other_process, period_s=0.01)),
        ]
        for number in (2, 3):
            server.now += timedelta(hours=2)
            await until(lambda number=number: len(serials) == number)  # type: ignore[misc]  # bound argument
        await until(lambda: other_process.identity == source.identity)
        for task in tasks:
            task.cancel()


async def test_a_change_of_role_comes_at_once(tmp_path: Path) -> None:
    source, server = node(tmp_path, timedelta(days=90))
    server.role = Role.MANAGER
    renewer = Renewer(source, server.renew)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(renewer.run())
        renewer.renew_now()
        await until(lambda: source.identity.role is Role.MANAGER)
        running.cancel()
    assert server.attempts == 1


async def test_failures_are_retried_and_forgotten_after_success(tmp_path: Path) -> None:
    source, server = node(tmp_path, timedelta(days=90))
    server.failing = True
    first = source.identity
    renewer = Renewer(source, server.renew, clock=lambda: server.now, chance=lambda: 0.0, clock_check_s=LOOK_S)

    def later(condition: bool) -> bool:
        server.now += timedelta(seconds=1)
        return condition

    async with asyncio.TaskGroup() as group:
        running = group.create_task(renewer.run())
        renewer.renew_now()
        await until(lambda: later(server.attempts >= 2))
        assert source.identity == first
        server.failing = False
        await until(lambda: later(source.identity != first))
        running.cancel()


async def test_an_expired_certificate_says_what_to_do(tmp_path: Path) -> None:
    source, server = node(tmp_path, timedelta(seconds=1))
    server.failing = True
    with pytest.raises(NodeCertificateExpiredError, match="To replace them, leave the swarm and join again"):
        async with asyncio.timeout(DEADLINE_S):
            await Renewer(source, server.renew).run()


async def test_an_answer_for_another_node_or_root_is_not_used(tmp_path: Path) -> None:
    source, server = node(tmp_path, timedelta(hours=1))
    before = source.current
    renewer = Renewer(source, server.renew)
    server.node_id = "somebodyelse"
    with pytest.raises(InvalidCertificateError, match="is for node somebodyelse"):
        await renewer.renew_once()
    server.node_id = "n"
    server.authority.cluster_id = new_id()
    with pytest.raises(InvalidCertificateError, match="of cluster"):
        await renewer.renew_once()

    async def mixed(csr_pem: bytes) -> RenewCertificateResponse:
        answer = await server.renew(csr_pem)
        answer.root_ca_pem = RootCA.create(NOON).certificate_pem
        return answer

    with pytest.raises(InvalidCertificateError):
        await Renewer(source, mixed).renew_once()
    assert source.current is before
