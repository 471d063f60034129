"""What one address, one node and all that never show up may have of the certificate server."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest

import manager.authorization
import manager.ca.service
import manager.ca.state
from base.rate_limit import RateLimit
from manager.ca.service import JOINS_BURST, JOINS_RATE_S, RENEWALS_BURST, NodeCAService
from pki.certificates import Identity, Role
from pki.errors import JoinUnreachableError
from pki.join_client import join_cluster
from proto.ca_pb2 import RenewCertificateRequest, RenewCertificateResponse
from tests.unit.ca import support
from tests.unit.ca.support import SmallCluster

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def test_a_hundred_hosts_behind_one_address_may_join_twice_at_once_and_more_every_minute() -> None:
    limit = RateLimit(JOINS_BURST, JOINS_RATE_S)
    assert all(limit.take("192.0.2.1", 0.0) for _ in range(200))
    assert not limit.take("192.0.2.1", 0.0)
    assert limit.take("192.0.2.2", 0.0)
    assert all(limit.take("192.0.2.1", 60.0) for _ in range(100))


async def test_an_address_that_joins_again_and_again_is_told_to_wait(
    tmp_path: Path, cluster: SmallCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager.ca.service, "JOINS_BURST", 2)
    monkeypatch.setattr(manager.ca.service, "JOINS_RATE_S", 0.0)
    async with support.manager(tmp_path, cluster) as (listener, _, _):
        addresses = [f"127.0.0.1:{listener.port}"]
        for _ in range(2):
            await join_cluster(addresses, cluster.join_tokens.worker)
        with pytest.raises(JoinUnreachableError, match=r"too many nodes join from 127\.0\.0\.1: try again in a minute"):
            await join_cluster(addresses, cluster.join_tokens.worker)
    assert len(cluster.nodes) == 2


class CallRefusedError(Exception):
    pass


class Context:
    """Of a gRPC call."""

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise CallRefusedError(code.name, details)


class Renewing:
    """A certificate server."""

    async def renew(self, caller: Identity, request: RenewCertificateRequest) -> RenewCertificateResponse:
        return RenewCertificateResponse()


async def test_a_node_that_renews_again_and_again_is_told_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    server: Any = Renewing()
    context: Any = Context()
    service = NodeCAService(server, monotonic=lambda: now_s)
    identities = {name: Identity(name, Role.WORKER, "c", 1, NOW, NOW) for name in ("n1", "n2")}

    async def renew(name: str) -> None:
        manager.authorization._caller.set(identities[name])
        await service.RenewCertificate(RenewCertificateRequest(), context)

    for _ in range(RENEWALS_BURST):
        await renew("n1")
    with pytest.raises(CallRefusedError, match=r"RESOURCE_EXHAUSTED.*n1 renews its certificate too often"):
        await renew("n1")
    await renew("n2")
    now_s = 1.0
    await renew("n1")
