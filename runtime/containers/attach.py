"""A duplex stream to a container's or exec's stdio, over conmon's attach socket.

The socket is SOCK_SEQPACKET: each packet from conmon is one stream byte (2 stdout, 3 stderr) and up to 32 KiB of
output; what is sent to it goes to the process's stdin as it is, and a half-close ends that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from types import TracebackType

from runtime.errors import ConflictError
from runtime.types import LogLine

_PACKET_SIZE_MAX = 1 << 16
_WRITE_SIZE = 8192
_STREAMS = {2: "stdout", 3: "stderr"}


def connect(path: Path) -> socket.socket:
    """A connection to an attach socket, also when its path is longer than the 108 bytes of sockaddr_un.

    Raises OSError. Blocks for a moment at most: conmon listens before it answers the create.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        made.connect(f"/proc/self/fd/{folder}/{path.name}")
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    finally:
        os.close(folder)
    return made


class AttachStream:
    """Output comes out of ``read()``, input goes into ``write()``.

    With a TTY everything arrives as "stdout". It may exist before the container runs: reads and writes then wait.
    Use as an async context manager or call ``close()``.
    """

    def __init__(
        self,
        *,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        on_close: Callable[[AttachStream], None] | None = None,
        ended: asyncio.Event | None = None,
    ) -> None:
        self.stdin = stdin
        self._ended = ended  # an exec's: its exit code is known; whoever read to the end may ask for it at once
        self._wanted = {name for name, wanted in (("stdout", stdout), ("stderr", stderr)) if wanted}
        self._socket: socket.socket | None = None
        self._connected = asyncio.Event()
        self._on_close = on_close
        self._busy = 0
        self._closed = False
        self._backlog: AsyncGenerator[LogLine, None] | None = None
        self._first: LogLine | None = None

    async def precede(self, backlog: AsyncGenerator[LogLine, None]) -> None:
        """Give these lines out before all else. Where they end is settled when this returns (see ``logs.read``)."""
        self._first, self._backlog = await anext(backlog, None), backlog

    def connected(self, made: socket.socket) -> None:
        """Called by the engine once conmon listens; the stream owns the socket."""
        if self._closed:
            made.close()
            return
        self._socket = made
        self._connected.set()

    async def read(self) -> tuple[str, bytes] | None:
        """The next piece as ("stdout" | "stderr", bytes); None once the process ended and all was read."""
        piece = await self._next()
        if piece is None and self._ended is not None and self._socket is not None:
            await self._ended.wait()
        return piece

    async def _next(self) -> tuple[str, bytes] | None:
        while self._backlog is not None and not self._closed:
            line = self._first or await anext(self._backlog, None)
            self._first = None
            if line is not None:
                return line.stream, line.data
            self._backlog = None
        while True:
            await self._connected.wait()
            if self._socket is None or self._closed:
                return None
            with self._using() as made:
                try:
                    packet = await asyncio.get_running_loop().sock_recv(made, _PACKET_SIZE_MAX)
                except OSError:
                    return None
            if not packet:
                return None
            stream = _STREAMS.get(packet[0], "stdout")
            if len(packet) > 1 and stream in self._wanted:
                return stream, packet[1:]

    async def write(self, data: bytes) -> None:
        """Send to the process's stdin; waits while it does not read. Raises ConflictError when it is gone."""
        if not self.stdin:
            return
        await self._connected.wait()
        for start in range(0, len(data), _WRITE_SIZE):
            if self._socket is None or self._closed:
                raise ConflictError("stdin is closed: the process has ended")
            with self._using() as made:
                try:
                    await asyncio.get_running_loop().sock_sendall(made, data[start : start + _WRITE_SIZE])
                except OSError:
                    raise ConflictError("stdin is closed: the process has ended") from None

    async def close_stdin(self) -> None:
        """End of input (half-close); output goes on."""
        await self._connected.wait()
        if self._socket is not None and self.stdin:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Detach; the process runs on. A waiting ``read`` returns None. Idempotent."""
        self._closed = True
        self._connected.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes whoever waits on it
            self._close_if_idle()
        if self._on_close is not None:
            callback, self._on_close = self._on_close, None
            callback(self)

    @contextlib.contextmanager
    def _using(self) -> Iterator[socket.socket]:
        """The socket stays open while the event loop waits on it: a closed number would soon be another's."""
        assert self._socket is not None
        self._busy += 1
        try:
            yield self._socket
        finally:
            self._busy -= 1
            self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._closed and not self._busy and self._socket is not None:
            self._socket.close()
            self._socket = None

    async def __aenter__(self) -> AttachStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._backlog is not None:
            await self._backlog.aclose()
