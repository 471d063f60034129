"""/containers and /exec: what streams to or from a process: logs, attach, exec, terminal sizes.

Source: moby ``daemon/server/router/container`` (``container_routes.go``, ``exec.go``), ``daemon/attach.go``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

import msgspec
import structlog
from aiohttp import web

from api.engine_routes.context import EngineContext
from api.errors import BadRequestError, is_expected, message_of
from api.filters import timestamp_ns
from api.lenient import convert
from api.requests import flag, integer, json_body, json_response
from api.streams import (
    MULTIPLEXED_STREAM,
    RAW_STREAM,
    DetachKeys,
    HijackedStream,
    frame,
    hijack,
    parse_detach_keys,
    start_stream,
)
from api.versions import APIVersion, version_of
from base.tasks import cancel_and_wait
from base.times import rfc3339
from runtime.errors import AttachRefusedError, ConflictError, EngineError, ExecHasRunError
from runtime.types import ContainerJSON, ExecConfig, ExecInspect, LogLine, ProcessStream

log = structlog.get_logger(__name__)

MULTIPLEXED_SINCE = APIVersion(1, 42)
WRITE_BYTES = 32 * 1024


class ContainerIORoutes:
    """Handlers that stream."""

    def __init__(self, context: EngineContext) -> None:
        self._engine, self._operations = context.engine, context.operations

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/containers/{id}/logs", self.logs, allow_head=False),
            web.post("/containers/{id}/attach", self.attach),
            web.post("/containers/{id}/resize", self.resize),
            web.post("/containers/{id}/exec", self.exec_create),
            web.post("/exec/{id}/start", self.exec_start),
            web.post("/exec/{id}/resize", self.exec_resize),
            web.get("/exec/{id}/json", self.exec_inspect),
        ]

    # ------------------------------------------------------------ logs

    async def logs(self, request: web.Request) -> web.StreamResponse:
        stdout, stderr = flag(request, "stdout"), flag(request, "stderr")
        if not (stdout or stderr):
            raise BadRequestError("Bad parameters: you must choose at least one stream")
        container = self._engine.inspect(request.match_info["id"])
        follow = flag(request, "follow")
        lines = self._engine.logs(
            container.Id,
            stdout=stdout,
            stderr=stderr,
            follow=follow,
            since_ns=timestamp_ns(request.query.get("since", ""), "since"),
            until_ns=timestamp_ns(request.query.get("until", ""), "until"),
            tail=_tail(request.query.get("tail", "")),
        )
        multiplexed = not container.Config.Tty
        encoder = LineEncoder(
            multiplexed=multiplexed, timestamps=flag(request, "timestamps"), details=flag(request, "details")
        )
        reader = LineReader(lines)
        try:
            await reader.check(wait=not follow)
            response = await start_stream(request, _log_type(request, multiplexed=multiplexed))
            pending = bytearray()
            async for line in reader:
                pending += encoder.encode(line)
                if follow or len(pending) >= WRITE_BYTES:
                    await response.write(bytes(pending))
                    pending.clear()
            if pending:
                await response.write(bytes(pending))
            await response.write_eof()
            return response
        finally:
            await reader.close()

    # ------------------------------------------------------------ attach

    async def attach(self, request: web.Request) -> web.StreamResponse:
        stdin, stdout, stderr = (flag(request, name) for name in ("stdin", "stdout", "stderr"))
        keys = _detach_keys(request)
        container = self._engine.inspect(request.match_info["id"])
        tty, multiplexed = container.Config.Tty, not container.Config.Tty
        await request.read()
        if not flag(request, "stream"):
            return await self._replay(request, container, stdout=stdout, stderr=stderr, multiplexed=multiplexed)
        stdin = stdin and container.Config.OpenStdin
        stream = await self._engine.attach(
            container.Id, stdin=stdin, stdout=stdout, stderr=stderr, logs=flag(request, "logs")
        )
        async with stream:
            client = await hijack(request, multiplexed=multiplexed and version_of(request) >= MULTIPLEXED_SINCE)
            pump = Pump(
                client,
                stream,
                tty=tty,
                stdin=stdin,
                close_stdin=container.Config.StdinOnce and not tty,
                keys=keys if tty else b"",
            )
            if await pump.run():
                self._engine.detached(container.Id)
        return client

    async def _replay(
        self, request: web.Request, container: ContainerJSON, *, stdout: bool, stderr: bool, multiplexed: bool
    ) -> web.StreamResponse:
        """``logs=1`` without ``stream=1``: what was written so far, then the end."""
        if container.State.Status in AttachRefusedError.HINTS:
            raise AttachRefusedError(container_id=container.Id, status=container.State.Status)
        client = await hijack(request, multiplexed=multiplexed and version_of(request) >= MULTIPLEXED_SINCE)
        with _after_head("attach.failed"):
            if flag(request, "logs") and (stdout or stderr):
                async for line in self._engine.logs(container.Id, stdout=stdout, stderr=stderr):
                    await client.send(frame(line.stream, line.data) if multiplexed else line.data)
            await client.finish()
        return client

    async def resize(self, request: web.Request) -> web.Response:
        await self._engine.resize(request.match_info["id"], height=integer(request, "h"), width=integer(request, "w"))
        return web.Response()

    # ------------------------------------------------------------ exec

    async def exec_create(self, request: web.Request) -> web.Response:
        config = convert(await json_body(request), ExecConfig)
        if config.DetachKeys:
            _parsed_keys(config.DetachKeys)
        exec_id = await self._operations.run_to_end(
            self._engine.exec_create(request.match_info["id"], config), name="exec.create"
        )
        return json_response({"Id": exec_id}, status=201)

    async def exec_start(self, request: web.Request) -> web.StreamResponse:
        """The head goes out before the process starts, as in dockerd.

        docker-py loses output that arrives together with the head; so a refusal to start is told in the stream, and
        the exit code of the exec says 126 or 127.
        """
        body = convert(await json_body(request), ExecStartRequest)
        exec_id = request.match_info["id"]
        facts = self._engine.exec_inspect(exec_id)
        if body.Detach:
            await self._operations.run_to_end(self._engine.exec_start(exec_id, detach=True), name="exec.start")
            return web.Response()
        if facts.Running or facts.ExitCode is not None:
            raise ExecHasRunError(exec_id)
        # Whether output is framed is for this request to say, not for the exec's terminal (moby, postContainerExecStart).
        tty = body.Tty
        client = await hijack(request, multiplexed=not tty and version_of(request) >= MULTIPLEXED_SINCE)
        with _after_head("exec.failed"):
            try:
                stream = await self._operations.run_to_end(self._engine.exec_start(exec_id), name="exec.start")
            except Exception as error:
                text = f"{message_of(error)}\r\n".encode()
                await client.send(text if tty else frame("stdout", text))
                await client.finish()
                if not is_expected(error):
                    raise
                return client
            if stream is not None:
                await self._exec_converse(client, stream, facts, body)
        return client

    async def _exec_converse(
        self, client: HijackedStream, stream: ProcessStream, facts: ExecInspect, body: ExecStartRequest
    ) -> None:
        tty, size = facts.ProcessConfig.tty, body.ConsoleSize
        async with stream:
            if tty and size is not None and len(size) == 2:
                with contextlib.suppress(EngineError):  # ended already: no terminal to size
                    await self._engine.exec_resize(facts.ID, height=size[0], width=size[1])
            keys = _parsed_keys(facts.DetachKeys or "") if tty else b""
            if await Pump(client, stream, tty=body.Tty, stdin=facts.OpenStdin, keys=keys).run():
                self._engine.exec_detached(facts.ID)

    async def exec_resize(self, request: web.Request) -> web.Response:
        await self._engine.exec_resize(
            request.match_info["id"], height=integer(request, "h"), width=integer(request, "w")
        )
        return web.Response()

    async def exec_inspect(self, request: web.Request) -> web.Response:
        return json_response(self._engine.exec_inspect(request.match_info["id"]))


class ExecStartRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /exec/{id}/start``; ``ConsoleSize`` is [height, width]."""

    Detach: bool = False
    Tty: bool = False
    ConsoleSize: list[int] | None = None


