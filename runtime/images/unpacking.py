"""Unpacking in a process of its own, as the daemon sees it; see ``runtime/unpack/process.py``."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import isal
import msgspec
import structlog
import zstandard

import runtime
from base.threads import AbortedError
from runtime.images.errors import LayerError

log = structlog.get_logger(__name__)

IDLE_S = 3.0
"""The process stays for so long after the last layer: it takes 8 MB, a new one 70 ms while the next layer is fetched."""
LEFT_S_MAX = 5.0
_ABORT_PERIOD_MS = 50
_START = "import sys; sys.path += sys.argv[1:]; from runtime.unpack.process import main; main()"


class Unpacked(msgspec.Struct, frozen=True):
    """What came out: the digest of the uncompressed tar, and the bytes in its regular files, holes left out."""

    diff_id: str
    size_bytes: int


class _Answer(msgspec.Struct):
    diff_id: str = ""
    size: int = 0
    skipped: list[tuple[str, str]] = []
    malformed: str = ""
    errno: int = 0
    text: str = ""
    defect: str = ""
    signal: int = 0


class Unpacker:
    """Starts the process when it is needed and ends it when it is not. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._users = 0
        self._timer: threading.Timer | None = None

    @property
    def pid(self) -> int:
        """Of the process; 0 when there is none."""
        process = self._process
        return process.pid if process is not None else 0

    def warm(self) -> None:
        """Have it there for a layer that comes soon. Blocks for a moment."""
        with self._use():
            pass

    def close(self) -> None:
        """End it; what it does is killed. Blocks."""
        with self._lock:
            self._stop()

    def unpack(self, blob: int, work: Path, parents: Sequence[Path], abort: threading.Event | None = None) -> Unpacked:
        """Unpack the archive at the descriptor ``blob`` into ``work / "fs"``; see ``unpack_layer``. Blocks.

        Whatever comes of it, nothing writes to ``work`` any more when this ends.

        Raises:
            LayerError: what ``unpack_layer`` calls malformed, or more than the process may take.
            OSError: the disk failed or is full.
            AbortedError: ``abort`` was set.
        """
        request = msgspec.json.encode({"work": str(work), "parents": [str(parent) for parent in parents]})
        with self._use(), locked(work) as lock:
            answer = self._ask(request, blob, lock, abort)
            if answer is None and not (work / "fs").exists():  # it died before it had read what it was asked
                answer = self._ask(request, blob, lock, abort)
        return _judge(answer or _Answer(defect="the process that does it has died"))

    def _ask(self, request: bytes, blob: int, lock: int, abort: threading.Event | None) -> _Answer | None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                self._send(request, [blob, theirs.fileno(), lock])
            return _wait(ours, abort)

    @contextlib.contextmanager
    def _use(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._process is None or self._process.poll() is not None:
                self._start()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0 and self._process is not None:
                    self._timer = threading.Timer(IDLE_S, self._rest)
                    self._timer.daemon = True
                    self._timer.start()

    def _send(self, request: bytes, fds: Sequence[int]) -> None:
        with self._lock:
            control = self._control
            if control is None:
                raise AbortedError  # closed meanwhile
            try:
                socket.send_fds(control, [request], fds)
            except OSError:  # it has died since the last layer
                socket.send_fds(self._start(), [request], fds)

    def _start(self) -> socket.socket:
        self._stop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # Neither site packages nor the environment say what is imported: the daemon has it at hand.
            packages = dict.fromkeys(
                str(Path(str(module.__file__)).parents[1]) for module in (runtime, isal, zstandard)
            )
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", _START, *packages],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        self._control = ours
        return ours

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _rest(self) -> None:
        with self._lock:
            if self._users == 0:
                self._stop()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """A descriptor that holds the lock on a folder, which lasts for as long as any process has it open."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fd
    finally:
        os.close(fd)


def wait_until_left(folder: Path) -> None:
    """Until no process of a daemon that was killed unpacks into ``folder``: it is about to end. Blocks.

    Raises:
        TimeoutError: it does not.
    """
    deadline = time.monotonic() + LEFT_S_MAX
    while True:
        with contextlib.suppress(BlockingIOError, NotADirectoryError), locked(folder):
            return
        if not folder.is_dir():
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{folder} is still being written to")
        time.sleep(0.01)


def _wait(answers: socket.socket, abort: threading.Event | None) -> _Answer | None:
    """The last that was said before the end, which says that the child is gone; None when nothing was."""
    poll, last, is_aborted = select.poll(), b"", False
    poll.register(answers, select.POLLIN)
    while True:
        if abort is not None and not is_aborted and abort.is_set():
            is_aborted = True
            answers.shutdown(socket.SHUT_WR)
        if not poll.poll(_ABORT_PERIOD_MS):
            continue
        try:
            said = answers.recv(1 << 17)
        except ConnectionResetError:
            said = b""
        if not said:
            break
        last = said
    if is_aborted:
        raise AbortedError
    return msgspec.json.decode(last, type=_Answer) if last else None


def _judge(answer: _Answer) -> Unpacked:
    if answer.malformed:
        raise LayerError(answer.malformed)
    if answer.errno:
        raise OSError(answer.errno, answer.text)
    if answer.signal:
        raise LayerError(f"cannot unpack the layer: it took too much, or was ended ({signal.strsignal(answer.signal)})")
    if answer.defect or not answer.diff_id:
        log.error("layer.unpacking_failed", reason=answer.defect)
        raise LayerError(f"cannot unpack the layer: {answer.defect}")
    for name, reason in answer.skipped:
        log.warning("layer.xattr_skipped", xattr=name, reason=reason)
    return Unpacked(answer.diff_id, answer.size)
