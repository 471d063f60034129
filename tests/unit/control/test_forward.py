"""Calls to a manager that does not lead, over real gRPC: passed on, tried again only when safe, refused in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.message import Message

from manager.consensus.inprocess import InProcessConsensus
from manager.consensus.port import NodeID, NotLeaderError
from manager.control.errors import NO_LEADER_TEXT, NOT_LEADER_TEXT
from manager.control.forward import ForwardedError, LeaderForwarder, NoLeaderError, RequestTooLargeError
from manager.control.rpc import Call, control_handler
from manager.control.service import ControlService
from manager.store import Store
from pki.grpc_credentials import REQUEST_SIZE_BYTES_MAX
from proto import control_pb2 as pb
from proto.control_pb2_grpc import ControlStub
from tests.unit.control.builders import service_spec
from tests.unit.control.managed import Managed

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its stub alone


@asynccontextmanager
async def serving(call: Call) -> AsyncIterator[int]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((control_handler(call),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


class Follower:
    """A manager without the leadership, whose leader is at ``channel``."""

    def __init__(self) -> None:
        self.consensus = InProcessConsensus(NodeID("node-2"))
        self.store = Store(self.consensus, clock=lambda: 0.0)
        self.channel: grpc.aio.Channel | None = None
        self.control = ControlService(self.store, self.consensus)
        self.patience(0.2)

    def patience(self, no_leader_timeout_s: float) -> None:
        self.forwarder = LeaderForwarder(
            self.control,
            self.consensus,
            lambda: self.channel,
            timeout_s=60.0,
            no_leader_timeout_s=no_leader_timeout_s,
        )


@pytest_asyncio.fixture
async def follower() -> AsyncIterator[Follower]:
    made = Follower()
    await made.consensus.start(made.store)
    made.consensus.lose_leadership()
    yield made
    if made.channel is not None:
        await made.channel.close()
    await made.control.close()


async def test_a_followers_call_is_answered_by_the_leader(manager: Managed, follower: Follower) -> None:
    async with serving(manager.control.call) as leader_port, serving(follower.forwarder.call) as port:
        follower.channel = grpc.aio.insecure_channel(f"127.0.0.1:{leader_port}")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = ControlStub(channel)
            created = await stub.CreateService(pb.CreateServiceRequest(spec=service_spec()))
            assert manager.store.view.services.get(created.service.id) is not None
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.CreateService(pb.CreateServiceRequest(spec=service_spec()))
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert caught.value.details() == (
        "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web already exists"
    )


async def test_without_a_leader_the_call_is_refused_in_time(follower: Follower) -> None:
    async with serving(follower.forwarder.call) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = ControlStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListNodes(pb.ListNodesRequest())
        info = await stub.GetManagerInfo(pb.GetManagerInfoRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert NO_LEADER_TEXT in (caught.value.details() or "")
    assert not info.has_leader


async def test_a_manager_of_a_cluster_that_is_no_more_says_so_at_once(follower: Follower) -> None:
    follower.patience(60.0)
    follower.consensus.supersede("a new cluster was forced")
    async with serving(follower.forwarder.call) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = ControlStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="a new cluster was forced") as caught:
            await stub.ListNodes(pb.ListNodesRequest())
        info = await stub.GetManagerInfo(pb.GetManagerInfoRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert info.error == "a new cluster was forced"


async def test_a_request_that_no_manager_takes_in_is_refused_wherever_it_arrives(
    manager: Managed, follower: Follower
) -> None:
    """Not by gRPC on its way to the leader, in other words and with the leader's own limit."""
    giant = pb.CreateConfigRequest()
    giant.spec.data = bytes(REQUEST_SIZE_BYTES_MAX)
    leading = LeaderForwarder(manager.control, manager.consensus, lambda: None)
    texts = []
    for forwarder in (leading, follower.forwarder):
        with pytest.raises(RequestTooLargeError) as caught:
            await forwarder.call("CreateConfig", giant)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


async def test_a_leader_that_appears_meanwhile_answers(follower: Follower) -> None:
    follower.patience(60)
    call = asyncio.ensure_future(follower.forwarder.call("ListNodes", pb.ListNodesRequest()))
    await asyncio.sleep(0)
    follower.consensus.regain_leadership()
    assert await call == pb.ListNodesResponse()