class Pump:
    """Copies between a client's connection and a process until one of them ends, or the client detaches.

    Args:
        tty: output is passed raw, not framed.
        stdin: pass the client's input on; it is read and dropped otherwise.
        close_stdin: the end of the client's input is the end of the process's (``StdinOnce``; always for exec).
        keys: the sequence that detaches; empty for none.
    """

    def __init__(
        self,
        client: HijackedStream,
        process: ProcessStream,
        *,
        tty: bool,
        stdin: bool,
        close_stdin: bool = True,
        keys: bytes = b"",
    ) -> None:
        self._client, self._process = client, process
        self._tty, self._stdin, self._close_stdin = tty, stdin, close_stdin
        self._keys = DetachKeys(keys if stdin else b"")

    async def run(self) -> bool:
        """Copy to the end and close; true when the client detached by its keys.

        The head is out, so an error can only be logged and shown by the end of the stream.
        """
        detached = False
        with _after_head("attach.failed"):
            detached = await self._copy()
            await self._client.finish()
        return detached

    async def _copy(self) -> bool:
        loop = asyncio.get_running_loop()
        output = loop.create_task(self._copy_output(), name="attach.output")
        stdin = loop.create_task(self._copy_input(), name="attach.input")
        try:
            await asyncio.wait((output, stdin), return_when=asyncio.FIRST_COMPLETED)
            if stdin.done() and stdin.result():  # raises when the client is gone
                return True
            await output  # the end of the input alone is no end: the process may still answer
            return False
        finally:
            await cancel_and_wait(output, stdin)

    async def _copy_output(self) -> None:
        while (piece := await self._process.read()) is not None:
            stream, data = piece
            await self._client.send(data if self._tty else frame(stream, data))

    async def _copy_input(self) -> bool:
        """Pass the client's input on until it ends; true on the detach keys."""
        while data := await self._client.read():
            if not self._stdin:
                continue
            data, detached = self._keys.feed(data)
            try:
                if data:
                    await self._process.write(data)
            except ConflictError:
                return False  # the process ended; its output says the rest
            if detached:
                return True
        if self._client.lost:
            raise ConnectionResetError("the client closed the connection")
        if self._stdin and self._close_stdin:
            await self._process.close_stdin()
        return False


