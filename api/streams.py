"""Streams of the Engine API: multiplexed frames, JSON lines, and connections taken over from HTTP (feature W08).

- A frame is ``[stream, 0, 0, 0, length (32 bit, big endian)]`` and the payload; used when there is no TTY.
- Progress of pull and load is one JSON object a line; an error after the first line is the last line.
- Attach and exec take the connection over: ``101 UPGRADED`` when the client asked with ``Upgrade: tcp``, else a
  ``200`` without a length; from then on both directions are raw, and either may be closed alone.

Source: moby ``pkg/stdcopy``, ``api/types/client.go`` (media types), ``daemon/server/router/container/exec.go``.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import structlog
from aiohttp import web

from api.errors import message_of
from base.tasks import cancel_and_wait

log = structlog.get_logger(__name__)

T = TypeVar("T")
ProgressMessage = dict[str, object]
Progress = Callable[[ProgressMessage], None]

RAW_STREAM = "application/vnd.docker.raw-stream"
MULTIPLEXED_STREAM = "application/vnd.docker.multiplexed-stream"
STREAM_NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2, "systemerr": 3}

READ_AHEAD_BYTES_MAX = 256 * 1024
PROGRESS_PENDING_MAX = 512
LINGER_S = 2.0

_header = struct.Struct(">BxxxL")
_encoder = msgspec.json.Encoder()


def frame(stream: str, data: bytes) -> bytes:
    """One frame; ``stream`` is stdin, stdout, stderr or systemerr."""
    return _header.pack(STREAM_NUMBERS[stream], len(data)) + data


def json_line(value: object) -> bytes:
    """``value`` and a newline, as Go's json.Encoder writes it."""
    return _encoder.encode(value) + b"\n"


async def start_stream(request: web.Request, content_type: str) -> web.StreamResponse:
    """Send the head of a chunked answer at once: clients wait for it before they go on."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    response.enable_chunked_encoding()
    await response.prepare(request)
    return response


# ---------------------------------------------------------------- progress


class ProgressQueue:
    """Between work that reports by a plain call and a client that reads at its own speed.

    Bounded: when the client lags, intermediate states are dropped (each is absolute, the next one says it all).
    """

    def __init__(self) -> None:
        self._pending: deque[ProgressMessage] = deque()
        self._changed = asyncio.Event()
        self._ended = False

    def __call__(self, message: ProgressMessage) -> None:
        """Report one message; drops it when it is an intermediate state and the queue is full."""
        if len(self._pending) >= PROGRESS_PENDING_MAX and message.get("progressDetail"):
            return
        self._pending.append(message)
        self._changed.set()

    def end(self) -> None:
        """No more messages."""
        self._ended = True
        self._changed.set()

    async def next_lines(self) -> bytes:
        """All pending messages as lines; waits for one; ``b""`` at the end."""
        while not self._pending and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        lines = b"".join(json_line(message) for message in self._pending)
        self._pending.clear()
        return lines


async def answer_with_progress(
    request: web.Request,
    work: Callable[[Progress], Awaitable[T]],
    finish: Callable[[T], ProgressMessage | None] = lambda _: None,
) -> web.StreamResponse:
    """Run ``work(progress)`` and stream what it reports; ``finish`` may make a last line of its result.

    An error before the first line is raised and gets its HTTP status; afterwards it is the last line, as
    ``{"errorDetail": {"message": ...}, "error": ...}``. When the client goes away the work is cancelled.
    """
    queue = ProgressQueue()

    async def run() -> T:
        try:
            return await work(queue)
        finally:
            queue.end()

    task = asyncio.get_running_loop().create_task(run(), name="api.progress")
    response: web.StreamResponse | None = None
    try:
        while lines := await queue.next_lines():
            response = response or await start_stream(request, "application/json")
            await response.write(lines)
        try:
            last = finish(await task)
        except Exception as error:
            if response is None:
                raise
            log.info("progress.failed", path=request.path, error=message_of(error))
            last = {"errorDetail": {"message": message_of(error)}, "error": message_of(error)}
        response = response or await start_stream(request, "application/json")
        if last is not None:
            await response.write(json_line(last))
        await response.write_eof()
        return response
    finally:
        await cancel_and_wait(task)


# ---------------------------------------------------------------- detach keys


class DetachKeys:
    """Looks for the sequence of keys that detaches, also when it is split over reads.

    Bytes that may begin the sequence are held back until it is clear that they do not.
    Source: moby ``pkg/term/proxy.go``.
    """

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What to pass on, and whether the sequence is complete; what follows it is dropped."""
        if not self._keys:
            return data, False
        data = self._held + data
        found = data.find(self._keys)
        if found >= 0:
            return data[:found], True
        held = next(n for n in range(min(len(self._keys) - 1, len(data)), -1, -1) if data.endswith(self._keys[:n]))
        self._held = data[len(data) - held :] if held else b""
        return data[: len(data) - held], False


