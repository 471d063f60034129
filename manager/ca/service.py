"""The two ways in to the certificate server: gRPC for members, the join protocol for those who want to be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
import structlog

from manager.authorization import caller
from manager.ca.server import CertificateRefusedError, CertificateServer
from pki.errors import FrameError
from pki.join import JoinServerProtocol, encode_frame
from proto.ca_pb2 import (
    IssueNodeCertificateRequest,
    IssueNodeCertificateResponse,
    JoinError,
    JoinRequest,
    JoinResponse,
    RenewCertificateRequest,
    RenewCertificateResponse,
)
from proto.ca_pb2_grpc import NodeCAServicer

log = structlog.get_logger(__name__)

JOIN_CONNECTION_TIMEOUT_S = 30.0
"""From the end of the handshake: a peer that takes longer, however busily, is cut off."""

REQUEST_TIMEOUT_S = 10.0
"""For the next complete request to arrive: against peers that send a byte a second."""

DECISION_TIMEOUT_S = 15.0
"""For the cluster to take a node in; without a quorum it does not."""

JOINS_MAX = 64
"""Decisions under way at once; more wait their turn within their time."""

_READ_SIZE_BYTES = 16 * 1024

_Answer = TypeVar("_Answer")


def status_number(code: grpc.StatusCode) -> int:
    """The canonical number of a gRPC status code."""
    number, _ = code.value
    return int(number)


class NodeCAService(NodeCAServicer):
    """gRPC service NodeCA; who may call what is the interceptor's affair, who the caller is as well."""

    def __init__(self, server: CertificateServer) -> None:
        self._server = server

    async def IssueNodeCertificate(  # noqa: N802 - the name is the RPC's
        self, request: IssueNodeCertificateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> IssueNodeCertificateResponse:
        return await _answer(context, self._server.issue(request, forwarded=True))

    async def RenewCertificate(  # noqa: N802 - the name is the RPC's
        self, request: RenewCertificateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> RenewCertificateResponse:
        return await _answer(context, self._server.renew(caller(), request))


async def _answer(context: grpc.aio.ServicerContext[Any, Any], answer: Awaitable[_Answer]) -> _Answer:
    try:
        return await answer
    except CertificateRefusedError as error:
        await context.abort(error.code, str(error))


class JoinService:
    """Serves connections with ALPN ``swarm-join/1``; the certificate server itself runs on another loop.

    A peer here is anybody. What it can cost is bounded: bytes by the frames' size, time by the three time-outs above,
    decisions at once by ``JOINS_MAX``, connections by the listener.
    """

    def __init__(self, server: CertificateServer, server_loop: asyncio.AbstractEventLoop) -> None:
        """
        Args:
            server: the certificate server.
            server_loop: the loop it runs on.
        """
        self._server, self._server_loop = server, server_loop
        self._free = asyncio.Semaphore(JOINS_MAX)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer what one connection asks, until it is done. The listener closes the connection.

        Raises:
            FrameError: the peer broke the protocol; it was told so.
            TimeoutError: the peer was too slow.
            OSError: the connection broke.
        """
        protocol = JoinServerProtocol()
        async with asyncio.timeout(JOIN_CONNECTION_TIMEOUT_S):
            while not protocol.done:
                try:
                    async with asyncio.timeout(REQUEST_TIMEOUT_S):
                        requests = await _receive(reader, protocol)
                except FrameError as error:
                    await _send(writer, _error(grpc.StatusCode.INVALID_ARGUMENT, str(error)))
                    raise
                if not requests:
                    return
                for request in requests:
                    await _send(writer, await self._answer(request))

    async def _answer(self, request: JoinRequest) -> JoinResponse:
        try:
            async with asyncio.timeout(DECISION_TIMEOUT_S), self._free:
                return await self._on_server_loop(lambda: self._decide(request))
        except CertificateRefusedError as error:
            return _error(error.code, str(error))
        except TimeoutError:
            return _error(grpc.StatusCode.UNAVAILABLE, "the cluster did not decide in time: no leader, or no quorum")

    async def _decide(self, request: JoinRequest) -> JoinResponse:
        match request.WhichOneof("request"):
            case "get_root_ca_certificate":
                return JoinResponse(get_root_ca_certificate=self._server.root_certificate())
            case "issue_node_certificate":
                answer = await self._server.issue(request.issue_node_certificate)
                return JoinResponse(issue_node_certificate=answer)
            case _:
                raise CertificateRefusedError(grpc.StatusCode.INVALID_ARGUMENT, "join protocol: empty request")

    async def _on_server_loop(self, work: Callable[[], Awaitable[JoinResponse]]) -> JoinResponse:
        async def run() -> JoinResponse:
            return await work()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), self._server_loop))


async def _receive(reader: asyncio.StreamReader, protocol: JoinServerProtocol) -> list[JoinRequest]:
    """The next requests, empty at the end of the stream."""
    while True:
        data = await reader.read(_READ_SIZE_BYTES)
        if not data:
            protocol.receive_eof()
            return []
        if requests := protocol.receive(data):
            return requests


async def _send(writer: asyncio.StreamWriter, response: JoinResponse) -> None:
    writer.write(encode_frame(response))
    await writer.drain()


def _error(code: grpc.StatusCode, message: str) -> JoinResponse:
    return JoinResponse(error=JoinError(code=status_number(code), message=message))
