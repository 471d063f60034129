"""The process that unpacks layers: forks a child for each, under limits, so that no archive can hurt the daemon.

It imports what unpacking needs once (70 ms), a child is forked from it in a few. A request comes over the socket at
descriptor 0 with three descriptors: the blob, the socket to answer on, and one that only has to stay open, as it holds
the lock on the working directory (see ``runtime/images/unpacking.py``). One message answers: what came out, what was
wrong, or what the child died of. Who shuts the answer's socket down has the child killed; when the daemon is gone, all go.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from base import looked_into
from runtime.unpack.errors import MalformedArchiveError
from runtime.unpack.layers import unpack_layer

MEMORY_BYTES_MAX = 512 << 20
"""Of addresses: three times what the interpreter and the largest window of a decompressor take."""
CPU_S_MAX = 3600
FILES_MAX = 256
REQUEST_BYTES_MAX = 128 << 10
TEXT_MAX = 2000
_LIMITS = (
    (resource.RLIMIT_AS, MEMORY_BYTES_MAX),
    (resource.RLIMIT_CPU, CPU_S_MAX),
    (resource.RLIMIT_NOFILE, FILES_MAX),
    (resource.RLIMIT_CORE, 0),
)


class _Child(NamedTuple):
    pid: int
    pidfd: int
    answer: socket.socket
    lock: int


def main() -> None:
    """Serve until the daemon is gone."""
    looked_into.answer()
    gc.freeze()
    os.umask(0o022)
    control = socket.socket(fileno=0)
    children: dict[int, _Child] = {}
    """By either descriptor that tells something about one: its answer's and its pidfd."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == control.fileno():
                data, fds, _, _ = socket.recv_fds(control, REQUEST_BYTES_MAX, 3)
                if not data:
                    _end(children)
                child = _fork(control, data, fds)
                children[child.pidfd] = children[child.answer.fileno()] = child
                poll.register(child.pidfd, select.POLLIN)
                poll.register(child.answer, select.POLLIN)
            elif (child_of := children.get(fd)) is None:
                continue  # both of its descriptors told the same
            elif fd == child_of.pidfd:
                for known in (child_of.pidfd, child_of.answer.fileno()):
                    poll.unregister(known)
                    del children[known]
                _reap(child_of)
            else:
                poll.unregister(fd)
                poll.register(fd, 0)
                os.kill(child_of.pid, signal.SIGKILL)


def _fork(control: socket.socket, data: bytes, fds: list[int]) -> _Child:
    blob, answer, lock = fds
    server = os.getpid()
    if (pid := os.fork()) == 0:
        try:
            control.close()
            _serve(json.loads(data), blob, socket.socket(fileno=answer), server)
        finally:
            os._exit(1)
    os.close(blob)
    return _Child(pid, os.pidfd_open(pid), socket.socket(fileno=answer), lock)


def _reap(child: _Child) -> None:
    """Tell what it died of, if anything, then that it is gone, by the end of the answers."""
    _, status = os.waitpid(child.pid, 0)
    with suppress(OSError):  # nobody may be listening any more
        if os.WIFSIGNALED(status):
            child.answer.send(json.dumps({"signal": os.WTERMSIG(status)}).encode())
    os.close(child.pidfd)
    os.close(child.lock)
    child.answer.close()


def _end(children: dict[int, _Child]) -> None:
    for pid in {child.pid for child in children.values()}:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os._exit(0)


def _serve(request: dict[str, object], blob: int, answer: socket.socket, server: int) -> None:
    _confine()
    try:
        said = _unpack(request, blob, server)
    except MemoryError:
        said = {"malformed": f"malformed layer: to unpack it takes more than {MEMORY_BYTES_MAX >> 20} MB of memory"}
    answer.send(json.dumps(said).encode())
    os._exit(0)


def _unpack(request: dict[str, object], blob: int, server: int) -> dict[str, object]:
    def check() -> None:
        if os.getppid() != server:
            os._exit(1)

    parents = request["parents"]
    assert isinstance(parents, list)
    try:
        with open(blob, "rb", buffering=0) as source:
            made = unpack_layer(source, Path(str(request["work"])), parents=[Path(p) for p in parents], check=check)
    except MalformedArchiveError as error:
        return {"malformed": str(error)[:TEXT_MAX]}
    except MemoryError:
        raise
    except OSError as error:
        return {"errno": error.errno, "text": (error.strerror or str(error))[:TEXT_MAX]}
    except Exception as error:  # a defect of ours must not look like a layer that is well
        return {"defect": repr(error)[:TEXT_MAX]}
    return {"diff_id": made.diff_id, "size": made.size_bytes, "skipped": made.skipped}


def _confine() -> None:
    for what, most in _LIMITS:
        _, hard = resource.getrlimit(what)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))
    with suppress(OSError):  # of all processes the one to go when memory runs out
        Path("/proc/self/oom_score_adj").write_text("500")
