"""Questions by TCP: several on a connection (RFC 7766), and what bounds the connections of one container."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeAlias

from runtime.resolver.loop import READABLE, WRITABLE, Share, Timer

STREAMS_MAX = 64
"""Of one container; who comes after waits in the kernel's queue until one has ended."""
IDLE_S = 10.0
_PENDING_MAX = 64
_UNSENT_BYTES_MAX = 64 * 1024
_READ_BYTES = 4096
"""A turn: some two hundred questions, before others have theirs."""

Respond: TypeAlias = Callable[[bytes, Callable[[bytes], None]], bool]
"""Given a question and what to call with its answer, at once or later; False when there will be none."""


class Streams:
    """The TCP side of one container's resolver."""

    def __init__(self, loop: Share, listener: socket.socket, respond: Respond, *, idle_s: float = IDLE_S) -> None:
        self.loop, self.respond, self.idle_s = loop, respond, idle_s
        self._listener = listener
        self._open: set[_Stream] = set()
        self._waits = False
        loop.watch(listener.fileno(), self._accept)

    def close(self) -> None:
        """The listener is its owner's to close, after this."""
        self.loop.forget(self._listener.fileno())
        self._waits = False
        for stream in tuple(self._open):
            stream.close()

    def ended(self, stream: _Stream) -> None:
        """Told by the stream."""
        self._open.discard(stream)
        if self._waits:
            self._waits = False
            self.loop.watch(self._listener.fileno(), self._accept)

    def _accept(self, events: int) -> None:
        try:
            made = self._listener.accept()[0]
        except BlockingIOError:
            return
        except OSError:  # no descriptor left, or the client has gone: not in a circle
            self._rest(1.0)
            return
        made.setblocking(False)
        self._open.add(_Stream(self, made))
        if len(self._open) >= STREAMS_MAX:
            self._waits = True
            self.loop.forget(self._listener.fileno())

    def _rest(self, time_s: float) -> None:
        self.loop.forget(self._listener.fileno())
        self._waits = True
        self.loop.later(time_s, self._resume)

    def _resume(self) -> None:
        if self._waits and self._listener.fileno() >= 0:
            self._waits = False
            self.loop.watch(self._listener.fileno(), self._accept)


class _Stream:
    """One connection. It is read only while its answers get away and not too many are owed."""

    def __init__(self, owner: Streams, connection: socket.socket) -> None:
        self._owner, self._loop, self._socket = owner, owner.loop, connection
        self._received, self._unsent = bytearray(), bytearray()
        self._pending, self._events = 0, READABLE
        self._at_end = self._goes_on = False
        self._last_s = time.monotonic()
        self._loop.watch(connection.fileno(), self._ready)
        self._timer: Timer = self._loop.later(owner.idle_s, self._look)

    @property
    def _is_open(self) -> bool:
        return self._socket.fileno() >= 0

    def close(self) -> None:
        """Idempotent."""
        if self._is_open:
            self._timer.cancel()
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._owner.ended(self)

    def _ready(self, events: int) -> None:
        if events & ~(READABLE | WRITABLE):  # reset, or both ends shut
            self.close()
            return
        if events & WRITABLE:
            self._send()
        if events & READABLE:
            self._read()
        self._go_on()

    def _read(self) -> None:
        try:
            more = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._at_end = not more
        self._received += more

    def _go_on(self) -> None:
        """Answer what has come whole, and wait for what is to come next."""
        self._goes_on = True
        while self._is_open and self._pending < _PENDING_MAX and len(self._unsent) < _UNSENT_BYTES_MAX:
            size = int.from_bytes(self._received[:2], "big") + 2
            if len(self._received) < max(size, 3):
                break
            message = bytes(self._received[2:size])
            del self._received[:size]
            self._pending += 1
            self._last_s = time.monotonic()
            if not self._owner.respond(message, self._answer):
                self.close()  # no question at all: whoever speaks here speaks something else
        self._goes_on = False
        if self._unsent:
            self._send()
        if self._is_open:
            self._wait()

    def _answer(self, message: bytes) -> None:
        self._pending -= 1
        if self._is_open:
            self._unsent += len(message).to_bytes(2, "big") + message
            if not self._goes_on:  # an answer of others, which may let in questions that wait
                self._go_on()

    def _send(self) -> None:
        if not self._is_open:
            return
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        del self._unsent[:sent]
        self._last_s = time.monotonic()

    def _wait(self) -> None:
        if self._at_end and not self._pending and not self._unsent:
            self.close()
            return
        takes_more = self._pending < _PENDING_MAX and len(self._unsent) < _UNSENT_BYTES_MAX and not self._at_end
        events = (READABLE if takes_more else 0) | (WRITABLE if self._unsent else 0)
        if events != self._events:
            self._events = events
            self._loop.change(self._socket.fileno(), events)

    def _look(self) -> None:
        """Whether something went on meanwhile: a whole question came, or an answer left."""
        left_s = self._last_s + self._owner.idle_s - time.monotonic()
        if left_s > 0 or (self._pending and not self._unsent):
            self._timer = self._loop.later(max(left_s, 1.0), self._look)
        else:
            self.close()