class LineReader:
    """Reads log lines with the first one asked for early, so that a refusal still gets its HTTP status."""

    def __init__(self, lines: AsyncIterator[LogLine]) -> None:
        self._lines = lines
        self._first: asyncio.Task[LogLine | None] = asyncio.get_running_loop().create_task(
            self._next(), name="logs.first"
        )

    async def _next(self) -> LogLine | None:
        return await anext(self._lines, None)

    async def check(self, *, wait: bool) -> None:
        """Raise what reading the first line raised; without ``wait`` only what it raised at once.

        A follower of a silent container must get the head of the answer before there is a line.
        """
        await asyncio.sleep(0)
        if wait or self._first.done():
            await self._first

    async def __aiter__(self) -> AsyncIterator[LogLine]:
        line = await self._first
        while line is not None:
            yield line
            line = await self._next()

    async def close(self) -> None:
        """Stop reading and let the engine close its files."""
        await cancel_and_wait(self._first)
        if isinstance(self._lines, AsyncGenerator):
            await self._lines.aclose()


class LineEncoder:
    """Log lines as the client wants them; with ``timestamps`` only the first piece of a split line gets one."""

    def __init__(self, *, multiplexed: bool, timestamps: bool, details: bool) -> None:
        self._multiplexed, self._timestamps, self._details = multiplexed, timestamps, details
        self._open: set[str] = set()

    def encode(self, line: LogLine) -> bytes:
        """The bytes for one line or piece of a line."""
        data = line.data
        if line.stream not in self._open:
            if self._details:
                data = b" " + data  # no log options are shown: an empty list of attributes, as in dockerd
            if self._timestamps:
                data = rfc3339(line.timestamp_ns).encode("ascii") + b" " + data
        if line.partial:
            self._open.add(line.stream)
        else:
            self._open.discard(line.stream)
        return frame(line.stream, data) if self._multiplexed else data


@contextlib.contextmanager
def _after_head(event: str) -> Iterator[None]:
    """Once the connection is taken over no error can be answered: log it; a client that left is no error."""
    try:
        yield
    except ConnectionError:
        log.debug("client.left")
    except Exception:
        log.exception(event)


def _log_type(request: web.Request, *, multiplexed: bool) -> str:
    return MULTIPLEXED_STREAM if multiplexed and version_of(request) >= MULTIPLEXED_SINCE else RAW_STREAM


def _tail(text: str) -> int:
    """``tail``: lines from the end, -1 for all; like dockerd, what is no number means all."""
    if not text or text == "all":
        return -1
    try:
        return max(int(text), -1)
    except ValueError:
        return -1


def _detach_keys(request: web.Request) -> bytes:
    return _parsed_keys(request.query.get("detachKeys", ""))


def _parsed_keys(text: str) -> bytes:
    try:
        return parse_detach_keys(text)
    except ValueError as error:
        raise BadRequestError(f"Invalid detach keys ({text}) provided: {error}") from None
