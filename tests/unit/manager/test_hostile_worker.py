"""What one worker, or a stranger, may cost a manager on 7946. Real managers; everything stays on the loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from pki.grpc_credentials import RotatingChannel
from pki.node_certificate import NodeCertificate
from proto.control_pb2 import GetClusterRequest
from proto.dispatcher_pb2 import SessionRequest, StatusReport, TaskStatusUpdate
from proto.dispatcher_pb2_grpc import DispatcherStub
from tests.unit.worker.support import Place, place
from worker.membership.cluster_member import InitRequest, JoinRequest
from worker.membership.state_folder import CERTIFICATES

DEADLINE_S = 60.0


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Place]:
    async with place(tmp_path / "a") as made:
        await made.node.init(InitRequest(listen_addr=made.listen, advertise_addr=made.listen))
        yield made


@pytest.fixture
async def worker(manager: Place, tmp_path: Path) -> AsyncIterator[NodeCertificate]:
    """The certificate of a worker that does not run."""
    cluster = (await manager.node.control().GetCluster(GetClusterRequest())).cluster
    async with place(tmp_path / "b") as made:
        request = JoinRequest(
            [manager.listen], cluster.root_ca.join_tokens.worker, listen_addr=made.listen, advertise_addr=made.listen
        )
        await made.node.join(request)
        await made.node.close()
        yield NodeCertificate.load(made.host.state_dir / CERTIFICATES)


async def test_a_message_larger_than_anything_a_node_has_to_say_is_not_taken_in(
    manager: Place, worker: NodeCertificate
) -> None:
    """It would be held in memory before anybody asks who sends it, up to a thousand at a time."""
    request = SessionRequest(report=StatusReport(updates=[TaskStatusUpdate(task_id="t" * 17 * 1024 * 1024)]))
    async with RotatingChannel(f"{manager.address}:7946", worker, [("grpc.max_send_message_length", -1)]) as channel:
        call = DispatcherStub(channel).Session(timeout=DEADLINE_S)
        await call.write(request)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_connection_that_says_nothing_is_closed(manager: Place) -> None:
    reader, writer = await asyncio.open_connection(manager.address, 7946)
    try:
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b""
    finally:
        writer.close()
