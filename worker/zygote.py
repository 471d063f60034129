"""Starting the manager process quickly: a small process forked early that forks a manager when told to.

A manager imports gRPC, cryptography and the store: 0.4 s of every `swarm init` and join if it began
with a new interpreter. The zygote is forked by `swarmd` after its imports and before its first thread,
waits on a socket, and shares its pages with the node until a manager is needed. It holds no state:
when the node is gone it goes too, and the managers it forked live on (the node adopts them when it
comes back, see worker/manager_process.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence

FRAME_SIZE_BYTES_MAX = 128 * 1024


class ZygoteError(Exception):
    """The zygote is gone; a manager can no longer be started by this daemon process."""


class Zygote:
    """The node's end of the socket. One request at a time."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()
        self.pid = pid

    @classmethod
    def fork(cls, target: Callable[[bytes], int], *, ours_alone: Sequence[int] = ()) -> Zygote:
        """Fork the zygote. Call it before any thread or event loop exists.

        Args:
            target: runs in each forked process with the bytes given to ``start``; returns the exit status.
            ours_alone: descriptors the zygote and what it forks must not share. A lock (flock) is held as long as
                any process has the descriptor: a manager that outlives its node would keep the next node out.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gc.collect()
        gc.freeze()
        pid = os.fork()
        if pid == 0:
            ours.close()
            for descriptor in ours_alone:
                os.close(descriptor)
            _serve(theirs, target)
        theirs.close()
        ours.setblocking(False)
        return cls(ours, pid)

    async def start(self, payload: bytes) -> int:
        """Fork a process that runs the target with ``payload``; return its PID. Raises: ZygoteError."""
        if len(payload) > FRAME_SIZE_BYTES_MAX:
            raise ValueError(f"payload of {len(payload)} bytes, at most {FRAME_SIZE_BYTES_MAX}")
        loop = asyncio.get_running_loop()
        async with self._lock:
            try:
                await loop.sock_sendall(self._connection, payload)
                answer = await loop.sock_recv(self._connection, 64)
            except OSError as error:
                raise ZygoteError(f"the process that starts managers is gone: {error}") from error
        if not answer:
            raise ZygoteError("the process that starts managers is gone")
        return int(answer)

    def close(self) -> None:
        """Let the zygote end; what it started goes on."""
        self._connection.close()


def _serve(connection: socket.socket, target: Callable[[bytes], int]) -> None:
    """The zygote's whole life; never returns."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
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
                payload = connection.recv(FRAME_SIZE_BYTES_MAX)
                if not payload:
                    os._exit(0)
                pid = os.fork()
                if pid == 0:
                    _become(connection, list(children), target, payload)
                pidfd = os.pidfd_open(pid)
                children[pidfd] = pid
                poll.register(pidfd, select.POLLIN)
                connection.send(str(pid).encode())
    except OSError:
        os._exit(1)


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
        gc.unfreeze()
        status = target(payload)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
