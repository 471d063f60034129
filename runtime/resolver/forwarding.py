"""Questions that others have to answer: asked of one server after the other, each answer checked, all of it bounded.

Servers share the time there is: when one has not answered within its share the next is asked as well, and the first answer
counts. So the second server is asked before the client has given up (dockerd waits four seconds for each). By TCP comes to
us what goes out by TCP: an answer that was cut short is passed on as such, and the client asks again by TCP.
"""

from __future__ import annotations

import os
import re
import socket
from collections import deque
from collections.abc import Callable, Sequence

from runtime.resolver import wire
from runtime.resolver.loop import READABLE, WRITABLE, Share, Timer
from runtime.resolver.namespaces import Outside
from runtime.resolver.port import ADDRESS, Upstream
from runtime.resolver.said import say

SERVERS_MAX = 3
IN_FLIGHT_MAX = 1024
"""Of one container, as dockerd (moby libnetwork/resolver.go, maxExtDNS and maxConcurrent)."""
WAITING_MAX = 1024
SOCKETS_MAX = 1536
"""Of one container: some questions are with two servers at once."""
TIMEOUT_S = 5.0
"""Of resolv.conf's option ``timeout``, where it says nothing (resolv.conf(5))."""
_TIMEOUT_S_MAX = 30.0
_SECONDS = re.compile("[1-9][0-9]{0,5}")
_OURS = 0.8
"""The part of a client's patience in which an answer still finds it there."""
_BUFFER = bytearray(65536)

Reply = Callable[[bytes], None]


class Room:
    """How many sockets all containers together may ask by: descriptors are the process's."""

    def __init__(self, sockets_max: int) -> None:
        self._left = sockets_max

    def take(self) -> bool:
        """Whether there was one left."""
        if self._left <= 0:
            return False
        self._left -= 1
        return True

    def give(self) -> None:
        """One that was taken."""
        self._left += 1


class Forwarder:
    """Asks for one container."""

    def __init__(self, container_id: str, loop: Share, outside: Outside, room: Room) -> None:
        self._container_id, self.loop, self.outside, self._room = container_id, loop, outside, room
        self._sockets = 0
        self.namespace: int | None = None
        self._servers: list[Upstream] = []
        self._timeout_s, self._rotate, self._turn = TIMEOUT_S * _OURS, False, 0
        self._under_way: set[_Question] = set()
        self._waiting: deque[_Question] = deque()

    def configure(self, upstreams: Sequence[Upstream], options: Sequence[str], *, forwards: bool) -> None:
        """From the next question on."""
        self._servers = [each for each in upstreams if _usable(each) and (forwards or not each.from_host)][:SERVERS_MAX]
        values = dict(option.partition(":")[::2] for option in options)
        wanted = _SECONDS.fullmatch(values.get("timeout", ""))
        self._timeout_s = min(float(wanted[0]) if wanted else TIMEOUT_S, _TIMEOUT_S_MAX) * _OURS
        self._rotate = "rotate" in values

    def ask(self, query: wire.Query, reply: Reply, *, tcp: bool) -> None:
        """Call ``reply`` once, now or later, with an answer to the message as it came."""
        if not self._servers:
            reply(wire.failure(query))
            return
        servers = self._servers
        if self._rotate:
            self._turn = (self._turn + 1) % len(servers)
            servers = servers[self._turn :] + servers[: self._turn]
        question = _Question(self, query, reply, tuple(servers), self._timeout_s, tcp=tcp)
        if len(self._under_way) < IN_FLIGHT_MAX:
            self._under_way.add(question)
            question.begin()
        elif len(self._waiting) < WAITING_MAX:
            self._waiting.append(question)
        else:
            say("forwarding.refused", "warning", container_id=self._container_id, in_flight=len(self._under_way))
            reply(wire.failure(query, wire.REFUSED))

    def take(self) -> bool:
        """Whether one more socket may be opened."""
        if self._sockets >= SOCKETS_MAX or not self._room.take():
            return False
        self._sockets += 1
        return True

    def give(self) -> None:
        """One was closed."""
        self._sockets -= 1
        self._room.give()

    def ended(self, question: _Question) -> None:
        """Told by the question."""
        self._under_way.discard(question)
        while self._waiting and len(self._under_way) < IN_FLIGHT_MAX:
            following = self._waiting.popleft()
            if not following.is_over:
                self._under_way.add(following)
                following.begin()

    def close(self) -> None:
        """Nobody waits for answers any more."""
        self._waiting.clear()
        for question in tuple(self._under_way):
            question.close()
        self._under_way.clear()