DEFAULT_DETACH_KEYS = b"\x10\x11"


def parse_detach_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` -> ``b"\\x10\\x11"``; an empty text is the default. Raises: ValueError."""
    if not text:
        return DEFAULT_DETACH_KEYS
    keys = bytearray()
    for key in text.split(","):
        if len(key) == 1 and key.isascii():
            keys.append(ord(key))
        elif len(key) == 6 and key.startswith("ctrl-") and ("a" <= key[5] <= "z" or key[5] in "@[\\]^_"):
            keys.append(ord(key[5].upper()) & 0x1F)
        else:
            raise ValueError(f"Unknown character: '{key}'")
    return bytes(keys)


# ---------------------------------------------------------------- hijack


class _RawProtocol(asyncio.Protocol):
    """Takes the transport over from aiohttp's request handler."""

    def __init__(self, transport: asyncio.Transport, old: asyncio.BaseProtocol) -> None:
        self._transport, self._old = transport, old
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self.ended = False
        self.readable = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        self.readable.set()
        if self._size >= READ_AHEAD_BYTES_MAX:
            self._transport.pause_reading()

    def take(self) -> bytes:
        """Everything received so far."""
        data = b"".join(self._chunks)
        self._chunks.clear()
        if self._size >= READ_AHEAD_BYTES_MAX and not self.lost:
            self._transport.resume_reading()
        self._size = 0
        self.readable.clear()
        if self.ended:
            self.readable.set()
        return data

    def eof_received(self) -> bool:
        self.ended = True
        self.readable.set()
        return True  # keep the other direction open

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self.ended = True
        self.readable.set()
        self.writable.set()
        self._old.connection_lost(exc)  # or the server would keep the handler for ever


class HijackedStream(web.StreamResponse):
    """A connection taken over from HTTP; also the response that the handler returns, already sent."""

    def __init__(self, transport: asyncio.Transport, raw: _RawProtocol) -> None:
        super().__init__()
        self._transport, self._raw = transport, raw

    @property
    def lost(self) -> bool:
        """The client is gone, not just its side closed."""
        return self._raw.lost

    async def read(self) -> bytes:
        """What the client sent, as it comes; ``b""`` once it closed its side or is ``lost``."""
        await self._raw.readable.wait()
        return self._raw.take()

    async def send(self, data: bytes) -> None:
        """Send; waits while the client does not read. Raises: ConnectionResetError when it is gone."""
        if self._raw.lost:
            raise ConnectionResetError("the client closed the connection")
        self._transport.write(data)
        await self._raw.writable.wait()

    async def finish(self) -> None:
        """Close our side and let the client close its own, at most ``LINGER_S``.

        Closing with unread input would make the kernel reset the connection, and the client lose the end of what
        was sent.
        """
        if self._raw.lost:
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        try:
            async with asyncio.timeout(LINGER_S):
                while await self.read():
                    pass
        except TimeoutError:
            log.debug("hijack.abandoned", linger_s=LINGER_S)

    async def prepare(self, request: web.BaseRequest) -> None:
        """The head went out with ``hijack``."""

    async def write_eof(self, data: bytes = b"") -> None:
        """The end went out with ``finish``."""

    @property
    def keep_alive(self) -> bool:
        """Never: the connection is no HTTP any more."""
        return False


async def hijack(request: web.Request, *, multiplexed: bool) -> HijackedStream:
    """Take the connection over and send the head of the answer; the body must have been read before.

    Raises:
        ConnectionResetError: the client is gone already.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client closed the connection")
    raw = _RawProtocol(transport, transport.get_protocol())
    transport.set_protocol(raw)
    if "Upgrade" in request.headers:
        kind = MULTIPLEXED_STREAM if multiplexed else RAW_STREAM
        head = f"HTTP/1.1 101 UPGRADED\r\nContent-Type: {kind}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    else:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {RAW_STREAM}\r\n\r\n"
    transport.write(head.encode("ascii"))
    return HijackedStream(transport, raw)
