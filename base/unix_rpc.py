"""Unary RPCs between two processes of one host, over a unix socket, without what gRPC costs there.

The node process asks its manager process for nearly every request of the HTTP API. An empty call takes 0.45 ms on
grpc.aio, half of it processor time, and wakes four threads; here it takes 0.04 ms and wakes two (``scripts/bench calls``).
Stubs, handlers, interceptors, codes and errors are gRPC's own, so both ends are put together as for gRPC: only the
carrier differs. What leaves the host is gRPC; streams are too.

Wire: frames of a u32 length (big endian) and a msgpack array, many calls at a time on one connection. The socket's
file mode decides who may connect; a peer that breaks the form loses its connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio
import msgspec
import structlog

from base.grpc_codes import CODE_BY_NUMBER
from base.tasks import OwnedTasks

log = structlog.get_logger(__name__)

FRAME_BYTES_MAX = 129 * 1024 * 1024
"""A message of 128 MiB, the most that the control API carries, and its envelope."""

COPIED_BYTES_MAX = 256 * 1024
"""Up to here one system call more costs more than to copy a message behind its length."""

CONNECT_RETRY_S = 0.02
"""Between two tries to connect, for calls that wait for the server."""

_SCHEME = "unix:"
_LENGTH = struct.Struct(">I")


class _Frame(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    pass


class _Request(_Frame, tag="request"):
    """``method``: ``/swarm.v1.Control/GetNode``; ``call_id`` is chosen by the client, one at a time."""

    call_id: int
    method: str
    message: bytes


class _Cancel(_Frame, tag="cancel"):
    """The client waits no longer."""

    call_id: int


class _Response(_Frame, tag="response"):
    call_id: int
    message: bytes


class _Failure(_Frame, tag="failure"):
    """``code``: gRPC's number."""

    call_id: int
    code: int
    details: str


_ENCODER = msgspec.msgpack.Encoder()
_FROM_CLIENT = msgspec.msgpack.Decoder(_Request | _Cancel)
_FROM_SERVER = msgspec.msgpack.Decoder(_Response | _Failure)


class _FrameTooLargeError(Exception):
    pass


class _Connection(asyncio.Protocol):
    """Splits a stream into frames; what a frame means is the subclasses' affair."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        begin = 0
        try:
            while len(received) - begin >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(received, begin)
                if length > FRAME_BYTES_MAX:
                    raise _FrameTooLargeError(f"frame of {length} bytes")
                end = begin + _LENGTH.size + length
                if len(received) < end:
                    break
                with memoryview(received) as view:
                    frame = bytes(view[begin + _LENGTH.size : end])
                self.frame_received(frame)
                begin = end
        except (msgspec.MsgspecError, _FrameTooLargeError) as error:
            log.warning("unix_rpc.broken_frame", error=str(error))
            self.abort()
            return
        del received[:begin]

    def frame_received(self, frame: bytes) -> None:
        raise NotImplementedError

    def send(self, frame: _Frame) -> None:
        """Raises: _FrameTooLargeError, and nothing is sent."""
        body = _ENCODER.encode(frame)
        if len(body) > FRAME_BYTES_MAX:
            raise _FrameTooLargeError(f"message of {len(body)} bytes, at most {FRAME_BYTES_MAX} are carried")
        if self._transport is None or self._transport.is_closing():
            return
        if len(body) < COPIED_BYTES_MAX:
            self._transport.write(_LENGTH.pack(len(body)) + body)
            return
        self._transport.write(_LENGTH.pack(len(body)))
        self._transport.write(body)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


# ------------------------------------------------------------------ server


class _AbortError(Exception):
    """What ends a handler that called ``context.abort``."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


class _Context:
    """As much of ``grpc.aio.ServicerContext`` as a unary handler asks for."""

    async def abort(self, code: grpc.StatusCode, details: str = "", _metadata: object = ()) -> NoReturn:
        raise _AbortError(code, details)

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def peer(self) -> str:
        return _SCHEME


class _CallDetails(grpc.HandlerCallDetails):
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


