"""Looking at a host: does its kernel live? Any answer to a connection attempt says so, a refusal as well as a welcome.

Nothing is sent but the attempts. The port is one that Swarm's users have open between all hosts (7946/tcp): nobody
listens there on a worker, and a kernel that lives refuses. What a firewall drops is silence: whether a host answers
is to be learned while it is well.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import select
import socket
import struct
from enum import Enum, auto

LOOK_S = 2.0
"""How long a host may stay silent."""

ATTEMPTS_S = (0.0, 0.6, 1.2)
"""When new attempts begin; the kernel repeats each after a second. Five lost packets in a row are no accident."""

LATE_S_MAX = 0.5
"""A look that ends so much later than planned was not one: this process stood still."""

LOOKS_AT_ONCE_MAX = 256
"""Each holds up to three descriptors. The others wait for their turn."""

_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER: a connection that came about is cut, so that nothing is left of it at either end."""


class Answer(Enum):
    """What a look found. UNABLE: nothing was asked, so nothing is known."""

    ANSWERED = auto()
    SILENT = auto()
    UNABLE = auto()


class Looker:
    """Looks at hosts, a bounded number at once."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(LOOKS_AT_ONCE_MAX)

    async def look(self, host: str, port: int, *, within_s: float = LOOK_S) -> Answer:
        """Try to connect until something comes back, or the time is over.

        Args:
            host: a literal IP address, else the look is UNABLE: nobody is asked for names.
        """
        if not is_literal(host):
            return Answer.UNABLE
        async with self._places:
            attempts = _Attempts(host, port)
            try:
                return await attempts.run(within_s)
            finally:
                attempts.close()


def is_literal(host: str) -> bool:
    """Whether that is an IP address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class _Attempts:
    """The connection attempts of one look."""

    def __init__(self, host: str, port: int) -> None:
        self._address, self._family = (host, port), socket.AF_INET6 if ":" in host else socket.AF_INET
        self._loop = asyncio.get_running_loop()
        self._open: list[socket.socket] = []
        self._answered = asyncio.Event()

    async def run(self, within_s: float) -> Answer:
        end_s = self._loop.time() + within_s
        later_s = [begin_s for begin_s in ATTEMPTS_S[1:] if begin_s < within_s]
        asked = self._attempt()
        for begin_s in [*later_s, within_s]:
            if not self._answered.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(end_s - within_s + begin_s):
                        await self._answered.wait()
            self._take_answers()  # what came while this process stood still
            if self._answered.is_set():
                return Answer.ANSWERED
            if begin_s < within_s:
                asked = self._attempt() or asked
        late_s = self._loop.time() - end_s
        return Answer.SILENT if asked and late_s <= LATE_S_MAX else Answer.UNABLE

    def close(self) -> None:
        for attempt in self._open:
            self._loop.remove_writer(attempt)
            with contextlib.suppress(OSError):
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            attempt.close()
        self._open.clear()

    def _attempt(self) -> bool:
        """Begin one more; false when it did not leave this host."""
        try:
            attempt = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            return False  # no descriptors, no such family
        code = attempt.connect_ex(self._address)
        if code not in (0, errno.EINPROGRESS, errno.ECONNREFUSED):
            attempt.close()
            return False  # no route, a device that is down, no free port
        self._open.append(attempt)
        if code == errno.EINPROGRESS:
            self._loop.add_writer(attempt, self._take_answers)
        else:
            self._answered.set()
        return True

    def _take_answers(self) -> None:
        """Look at every attempt: one that ended without an answer (a router's word, no answer to ARP) is put aside."""
        poll = select.poll()
        by_descriptor = {attempt.fileno(): attempt for attempt in self._open}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLOUT)
        for descriptor, _ in poll.poll(0):
            attempt = by_descriptor[descriptor]
            if attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.ECONNREFUSED, errno.ECONNRESET):
                self._answered.set()
            else:
                self._loop.remove_writer(attempt)
                self._open.remove(attempt)
                attempt.close()
