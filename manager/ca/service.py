"""The two ways in to the certificate server: gRPC for members, the join protocol for those who want to be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
import structlog

from base.rate_limit import RateLimit
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

JOINS_BURST, JOINS_RATE_S = 200, 2.0
"""Requests of one address to join: so many at once, then so many a second. A hundred hosts behind one NAT fit twice."""

RENEWALS_BURST, RENEWALS_RATE_S = 60, 1.0
"""The same for a node's renewals; a node that waits for its promotion asks more often than others."""

_READ_SIZE_BYTES = 16 * 1024

_Answer = TypeVar("_Answer")
_Context = grpc.aio.ServicerContext[Any, Any]  # Any: of the messages of whatever RPC


def status_number(code: grpc.StatusCode) -> int:
    """The canonical number of a gRPC status code."""
    number, _ = code.value
    return int(number)


class NodeCAService(NodeCAServicer):
    """gRPC service NodeCA; who may call what is the interceptor's affair, who the caller is as well."""

    def __init__(self, server: CertificateServer, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            server: the certificate server.
            monotonic: seconds.
        """
        self._server, self._monotonic = server, monotonic
        self._renewals = RateLimit(RENEWALS_BURST, RENEWALS_RATE_S)

    async def IssueNodeCertificate(  # noqa: N802 - the name is the RPC's
        self, request: IssueNodeCertificateRequest, context: _Context
    ) -> IssueNodeCertificateResponse:
        return await _answer(context, self._server.issue(request, forwarded=True))

    async def RenewCertificate(  # noqa: N802 - the name is the RPC's
        self, request: RenewCertificateRequest, context: _Context
    ) -> RenewCertificateResponse:
        node = caller()
        if not self._renewals.take(node.node_id, self._monotonic()):
            message = f"node {node.node_id} renews its certificate too often: try again later"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        return await _answer(context, self._server.renew(node, request))


async def _answer(context: _Context, answer: Awaitable[_Answer]) -> _Answer:
    try:
        return await answer
    except CertificateRefusedError as error:
        await context.abort(error.code, str(error))


class JoinService:
    """Serves connections with ALPN ``swarm-join/1``; the certificate server itself runs on another loop.

    A peer here is anybody. What it can cost is bounded: bytes by the frames' size, time by the three time-outs above,
    decisions at once by ``JOINS_MAX``, by address and time by ``JOINS_RATE_S``, connections by the listener.
    """

    def __init__(self, server: CertificateServer, server_loop: asyncio.AbstractEventLoop) -> None:
        """
        Args:
            server: the certificate server.
            server_loop: the loop it runs on.
        """
        self._server, self._server_loop = server, server_loop
        self._free = asyncio.Semaphore(JOINS_MAX)
        self._joins = RateLimit(JOINS_BURST, JOINS_RATE_S)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: str) -> None:
        """Answer what one connection asks, until it is done. The listener closes the connection.

        Args:
            source: what counts as one address (``manager.listener.source_network``).

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
                    await _send(writer, await self._answer(request, source))

    async def _answer(self, request: JoinRequest, source: str) -> JoinResponse:
        if request.HasField(
            "get_root_ca_certificate"
        ):  # answered here: what strangers ask costs the other loop nothing
            return JoinResponse(get_root_ca_certificate=self._server.root_certificate())
        now_s = asyncio.get_running_loop().time()
        if not self._joins.take(source, now_s):
            message = f"too many nodes join from {source}: try again in a minute"
            return _error(grpc.StatusCode.UNAVAILABLE, message)
        try:
            async with asyncio.timeout(DECISION_TIMEOUT_S), self._free:
                return await self._on_server_loop(lambda: self._decide(request))
        except CertificateRefusedError as error:
            return _error(error.code, str(error))
        except TimeoutError:
            return _error(grpc.StatusCode.UNAVAILABLE, "the cluster did not decide in time: no leader, or no quorum")

    async def _decide(self, request: JoinRequest) -> JoinResponse:
        answer = await self._server.issue(request.issue_node_certificate)
        return JoinResponse(issue_node_certificate=answer)

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
