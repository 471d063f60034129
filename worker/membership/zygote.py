"""Starting the manager process quickly: a small process forked early that forks a manager when told to.

A manager imports gRPC, cryptography and the store: 0.4 s of every `swarm init` and join if it began
with a new interpreter. The zygote is forked by `swarmd` before its first thread, with what node and manager
both stand on; what the manager alone needs it imports when the node has time for it (``warm``), and by the first
``start`` at the latest. So a daemon that starts does not wait for a manager it may never run, and no manager carries what
the node alone imports. It holds no state: when the node is gone it goes too, and the managers it forked live on (the
node adopts them when it comes back, see worker/membership/manager_process.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from asyncio.subprocess import DEVNULL
from collections.abc import Callable, Sequence

from base import looked_into

FRAME_SIZE_BYTES_MAX = 128 * 1024
_REAP_AFTER_S = 1.0
_WARM, _START = b"w", b"s"
"""The first byte of a message to the zygote; of a start, the payload follows."""

_ENDING = frozenset({signal.SIGINT, signal.SIGTERM})


class ZygoteError(Exception):
    """No manager can be started: the process that forks them does not come up."""


class Zygote:
    """The node's end of the socket. One request at a time.

    ``rest`` lets the process go once a cluster is joined: it keeps tens of megabytes of pages that the node has
    changed meanwhile. ``start`` after that begins with a new interpreter, which takes half a second; it is for
    promotions and for a manager that died, not for init and join. A zygote made without ``fork`` is at rest.
    """

    def __init__(self, target: str, connection: socket.socket | None = None, pid: int = 0) -> None:
        self._target = target
        self._connection = connection
        self._lock = asyncio.Lock()
        self.pid = pid

    @classmethod
    def fork(cls, target: str, *, ours_alone: Sequence[int] = ()) -> Zygote:
        """Fork the zygote. Call it before any thread or event loop exists.

        Args:
            target: ``module:function``, imported by the zygote; the function runs in each forked process with the
                bytes given to ``start`` and returns the exit status.
            ours_alone: descriptors the zygote and what it forks must not share. A lock (flock) is held as long as
                any process has the descriptor: a manager that outlives its node would keep the next node out.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            for descriptor in ours_alone:
                os.close(descriptor)
            _serve(theirs, target)
        theirs.close()
        ours.setblocking(False)
        return cls(target, ours, pid)

    def warm(self) -> None:
        """Have it import now what a manager needs, if it is there."""
        if self._connection is not None:
            with contextlib.suppress(OSError):  # it is gone, which the next start finds out
                self._connection.send(_WARM)

    def rest(self) -> None:
        """Let the process end; what it started goes on, and ``start`` makes another when need be."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            asyncio.get_running_loop().call_later(_REAP_AFTER_S, _reap, self.pid)

    async def _connected(self) -> socket.socket:
        if self._connection is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                command = [sys.executable, "-m", "worker.membership.zygote", self._target, str(theirs.fileno())]
                process = await asyncio.create_subprocess_exec(*command, pass_fds=[theirs.fileno()], stdin=DEVNULL)
            ours.setblocking(False)
            self._connection, self.pid = ours, process.pid
        return self._connection

    async def start(self, payload: bytes) -> int:
        """Fork a process that runs the target with ``payload``; return its PID.

        Raises:
            ZygoteError: the zygote was gone, and another one does not come up.
        """
        if len(payload) > FRAME_SIZE_BYTES_MAX:
            raise ValueError(f"payload of {len(payload)} bytes, at most {FRAME_SIZE_BYTES_MAX}")
        async with self._lock:
            try:
                return await self._ask(payload)
            except OSError:
                self.rest()  # it was killed: another one does
            try:
                return await self._ask(payload)
            except OSError as error:
                raise ZygoteError(f"the process that starts managers cannot be started: {error}") from error

    async def _ask(self, payload: bytes) -> int:
        loop = asyncio.get_running_loop()
        connection = await self._connected()
        await loop.sock_sendall(connection, _START + payload)
        answer = await loop.sock_recv(connection, 64)
        if not answer:
            raise ConnectionResetError("it ended at once")
        return int(answer)

    def close(self) -> None:
        """Let the zygote end for good; what it started goes on."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


@functools.cache
def _resolve(target: str) -> Callable[[bytes], int]:
    """Import it, and keep the collector of what is forked from here off its pages."""
    module, _, name = target.partition(":")
    found: Callable[[bytes], int] = getattr(importlib.import_module(module), name)
    gc.collect()
    gc.freeze()
    return found


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _serve(connection: socket.socket, target: str) -> None:
    """The zygote's whole life; never returns."""
    os.setsid()
    _hold_signals()
    children: dict[int, int] = {}
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    try:
        while True:
            for descriptor, _ in poll.poll():
                if descriptor in children:
                    poll.unregister(descriptor)
                    os.close(descriptor)
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(children.pop(descriptor), 0)
                    continue
                message = connection.recv(len(_START) + FRAME_SIZE_BYTES_MAX)
                if not message:
                    os._exit(0)
                function = _resolve(target)
                if message == _WARM:
                    continue
                pid = os.fork()
                if pid == 0:
                    _become(connection, list(children), function, message[len(_START) :])
                pidfd = os.pidfd_open(pid)
                children[pidfd] = pid
                poll.register(pidfd, select.POLLIN)
                connection.send(str(pid).encode())
    except OSError:
        os._exit(1)


def _hold_signals() -> None:
    """Blocked, not ignored: one that a forked process gets before it is a manager waits for it until it is."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def _become(connection: socket.socket, inherited: list[int], target: Callable[[bytes], int], payload: bytes) -> None:
    """The forked process: from here on a manager."""
    status = 1
    try:
        connection.close()
        for descriptor in inherited:
            os.close(descriptor)
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        gc.enable()
        status = target(payload)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """``python -m worker.membership.zygote MODULE:FUNCTION DESCRIPTOR``: a zygote made by a new interpreter."""
    looked_into.answer()
    target, descriptor = sys.argv[1:]
    _serve(socket.socket(fileno=int(descriptor)), target)


if __name__ == "__main__":
    main()
