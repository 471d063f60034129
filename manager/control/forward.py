"""Calls that reach a manager which does not lead are passed on to the one that does (features A3.06, D02, D04).

A call is tried again, on whoever leads then, only when it is sure that it did nothing: the leader said that it is none
any more, or no connection to it came about. A connection that broke after the request went out may have carried it;
a read is tried again, a write is answered with the error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import grpc.aio
import structlog
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from manager.consensus.port import Consensus, LeaderState, NotLeaderError
from manager.constants import REQUEST_TIMEOUT_S
from manager.control.errors import NO_LEADER_TEXT, NOT_LEADER_TEXT, ControlError
from manager.control.rpc import FORWARDED, SERVICE, passed_on
from manager.control.service import ControlService
from pki.grpc_credentials import REQUEST_SIZE_BYTES_MAX, answer_of

log = structlog.get_logger(__name__)

NO_LEADER_TIMEOUT_S = 10.0
"""How long a call waits for a leader to be elected: ten ticks of SwarmKit's clock."""

RETRY_DELAY_S = 0.05
"""Between two tries at a leader that is known but not to be had; what changes meanwhile wakes the call sooner."""

LEADER_CHANGED_TEXT = (
    "rpc error: code = Unavailable desc = the leader changed while the call was under way, it may have been carried out"
)

LOCAL_METHODS = frozenset({"GetManagerInfo"})
"""Answered by every manager from what it knows."""

_METHODS = {method.name: method for method in SERVICE.methods}
_NOT_SENT = ("failed to connect", "connections to all backends failing", "name resolution", "dns resolution")


class NoLeaderError(ControlError):
    """No manager leads, or none that leads can be reached (503)."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self) -> None:
        super().__init__(NO_LEADER_TEXT)


class RequestTooLargeError(ControlError):
    """More than a manager takes in from another: refused alike where the leader was asked itself."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class SupersededError(ControlError):
    """Nobody leads here and nobody will: a new cluster was forced from this one (503)."""

    code = grpc.StatusCode.UNAVAILABLE


class ForwardedError(ControlError):
    """The leader's own refusal, passed on word by word."""

    bare = True

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class LeaderForwarder:
    """Answers the control API on any manager: itself when it leads, through the leader when it does not."""

    def __init__(
        self,
        service: ControlService,
        consensus: Consensus,
        leader_channel: Callable[[], grpc.aio.Channel | None],
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
        no_leader_timeout_s: float = NO_LEADER_TIMEOUT_S,
    ) -> None:
        """
        Args:
            service: this manager's own.
            consensus: who leads.
            leader_channel: a channel to the present leader's gRPC port over mTLS, owned by the caller and made with
                ``rpc.CHANNEL_OPTIONS``; None when no leader, or not its address, is known.
            timeout_s: for a call as a whole.
            no_leader_timeout_s: for a leader to appear, within ``timeout_s``.
        """
        self._service, self._consensus, self._leader_channel = service, consensus, leader_channel
        self._timeout_s, self._no_leader_timeout_s = timeout_s, no_leader_timeout_s
        self._changed = asyncio.Event()
        consensus.on_leader_change(self._leader_changed)

    async def call(self, method: str, request: Message) -> Message:
        """Answer one RPC.

        Raises:
            RequestTooLargeError, NoLeaderError, SupersededError, ForwardedError, TimeoutError; what ``ControlService.call`` raises: NotLeaderError only when
                another manager had passed the call on.
        """
        if request.ByteSize() > REQUEST_SIZE_BYTES_MAX:
            raise RequestTooLargeError(f"request of {request.ByteSize()} bytes, at most {REQUEST_SIZE_BYTES_MAX}")
        if method in LOCAL_METHODS or passed_on.get():
            return await self._service.call(method, request)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        leaderless_until = loop.time() + min(self._no_leader_timeout_s, self._timeout_s)
        async with asyncio.timeout_at(deadline):
            while True:
                changed = self._changed
                answer = await self._try(method, request, deadline)
                if answer is not None:
                    return answer
                if self._consensus.superseded:
                    raise SupersededError(self._consensus.superseded)
                if loop.time() >= leaderless_until:
                    raise NoLeaderError
                await self._wait(changed)

    async def _try(self, method: str, request: Message, deadline: float) -> Message | None:
        """The answer, or None when nothing was done and another try may help."""
        if self._consensus.leader.is_leader:
            try:
                return await self._service.call(method, request)
            except NotLeaderError:
                return None
        channel = self._leader_channel()
        if channel is None:
            return None
        timeout_s = max(deadline - asyncio.get_running_loop().time(), 0.001)
        try:
            return await _invoke(channel, method, request, timeout_s)
        except grpc.aio.UsageError:
            return None  # the channel was closed before the call began: there is a new leader
        except grpc.aio.AioRpcError as error:
            if _may_retry(method, error):
                log.debug("control_call.retried", method=method, reason=error.details())
                return None
            raise ForwardedError(error.code(), error.details() or "") from error

    async def _wait(self, changed: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(RETRY_DELAY_S):
                await changed.wait()
        except TimeoutError:
            return

    def _leader_changed(self, leader: LeaderState) -> None:
        """Wake every call that waits; later ones wait for the next change."""
        self._changed.set()
        self._changed = asyncio.Event()


async def _invoke(channel: grpc.aio.Channel, method: str, request: Message, timeout_s: float) -> Message:
    """Call the leader. Raises: AioRpcError, also when the channel is closed meanwhile; UsageError when it was."""
    invoke = channel.unary_unary(
        f"/{SERVICE.full_name}/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=GetMessageClass(_METHODS[method].output_type).FromString,
    )
    call = invoke(request, timeout=timeout_s, metadata=((FORWARDED, "1"),))
    answer: Message = await answer_of(call, if_closed=LEADER_CHANGED_TEXT)
    return answer


def _may_retry(method: str, error: grpc.aio.AioRpcError) -> bool:
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return False
    details = (error.details() or "").lower()
    if details == NOT_LEADER_TEXT or any(text in details for text in _NOT_SENT):
        return True
    return method.startswith(("Get", "List")) and NO_LEADER_TEXT.lower() not in details