async def test_a_leader_that_was_deposed_is_not_the_last_word(manager: Managed, follower: Follower) -> None:
    refused = asyncio.Event()

    async def noticed(method: str, request: Message) -> Message:
        try:
            return await manager.control.call(method, request)
        except NotLeaderError:
            refused.set()
            raise

    follower.patience(60)
    async with serving(noticed) as leader_port:
        follower.channel = grpc.aio.insecure_channel(f"127.0.0.1:{leader_port}")
        manager.consensus.lose_leadership()
        request = pb.CreateServiceRequest(spec=service_spec())
        call = asyncio.ensure_future(follower.forwarder.call("CreateService", request))
        await asyncio.wait_for(refused.wait(), 30)
        manager.consensus.regain_leadership()
        await asyncio.wait_for(call, 30)
    assert len(manager.store.view.services) == 1


async def test_a_leader_that_cannot_be_reached_counts_as_none(follower: Follower) -> None:
    follower.channel = grpc.aio.insecure_channel("127.0.0.1:1")
    with pytest.raises(NoLeaderError, match="does not have a leader"):
        await follower.forwarder.call("CreateService", pb.CreateServiceRequest(spec=service_spec()))


async def test_a_broken_connection_repeats_reads_and_never_writes(manager: Managed, follower: Follower) -> None:
    breaking = _Breaking(4)
    server = grpc.aio.server(interceptors=[breaking])
    server.add_generic_rpc_handlers((control_handler(manager.control.call),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    follower.patience(60)
    try:
        follower.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        with pytest.raises(ForwardedError, match="connection reset"):
            await follower.forwarder.call("CreateService", pb.CreateServiceRequest(spec=service_spec()))
        assert breaking.calls == 1
        assert await follower.forwarder.call("ListNodes", pb.ListNodesRequest()) == pb.ListNodesResponse()
        assert breaking.calls == 5
    finally:
        await server.stop(None)


class _Breaking(grpc.aio.ServerInterceptor):
    """As if the connection of each of the first ``broken_calls`` broke after the request went out."""

    def __init__(self, broken_calls: int) -> None:
        self.broken_calls, self.calls = broken_calls, 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        self.calls += 1
        if self.calls > self.broken_calls:
            return await continuation(handler_call_details)

        async def broken(request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset by peer")

        return grpc.unary_unary_rpc_method_handler(broken)


async def test_a_channel_closed_under_a_call_repeats_reads_and_never_writes(
    manager: Managed, follower: Follower
) -> None:
    arrived: asyncio.Queue[str] = asyncio.Queue()

    async def never(method: str, request: Message) -> Message:
        arrived.put_nowait(method)
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    follower.patience(60)
    async with serving(never) as old_port, serving(manager.control.call) as new_port:
        for method, request in (
            ("ListNodes", pb.ListNodesRequest()),
            ("CreateService", pb.CreateServiceRequest(spec=service_spec())),
        ):
            old = follower.channel = grpc.aio.insecure_channel(f"127.0.0.1:{old_port}")
            call = asyncio.ensure_future(follower.forwarder.call(method, request))
            assert await asyncio.wait_for(arrived.get(), 30) == method
            follower.channel = grpc.aio.insecure_channel(f"127.0.0.1:{new_port}")
            await old.close()
            if method == "ListNodes":
                assert await asyncio.wait_for(call, 30) == pb.ListNodesResponse()
                await follower.channel.close()
            else:
                with pytest.raises(ForwardedError, match="it may have been carried out"):
                    await asyncio.wait_for(call, 30)
    assert not len(manager.store.view.services)


async def test_two_managers_that_take_each_other_for_the_leader_give_up(follower: Follower) -> None:
    calls: list[str] = []

    async def counted(method: str, request: Message) -> Message:
        calls.append(method)
        return await follower.forwarder.call(method, request)

    async with serving(counted) as port:
        follower.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        with pytest.raises(NoLeaderError):
            await follower.forwarder.call("ListNodes", pb.ListNodesRequest())
    assert 0 < len(calls) < 20


async def test_every_method_of_the_api_has_a_handler_and_no_handler_is_without(manager: Managed) -> None:
    methods = pb.DESCRIPTOR.services_by_name["Control"].methods
    assert set(manager.control._methods) == {method.name for method in methods}


async def test_not_leading_is_said_in_one_text(follower: Follower) -> None:
    async with (
        serving(follower.control.call) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub = ControlStub(channel)
        for call in (stub.GetCluster(pb.GetClusterRequest()), stub.RemoveNode(pb.RemoveNodeRequest(ref="x"))):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.details() == NOT_LEADER_TEXT