def _usable(server: Upstream) -> bool:
    """An address as a number, and not our own, where we would ask ourselves for ever."""
    try:
        wire.address_bytes(server.address)
    except (OSError, ValueError):
        return False
    return server.from_host or server.address != ADDRESS


class _Question:
    """One question on its way. It ends once: with an answer, at its deadline, or when no server is left."""

    def __init__(
        self,
        forwarder: Forwarder,
        query: wire.Query,
        reply: Reply,
        servers: Sequence[Upstream],
        timeout_s: float,
        *,
        tcp: bool,
    ) -> None:
        self.forwarder, self.query, self.tcp = forwarder, query, tcp
        self.is_over = False
        self._reply: Reply | None = reply
        self._left = deque(servers)
        self._step_s = timeout_s / len(servers)
        self._tries: set[_Try] = set()
        self._share: Timer | None = None
        # From here and not from ``begin``: who waits for a place waits for his answer.
        self._deadline = forwarder.loop.later(timeout_s, self._give_up)

    def begin(self) -> None:
        self._next()

    def answered(self, attempt: _Try, message: bytes) -> None:
        self._drop(attempt)
        if wire.rcode_of(message) in (wire.SERVFAIL, wire.REFUSED):
            self._next()  # another may know better (moby libnetwork/resolver.go, forwardExtDNS)
        else:
            self._end(self.query.message[:2] + message[2:])

    def failed(self, attempt: _Try) -> None:
        self._drop(attempt)
        self._next()

    def close(self) -> None:
        """Without an answer."""
        self.is_over = True
        self._reply = None
        self._deadline.cancel()
        if self._share is not None:
            self._share.cancel()
        for attempt in tuple(self._tries):
            self._drop(attempt)

    def _drop(self, attempt: _Try) -> None:
        attempt.close()
        self._tries.discard(attempt)

    def _next(self) -> None:
        """Ask the next server; with none left, wait for those asked."""
        if self._share is not None:
            self._share.cancel()
        while self._left:
            try:
                attempt = _Try(self, self._left.popleft())
            except OSError:
                continue
            self._tries.add(attempt)
            if self._left:
                self._share = self.forwarder.loop.later(self._step_s, self._next)
            return
        if not self._tries:
            self._give_up()

    def _give_up(self) -> None:
        self._end(wire.failure(self.query))

    def _end(self, message: bytes) -> None:
        reply = self._reply
        self.close()
        self.forwarder.ended(self)
        if reply is not None:
            reply(message)


class _Try:
    """The question put to one server, by a socket of its own: its port is part of what a forger has to guess."""

    def __init__(self, question: _Question, server: Upstream) -> None:
        """Raises OSError: it cannot be asked."""
        forwarder = question.forwarder
        self._question, self._forwarder, self._loop = question, forwarder, forwarder.loop
        self._id, self._asked = os.urandom(2), question.query.question
        message = self._id + question.query.message[2:]
        family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
        self._unsent = len(message).to_bytes(2, "big") + message if question.tcp else b""
        self._received = bytearray()
        if not forwarder.take():
            raise OSError("no descriptor left for questions")
        try:
            namespace = None if server.from_host else forwarder.namespace
            self._socket = forwarder.outside.socket(namespace, family, stream=question.tcp)
        except OSError:
            forwarder.give()
            raise
        try:
            if question.tcp:
                self._socket.connect_ex((server.address, server.port))
                self._loop.watch(self._socket.fileno(), self._stream_ready, READABLE | WRITABLE)
            else:
                self._socket.connect((server.address, server.port))
                self._socket.send(message)
                self._loop.watch(self._socket.fileno(), self._datagram_ready)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Idempotent."""
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._forwarder.give()

    def _datagram_ready(self, events: int) -> None:
        try:
            size = self._socket.recv_into(_BUFFER)
        except BlockingIOError:
            return
        except OSError:  # nobody listens there
            self._question.failed(self)
            return
        message = bytes(memoryview(_BUFFER)[:size])
        if wire.answers(message, self._id, self._asked):
            self._question.answered(self, message)

    def _stream_ready(self, events: int) -> None:
        try:
            if self._unsent and events & WRITABLE:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
                if not self._unsent:
                    self._loop.change(self._socket.fileno(), READABLE)
                return
            more = self._socket.recv(8192)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        self._received += more
        size = int.from_bytes(self._received[:2], "big") + 2
        if len(self._received) >= max(size, 2 + wire.HEADER_BYTES):
            message = bytes(self._received[2:size])
            if wire.answers(message, self._id, self._asked):
                self._question.answered(self, message)
                return
            more = b""
        if not more:
            self._question.failed(self)
