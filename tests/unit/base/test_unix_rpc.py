"""Unary calls over a unix socket: they fail, end and are cancelled like gRPC's, and a bad peer harms only itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from base.unix_rpc import FRAME_BYTES_MAX, UnixChannel, UnixServer
from manager.control.rpc import control_handler
from manager.store import SequenceConflictError
from proto import control_pb2 as pb
from proto.control_pb2_grpc import ControlStub

Call = Callable[[str, Any], Awaitable[Any]]


class Served:
    """A server on ``path`` that answers with ``call``, and a stub of it."""

    def __init__(self, path: Path, call: Call, *interceptors: grpc.aio.ServerInterceptor) -> None:
        self.target = f"unix:{path}"
        self.server = UnixServer(interceptors)
        self.server.add_generic_rpc_handlers((control_handler(call),))
        self.channel = UnixChannel(self.target)
        self.control = ControlStub(self.channel)

    async def __aenter__(self) -> Served:
        self.server.add_insecure_port(self.target)
        await self.server.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.channel.close()
        await self.server.stop(None)


async def echo(method: str, request: Any) -> Any:
    return pb.GetServiceResponse() if method == "GetService" else pb.GetManagerInfoResponse(nodes_total=7)


async def test_calls_are_answered_each_with_its_own_answer(tmp_path: Path) -> None:
    async def call(_method: str, request: Any) -> Any:
        # The later it comes, the sooner it is answered.
        await asyncio.sleep(0.02 / (1 + int(request.ref)))
        answer = pb.GetServiceResponse()
        answer.service.id = request.ref
        return answer

    async with Served(tmp_path / "s", call) as served:
        answers = await asyncio.gather(
            *(served.control.GetService(pb.GetServiceRequest(ref=str(n))) for n in range(50))
        )
    assert [answer.service.id for answer in answers] == [str(n) for n in range(50)]


async def test_a_large_message_comes_whole(tmp_path: Path) -> None:
    text = "x" * 3_000_000

    async def call(_method: str, request: Any) -> Any:
        answer = pb.GetServiceResponse()
        answer.service.id = request.ref * 2
        return answer

    async with Served(tmp_path / "s", call) as served:
        answer = await served.control.GetService(pb.GetServiceRequest(ref=text))
    assert answer.service.id == text * 2


async def test_a_refusal_has_code_and_text(tmp_path: Path) -> None:
    async def call(_method: str, _request: Any) -> Any:
        raise SequenceConflictError(kind="service", object_id="s1", expected=1, actual=2)

    async with Served(tmp_path / "s", call) as served:
        with pytest.raises(grpc.aio.AioRpcError, match="update out of sequence") as refused:
            await served.control.GetService(pb.GetServiceRequest())
    assert refused.value.code() is grpc.StatusCode.UNKNOWN


async def test_what_is_not_foreseen_is_unknown_and_ends_nothing_else(tmp_path: Path) -> None:
    async def call(method: str, request: Any) -> Any:
        if method == "GetService":
            raise ZeroDivisionError("of ours")
        return await echo(method, request)

    async with Served(tmp_path / "s", call) as served:
        with pytest.raises(grpc.aio.AioRpcError, match="of ours") as failed:
            await served.control.GetService(pb.GetServiceRequest())
        assert failed.value.code() is grpc.StatusCode.UNKNOWN
        assert (await served.control.GetManagerInfo(pb.GetManagerInfoRequest())).nodes_total == 7


async def test_without_a_server_a_call_fails_or_waits_for_one(tmp_path: Path) -> None:
    served = Served(tmp_path / "s", echo)
    with pytest.raises(grpc.aio.AioRpcError, match=r"failed to connect to .*: No such file") as failed:
        await served.control.GetManagerInfo(pb.GetManagerInfoRequest())
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await served.control.GetManagerInfo(pb.GetManagerInfoRequest(), wait_for_ready=True, timeout=0.05)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    waiting = asyncio.ensure_future(served.control.GetManagerInfo(pb.GetManagerInfoRequest(), wait_for_ready=True))
    async with served:
        assert (await waiting).nodes_total == 7


async def test_a_server_that_goes_away_fails_its_calls_and_the_next_one_is_found(tmp_path: Path) -> None:
    path, begun = tmp_path / "s", asyncio.Event()

    async def hang(_method: str, _request: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    async with Served(path, hang) as first:
        call = asyncio.ensure_future(first.control.GetService(pb.GetServiceRequest()))
        await begun.wait()
        await first.server.stop(None)
        with pytest.raises(grpc.aio.AioRpcError, match="may have been carried out") as failed:
            await call
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        path.unlink()
        async with Served(path, echo):
            assert (await first.control.GetManagerInfo(pb.GetManagerInfoRequest())).nodes_total == 7


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_a_call_given_up_is_cancelled_at_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(_method: str, _request: Any) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with Served(tmp_path / "s", hang) as served:
        timeout = 1000.0 if how == "timeout" else None
        call = asyncio.ensure_future(served.control.GetService(pb.GetServiceRequest(), timeout=timeout))
        await begun.wait()
        if how == "cancel":
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        else:
            loop, now = asyncio.get_running_loop(), asyncio.get_running_loop().time()
            monkeypatch.setattr(loop, "time", lambda: now + 1001.0)
            with pytest.raises(grpc.aio.AioRpcError, match="Deadline Exceeded") as late:
                await call
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await cancelled.wait()


async def test_the_handlers_of_a_client_that_is_gone_are_cancelled(tmp_path: Path) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(_method: str, _request: Any) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with Served(tmp_path / "s", hang) as served, asyncio.timeout(30):
        call = asyncio.ensure_future(served.control.GetService(pb.GetServiceRequest()))
        await begun.wait()
        await served.channel.close()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        await cancelled.wait()


async def test_an_interceptor_may_refuse(tmp_path: Path) -> None:
    class Nobody(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
            handler = await continuation(handler_call_details)

            async def refuse(_request: Any, context: Any) -> Any:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"not {handler_call_details.method}")

            return grpc.unary_unary_rpc_method_handler(
                refuse, handler.request_deserializer, handler.response_serializer
            )

    async with Served(tmp_path / "s", echo, Nobody()) as served:
        with pytest.raises(grpc.aio.AioRpcError, match=r"not /swarm.v1.Control/GetNode") as refused:
            await served.control.GetNode(pb.GetNodeRequest())
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_an_unknown_method_and_a_stream_are_refused(tmp_path: Path) -> None:
    async with Served(tmp_path / "s", echo) as served:
        unknown = served.channel.unary_unary("/swarm.v1.Control/Nothing", lambda _: b"", lambda data: data)
        with pytest.raises(grpc.aio.AioRpcError, match="no such method") as refused:
            await unknown(None)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.aio.UsageError, match="unary calls only"):
            served.channel.stream_stream("/swarm.v1.Dispatcher/Session")(iter(()))


async def test_a_message_that_is_too_large_is_refused_and_nothing_else_is_disturbed(tmp_path: Path) -> None:
    async with Served(tmp_path / "s", echo) as served:
        raw = served.channel.unary_unary("/swarm.v1.Control/GetNode", lambda data: data, lambda data: data)
        with pytest.raises(grpc.aio.AioRpcError, match="at most") as refused:
            await raw(bytes(FRAME_BYTES_MAX))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await served.control.GetManagerInfo(pb.GetManagerInfoRequest())).nodes_total == 7


@pytest.mark.parametrize(
    "sent", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02{}", b"\x00\x00\x00\x00", b"GET / HTTP/1.1\r\n"]
)
async def test_a_peer_that_breaks_the_form_loses_its_connection(tmp_path: Path, sent: bytes) -> None:
    async with Served(tmp_path / "s", echo) as served, asyncio.timeout(30):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(sent)
        assert await _end_of(reader)
        writer.close()
        assert (await served.control.GetManagerInfo(pb.GetManagerInfoRequest())).nodes_total == 7


async def _end_of(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


def test_a_target_that_is_no_unix_socket_is_refused() -> None:
    with pytest.raises(grpc.aio.UsageError, match="want unix:/path"):
        UnixChannel("127.0.0.1:1")
