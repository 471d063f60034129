"""The resolver's process: ``python -m runtime.resolver.process FOLDER``.

It is started by the node, outlives it, and is found again by the next one by its socket. It keeps in memory what it was
told last. Without a node and without a container that could ask it ends by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import msgspec

from base import looked_into
from base.version import VERSION
from runtime.resolver.forwarding import Room
from runtime.resolver.loop import READABLE, WRITABLE, Loop
from runtime.resolver.messages import KEEPER, LOCK, SOCKET, Frames, Greeting, Noted, Telling, frame
from runtime.resolver.namespaces import Opened, Sockets
from runtime.resolver.port import Change, Everything, PutAsker
from runtime.resolver.said import say, say_failed
from runtime.resolver.server import Server

LONELY_S = 60.0
_COLLECT_S = 300.0
_READ_BYTES = 1 << 20
_RESERVED_DESCRIPTORS = 1024
_UMASK = 0o077
_HELD = 3
"""Exit status: another process holds the lock."""


class _Node:
    """The node's connection. There is one at a time: a new node has the state folder's lock, so the old one is gone."""

    def __init__(self, loop: Loop, server: Server, connection: socket.socket) -> None:
        self._loop, self._server, self._socket = loop, server, connection
        self._frames, self._unsent = Frames(), bytearray()
        self._decoder = msgspec.msgpack.Decoder(Telling)
        loop.watch(connection.fileno(), self._ready)
        self._send(Greeting(VERSION, os.getpid()))

    @property
    def is_open(self) -> bool:
        """Whether it may still tell."""
        return self._socket.fileno() >= 0

    def close(self) -> None:
        """Idempotent."""
        if self.is_open:
            self._loop.forget(self._socket.fileno())
            self._socket.close()

    def _ready(self, events: int) -> None:
        if events & WRITABLE:
            self._flush()
        if not events & ~WRITABLE or not self.is_open:
            return
        try:
            data = self._socket.recv(_READ_BYTES)
            tellings = [self._decoder.decode(each) for each in self._frames.feed(data)] if data else []
        except BlockingIOError:
            return
        except (OSError, ValueError, msgspec.DecodeError) as error:
            say("node.lost", "warning", reason=str(error))
            self.close()
            return
        if not data:
            say("node.gone")
            self.close()
        for telling in tellings:
            self._carry_out(telling)

    def _carry_out(self, telling: Telling) -> None:
        failures: dict[str, str] = {}
        left = 1

        def ended(container_id: str, failure: str) -> None:
            nonlocal left
            if failure:
                failures[container_id] = failure
            left -= 1
            if left == 0:
                self._send(Noted(telling.number, failures))

        for change in telling.changes:
            for each in _apart(change):
                left += 1
                container_id = each.asker.container_id if isinstance(each, PutAsker) else ""
                try:
                    self._server.apply(each, functools.partial(ended, container_id))
                except Exception as error:  # a defect, which must not cost the other containers their answers
                    say_failed("change.failed", error)
                    ended(container_id, repr(error))
        ended("", "")

    def _send(self, message: Greeting | Noted) -> None:
        if self.is_open:
            self._unsent += frame(message)
            self._flush()

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self._unsent[:sent]
        self._loop.change(self._socket.fileno(), READABLE | (WRITABLE if self._unsent else 0))


def _apart(change: Change | Everything) -> list[Change | Everything]:
    """Everything as itself and its askers, each of which may fail."""
    if isinstance(change, Everything):
        return [change, *(PutAsker(asker) for asker in change.askers)]
    return [change]


class _Keeper:
    """The node's other connection: it keeps the sockets of containers for a process after this one."""

    def __init__(self, loop: Loop, connection: socket.socket) -> None:
        self._loop, self._socket = loop, connection
        loop.watch(connection.fileno(), self._ended)

    def keep(self, container_id: str, opened: Opened) -> None:
        """What it cannot take now is opened anew by that process."""
        if self._socket.fileno() >= 0:
            with contextlib.suppress(OSError):
                socket.send_fds(self._socket, [container_id.encode()], [opened.udp.fileno(), opened.tcp.fileno()])

    def close(self) -> None:
        """Idempotent."""
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()

    def _ended(self, events: int) -> None:
        self.close()  # it never says anything


class _Process:
    def __init__(self, folder: Path, kept: dict[str, Sockets]) -> None:
        self._loop = Loop()
        self._server = Server(self._loop, Room(_descriptors()), kept)
        self._node: _Node | None = None
        self._keeper: _Keeper | None = None
        self._keepers = _listen(folder / KEEPER, socket.SOCK_SEQPACKET)
        self._loop.watch(self._keepers.fileno(), self._accept_keeper)
        self._listener = _listen(folder / SOCKET, socket.SOCK_STREAM)
        self._loop.watch(self._listener.fileno(), self._accept)
        self._loop.later(LONELY_S, self._end_if_lonely)
        self._loop.later(_COLLECT_S, self._collect)

    def run(self) -> None:
        try:
            self._loop.run()
        finally:
            self._listener.close()
            self._server.close()

    def _accept(self, events: int) -> None:
        try:
            made = self._listener.accept()[0]
        except OSError:
            return
        made.setblocking(False)
        if self._node is not None:
            self._node.close()
        self._node = _Node(self._loop, self._server, made)

    def _accept_keeper(self, events: int) -> None:
        try:
            made = self._keepers.accept()[0]
        except OSError:
            return
        made.setblocking(False)
        if self._keeper is not None:
            self._keeper.close()
        self._keeper = _Keeper(self._loop, made)
        self._server.on_open = self._keeper.keep
        for container_id, opened in self._server.held():
            self._keeper.keep(container_id, opened)

    def _end_if_lonely(self) -> None:
        if not len(self._server) and (self._node is None or not self._node.is_open):
            say("process.not_needed")
            raise SystemExit(0)
        self._loop.later(LONELY_S, self._end_if_lonely)

    def _collect(self) -> None:
        """Seldom, and not in the midst of a flood: a walk through all names takes as long as a hundred answers."""
        gc.collect()
        self._loop.later(_COLLECT_S, self._collect)


def _listen(path: Path, kind: socket.SocketKind) -> socket.socket:
    path.unlink(missing_ok=True)  # of one before us, which had the lock
    made = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    made.bind(str(path))
    made.listen(4)
    return made


def _kept() -> dict[str, Sockets]:
    """What the node hands on of a process before us: descriptors we were born with, told on the standard input."""
    found = msgspec.json.decode(sys.stdin.buffer.read() or b"{}", type=dict[str, Sockets])
    for sockets in found.values():
        os.set_inheritable(sockets.udp, False)
        os.set_inheritable(sockets.tcp, False)
    return found


def _descriptors() -> int:
    """How many sockets may ask others, of all there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return max(64, min(soft // 2, soft - _RESERVED_DESCRIPTORS, 1 << 16))


def _end(number: int, stack: object) -> None:
    raise SystemExit(0)


def main() -> None:
    """Exit status 3 when another one runs on the folder."""
    folder = Path(sys.argv[1])
    looked_into.answer()
    signal.signal(signal.SIGTERM, _end)
    os.umask(_UMASK)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(_HELD) from None
    os.truncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    gc.collect()
    gc.freeze()
    gc.disable()
    say("process.started", pid=os.getpid())
    _Process(folder, _kept()).run()


if __name__ == "__main__":
    main()
