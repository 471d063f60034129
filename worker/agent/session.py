"""One session with one manager: register, beat, report, take assignments. Ends by an error or by cancellation.

Three things go on at once and end together: the manager's messages, the agent's, and the assignment stream. Each message
of the agent is a heartbeat; statuses and a description that changed go with it. A report that the manager does not
acknowledge is no trouble, however long: it is loaded, and what comes meanwhile makes the next report. Trouble in any of
the three ends the session; the loop in ``worker.agent.agent`` makes the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import grpc
import grpc.aio
import structlog

from base import connections
from base.connections import KernelConnection, Peer
from base.tasks import unless
from proto.dispatcher_pb2 import (
    AssignmentsMessage,
    AssignmentsRequest,
    SessionMessage,
    SessionRequest,
    StatusReport,
)
from proto.dispatcher_pb2_grpc import DispatcherStub
from proto.objects_pb2 import NodeDescription
from worker.agent.assignments import AssignmentGapError
from worker.agent.reporter import StatusReporter

if TYPE_CHECKING:
    from proto.dispatcher_pb2_grpc import DispatcherAsyncStub

    _Call = grpc.aio.StreamStreamCall[SessionRequest, SessionMessage]

log = structlog.get_logger(__name__)

LEADER_METADATA_KEY = "swarm-leader-addr"
RPC_TIMEOUT_S = 5.0
"""For a manager to take the connection (A3.05)."""

REGISTRATION_TIMEOUT_S = 20.0
"""Then for it to let us in, for which its log has to take the registration: one that is loaded is not left for another."""

WRITE_S = 15.0
"""So long, and three periods, a message may take to get out. gRPC's own keep-alive ends a call as soon; but where the process
could start no threads for a while, gRPC was seen to stand still for good, without a word."""

DESCRIPTION_PERIOD_S = 20.0
GOODBYE_TIMEOUT_S = 1.0
SLOW_DOWN_S = 1.0
"""After the manager said that we ask too much of it: the session stays, what was asked is asked again."""

HEARTBEAT_PERIOD_S_MIN = 0.05

QUIET_S = 3.0
"""A manager whose kernel acknowledged nothing for so long has lost its power or its network; it is asked after each
idle second, so two packets in a row were lost. Another one leads by now. gRPC would notice after up to 15 s."""

LISTEN_PERIOD_S = 0.5


class SessionError(Exception):
    """The session is over, or there was none.

    ``leader_addr`` is the leader that the manager named, "" if it named none.
    """

    def __init__(self, reason: str, *, leader_addr: str = "") -> None:
        super().__init__(reason)
        self.leader_addr = leader_addr


class SessionOwner(Protocol):
    """What a session hands up; called on the loop, quick."""

    def on_session_message(self, message: SessionMessage) -> None:
        """Managers, node object, root certificates: whatever is set."""

    def on_assignments(self, message: AssignmentsMessage) -> None:
        """Raises AssignmentGapError: the stream is opened anew."""

    def on_new_stream(self) -> None:
        """The next assignments begin with a COMPLETE set."""


class Session:
    """Use once: ``run``."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        first: SessionRequest,
        describe: Callable[[], NodeDescription],
        reporter: StatusReporter,
        owner: SessionOwner,
        peer: Peer | None = None,
    ) -> None:
        """
        Args:
            channel: to the manager; stays the caller's.
            peer: the manager's address, where that is a literal one.
            first: registers: description, availability, address, boot nonce.
            describe: the node as it is now.
            reporter: where statuses come from.
            owner: see ``SessionOwner``.
        """
        self._stub: DispatcherAsyncStub = DispatcherStub(channel)
        self._first, self._describe = first, describe
        self._reporter, self._owner, self._peer = reporter, owner, peer
        self._session_id = ""
        self._period_s = 5.0
        self._beat_now = False
        self._wake = reporter.wake
        self._reports = 0
        self._stopping = False

    async def run(self, on_open: Callable[[], None], stop: asyncio.Event) -> None:
        """Keep the session until it breaks, or until ``stop`` is set: then it is ended in order.

        Args:
            on_open: called when the manager has let us in.

        Raises:
            SessionError: always, unless it was stopped.
        """
        call = self._stub.Session()
        try:
            if not await unless(stop, self._open(call)):
                return
            on_open()
            broken: SessionError | None = None
            try:
                await self._serve(call, stop)
            except* SessionError as errors:
                broken = _first(errors)
            if broken is not None:
                raise broken
        finally:
            self._reporter.put_back()
            call.cancel()

    async def _serve(self, call: _Call, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read(call), name="session messages")
            talking = group.create_task(self._talk(call), name="session heartbeats")
            others = [
                group.create_task(self._assignments(), name="session assignments"),
                group.create_task(self._listen(), name="session connection"),
            ]
            await stop.wait()
            # An ended stream, not a broken one: the manager need not think that the host died. Cancelling a read or
            # a write would break it, so these two end by themselves.
            self._stopping = True
            for task in others:
                task.cancel()
            self._wake.set()
            await asyncio.wait([reading, talking], timeout=GOODBYE_TIMEOUT_S)
            reading.cancel()
            talking.cancel()

    async def _open(self, call: _Call) -> bool:
        try:
            async with asyncio.timeout(RPC_TIMEOUT_S) as limit:
                await call.write(self._first)
                limit.reschedule(asyncio.get_running_loop().time() + REGISTRATION_TIMEOUT_S)
                message = await call.read()
        except TimeoutError:
            raise SessionError("no answer in time") from None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await _session_error(call, error) from error
        if not isinstance(message, SessionMessage):
            raise await _session_error(call, None)
        if not message.session_id:
            raise SessionError("the manager's first message has no session ID")
        self._session_id = message.session_id
        self._take(message)
        return True

    async def _read(self, call: _Call) -> None:
        while True:
            try:
                message = await call.read()
            except grpc.aio.AioRpcError as error:
                raise await _session_error(call, error) from error
            if not isinstance(message, SessionMessage):  # grpc.aio.EOF
                if self._stopping:
                    return
                raise await _session_error(call, None)
            self._take(message)

    def _take(self, message: SessionMessage) -> None:
        if message.heartbeat_period_ns > 0:  # the manager wants to hear from us
            self._period_s = max(HEARTBEAT_PERIOD_S_MIN, message.heartbeat_period_ns / 1e9)
            self._beat_now = True
            self._wake.set()
        if message.reported:
            if message.reported != self._reports:
                raise SessionError(f"report {message.reported} was acknowledged, the last one was {self._reports}")
            self._reporter.acknowledge()
        self._owner.on_session_message(message)

    async def _talk(self, call: _Call) -> None:
        """Say what there is to say, and that we live, until told to stop: the only one who writes to the stream."""
        loop = asyncio.get_running_loop()
        description = self._first.description
        beat_s, describe_s = loop.time() + self._period_s, loop.time() + DESCRIPTION_PERIOD_S
        self._wake.set()
        while True:
            due_s = self._reporter.next_due_s()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(beat_s if due_s is None else min(beat_s, due_s)):
                    await self._wake.wait()
            self._wake.clear()
            if self._stopping:
                await call.done_writing()
                return
            request = self._next_report()
            if not request.HasField("report") and not self._beat_now and loop.time() < beat_s:
                continue
            if loop.time() >= describe_s:
                describe_s = loop.time() + DESCRIPTION_PERIOD_S
                newest = self._describe()
                if newest != description:
                    description = newest
                    request.description.CopyFrom(newest)
            self._beat_now = False
            beat_s = loop.time() + self._period_s
            try:
                async with asyncio.timeout(max(WRITE_S, 3 * self._period_s)):
                    await call.write(request)
            except TimeoutError:
                raise SessionError("what the node had to say did not get out in time") from None
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                raise await _session_error(call, error) from error

    def _next_report(self) -> SessionRequest:
        """A message with the statuses that wait, unless a report is under way."""
        updates = self._reporter.take()
        if not updates:
            return SessionRequest()
        self._reports += 1
        return SessionRequest(report=StatusReport(number=self._reports, updates=updates))

    async def _assignments(self) -> None:
        while True:
            self._owner.on_new_stream()
            call = self._stub.Assignments(AssignmentsRequest(session_id=self._session_id))
            try:
                async for message in call:
                    self._owner.on_assignments(message)
            except AssignmentGapError as error:
                log.warning("assignments.gap", reason=str(error))
                await asyncio.sleep(0.1)  # a manager that never makes sense shall not keep us busy
                continue
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise await _session_error(call, error) from error
                await _slow_down(error)
                continue
            finally:
                call.cancel()
            raise SessionError("the manager ended the assignments")

    async def _listen(self) -> None:
        """End a session whose other end says nothing: what a dead host would never do itself."""
        loop = asyncio.get_running_loop()
        known: list[KernelConnection] = []
        found_s = 0.0
        while self._peer is not None:
            # gRPC does not tell which of the connections with that manager is the session's: one that is draining may
            # have lost its way for good. The host is silent when all of them are.
            silence_s = min(
                (heard for connection in known if (heard := connection.silence_s()) is not None), default=None
            )
            if silence_s is None or silence_s > QUIET_S:
                if (found := connections.find_each(self._peer)) != known:
                    known, found_s = found, loop.time()
                elif silence_s is not None and loop.time() - found_s > QUIET_S:  # before, nobody was asked
                    raise SessionError(f"the manager's host was silent for {QUIET_S:.0f} s")
            await asyncio.sleep(LISTEN_PERIOD_S)


async def _slow_down(error: grpc.aio.AioRpcError) -> None:
    log.warning("manager.overloaded", reason=error.details(), pause_s=SLOW_DOWN_S)
    await asyncio.sleep(SLOW_DOWN_S)


def _first(group: BaseExceptionGroup[SessionError]) -> SessionError:
    """One of them; when a connection breaks every part of a session says so."""
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise ValueError("an exception group has an exception")


async def _session_error(call: grpc.aio.Call, error: BaseException | None) -> SessionError:
    """What a failed call says, in one line."""
    if isinstance(error, grpc.aio.AioRpcError):
        code, details, metadata = error.code(), error.details(), error.trailing_metadata()
    else:
        try:
            async with asyncio.timeout(RPC_TIMEOUT_S):
                code, details, metadata = await call.code(), await call.details(), await call.trailing_metadata()
        except TimeoutError:
            return SessionError("the stream broke")
    leader_addr = ""
    for key, value in metadata or ():
        if key == LEADER_METADATA_KEY and isinstance(value, str):
            leader_addr = value
    return SessionError(f"{code.name}: {details or 'no reason given'}", leader_addr=leader_addr)