class UnixServer(grpc.aio.Server):
    """Serves the unary RPCs of generic handlers on one unix socket.

    Attributes:
        calls: those under way, of all connections.

    Args:
        interceptors: as for ``grpc.aio.server``; each is asked once a method, not once a call.
    """

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> None:
        self._interceptors = interceptors
        self._services: list[grpc.GenericRpcHandler] = []
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any] | None] = {}
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[_ServerConnection] = set()
        self._stopped = asyncio.Event()
        self.calls = OwnedTasks()

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._services.extend(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """Generated code offers each service in both ways; the generic handler is enough."""

    def add_insecure_port(self, address: str) -> int:
        """Bind ``unix:/path`` (``chmod`` it by the umask). Raises: OSError.

        Also after ``start``, for a path whose file is gone: call ``start`` again. Connections stay.
        """
        bound = socket.socket(socket.AF_UNIX)
        try:
            bound.bind(_path(address))
        except BaseException:
            bound.close()
            raise
        self._socket = bound
        return 1

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        raise grpc.aio.UsageError(f"{address}: a unix socket needs no TLS")

    async def start(self) -> None:
        if self._socket is None:
            raise grpc.aio.UsageError("no port was added")
        loop = asyncio.get_running_loop()
        before = self._server
        self._server = await loop.create_unix_server(lambda: _ServerConnection(self), sock=self._socket)
        if before is not None:
            before.close()

    async def stop(self, grace: float | None) -> None:
        """Take no more connections; calls under way have ``grace`` seconds to end, then they are cancelled."""
        if self._server is not None:
            self._server.close()
        if grace:
            await self.calls.wait(timeout_s=grace)
        for connection in list(self._connections):
            connection.close()
        await self.calls.close()
        self._stopped.set()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            return False
        return True

    async def handler(self, method: str) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The unary handler of ``method`` behind the interceptors, None where there is none."""
        if method not in self._handlers:
            find: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]] = self._find
            for interceptor in reversed(self._interceptors):
                find = _intercepted(interceptor, find)
            found = await find(_CallDetails(method))
            if found is None:
                return None  # not remembered: a peer may ask for names without end
            self._handlers[method] = found
        return self._handlers[method]

    async def _find(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        for service in self._services:
            handler = service.service(details)
            if handler is not None and not handler.request_streaming and not handler.response_streaming:
                return handler
        return None

    def connected(self, connection: _ServerConnection) -> None:
        self._connections.add(connection)

    def disconnected(self, connection: _ServerConnection) -> None:
        self._connections.discard(connection)


def _intercepted(
    interceptor: grpc.aio.ServerInterceptor,
    find: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
) -> Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]:
    async def intercept(details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        # Any: grpc's signature knows no handler that is missing, though its own chain passes None on.
        continuation: Any = find
        return await interceptor.intercept_service(continuation, details)

    return intercept


class _ServerConnection(_Connection):
    """One client; every call is a task of its own, cancelled when the client goes away."""

    def __init__(self, server: UnixServer) -> None:
        super().__init__()
        self._server = server
        self.calls: dict[int, asyncio.Task[None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.disconnected(self)
        for task in self.calls.values():
            task.cancel()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def frame_received(self, frame: bytes) -> None:
        match _FROM_CLIENT.decode(frame):
            case _Request() as request:
                self.calls[request.call_id] = self._server.calls.spawn(self._serve(request), name=request.method)
            case _Cancel(call_id):
                if task_of_call := self.calls.get(call_id):
                    task_of_call.cancel()

    async def _serve(self, request: _Request) -> None:
        try:
            answer: _Frame = _Response(request.call_id, await self._answer(request))
        except _AbortError as error:
            answer = _Failure(request.call_id, error.code.value[0], error.details)
        except Exception as error:
            log.exception("unix_rpc.failed", method=request.method)
            answer = _Failure(request.call_id, grpc.StatusCode.UNKNOWN.value[0], f"Unexpected {type(error)}: {error}")
        finally:
            self.calls.pop(request.call_id, None)
        try:
            self.send(answer)
        except _FrameTooLargeError as error:
            self.send(_Failure(request.call_id, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], str(error)))

    async def _answer(self, request: _Request) -> bytes:
        handler = await self._server.handler(request.method)
        if handler is None:
            raise _AbortError(grpc.StatusCode.UNIMPLEMENTED, f"{request.method}: no such method")
        # Any: of a message's type the handler's own serializers know.
        behaviour: Any = handler
        try:
            message = behaviour.request_deserializer(request.message)
        except Exception as error:
            raise _AbortError(grpc.StatusCode.INTERNAL, f"the request cannot be read: {error}") from error
        data: bytes = behaviour.response_serializer(await behaviour.unary_unary(message, _Context()))
        return data


# ------------------------------------------------------------------ client


class UnixChannel(grpc.aio.Channel):
    """A channel to ``unix:/path`` for stubs of unary RPCs. Connects with the first call, and again when it must.

    A call fails like one of grpc.aio, with ``grpc.aio.AioRpcError``: UNAVAILABLE when there is no server, or when it
    went away before it answered, DEADLINE_EXCEEDED after ``timeout`` seconds. With ``wait_for_ready`` it waits until
    there is a server. Everything happens on the event loop it is used on.
    """

    def __init__(self, target: str) -> None:
        self._path = _path(target)
        self._connection: _ClientConnection | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    # What a stub hands over (serializers, flags) is grpc's own affair, hence Any.

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_kwargs: Any
    ) -> Any:
        async def call(request: Any, *, timeout: float | None = None, wait_for_ready: bool | None = None) -> Any:
            try:
                async with asyncio.timeout(timeout):
                    connection = self._connection
                    if connection is None or connection.lost:
                        connection = await self._connect(wait_for_ready=bool(wait_for_ready))
                    return response_deserializer(await connection.call(method, request_serializer(request)))
            except TimeoutError:
                raise rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None

        return call

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _no_streams(method)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _no_streams(method)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _no_streams(method)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        if self._closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        connected = self._connection is not None and not self._connection.lost
        return grpc.ChannelConnectivity.READY if connected else grpc.ChannelConnectivity.IDLE

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        raise grpc.aio.UsageError("a unix channel does not tell of its state")

    async def channel_ready(self) -> None:
        await self._connect(wait_for_ready=True)

    async def close(self, grace: float | None = None) -> None:
        """Close the connection; calls under way fail with UNAVAILABLE."""
        self._closed = True
        if self._connection is not None:
            self._connection.abort()

    async def __aenter__(self) -> UnixChannel:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _connect(self, *, wait_for_ready: bool) -> _ClientConnection:
        loop = asyncio.get_running_loop()
        async with self._connecting:
            while self._connection is None or self._connection.lost:
                if self._closed:
                    raise grpc.aio.UsageError("Channel is closed.")
                try:
                    _, self._connection = await loop.create_unix_connection(_ClientConnection, self._path)
                except OSError as error:
                    if not wait_for_ready:
                        reason = os.strerror(error.errno) if error.errno else str(error)
                        text = f"failed to connect to {self._path}: {reason}"
                        raise rpc_error(grpc.StatusCode.UNAVAILABLE, text) from error
                    await asyncio.sleep(CONNECT_RETRY_S)
            return self._connection


class _ClientConnection(_Connection):
    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._last_id = 0
        self.lost = False

    async def call(self, method: str, message: bytes) -> bytes:
        """Raises: AioRpcError."""
        self._last_id += 1
        call_id = self._last_id
        try:
            self.send(_Request(call_id, method, message))
        except _FrameTooLargeError as error:
            raise rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from error
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[call_id] = answer
        try:
            return await answer
        except asyncio.CancelledError:
            self.send(_Cancel(call_id))
            raise
        finally:
            self._waiting.pop(call_id, None)

    def frame_received(self, frame: bytes) -> None:
        match _FROM_SERVER.decode(frame):
            case _Response(call_id, message):
                if (waiting := self._waiting.get(call_id)) and not waiting.done():
                    waiting.set_result(message)
            case _Failure(call_id, code, details):
                if (waiting := self._waiting.get(call_id)) and not waiting.done():
                    waiting.set_exception(rpc_error(CODE_BY_NUMBER.get(code, grpc.StatusCode.UNKNOWN), details))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        for waiting in self._waiting.values():
            if not waiting.done():
                text = "the connection broke under the call, it may have been carried out"
                waiting.set_exception(rpc_error(grpc.StatusCode.UNAVAILABLE, text))


def _no_streams(method: str) -> Callable[..., NoReturn]:
    """Stubs make a callable of every method they have; it is the call that cannot be."""

    def call(*_args: object, **_kwargs: object) -> NoReturn:
        raise grpc.aio.UsageError(f"{method}: a unix channel carries unary calls only")

    return call


def rpc_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    """The error that a call of grpc.aio raises, for calls that gRPC does not end itself."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


def _path(address: str) -> str:
    """Raises: UsageError."""
    path = address.removeprefix(_SCHEME)
    if path == address or not Path(path).is_absolute():
        raise grpc.aio.UsageError(f"{address}: want unix:/path")
    return path
