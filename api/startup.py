"""What ``swarmd`` does before it is a daemon: its state folder, its log, its memory; and what it tells systemd."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import structlog

from base.files import open_lock_file, remove_leftovers, sync_folder

LOCK_FILE = "swarmd.lock"
LOG_LEVEL_VARIABLE = "SWARMD_LOG_LEVEL"
UMASK = 0o077
"""What the daemon makes is its own, unless a mode is set on purpose (the unit has it too)."""
_M_ARENA_MAX = -8
_OPEN_TO_OTHERS = 0o067
_PRIVATE = 0o710


class StartError(Exception):
    """The daemon cannot start; the message is for people."""


def configure_logging(level: str) -> None:
    """JSON lines on stderr, inherited by the manager process.

    gRPC's own lines there are errors alone: it tells of each handshake that failed, so that anybody who reaches the port
    could write thousands a second. It reads the variable when it is imported.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    structlog.configure(
        cache_logger_on_first_use=True,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")


@contextlib.contextmanager
def own_state(state: Path) -> Iterator[int]:
    """Hold the state folder for this daemon alone; gives the lock's descriptor. Raises: StartError."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close_to_others(state)
        sync_folder(state.parent)
        file = open_lock_file(state / LOCK_FILE)
    except OSError as error:
        raise StartError(f"cannot use the state folder {state}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "unknown"
            raise StartError(
                f"another swarmd (PID {holder}) runs on the state folder {state}: stop it, or give --state another folder"
            ) from None
        file.truncate(0)
        with contextlib.suppress(OSError):  # for the message above, and no reason not to start on a full disk
            os.write(file.fileno(), str(os.getpid()).encode())
        remove_leftovers(state)
        yield file.fileno()


def _close_to_others(state: Path) -> None:
    """Keep the host's users out of the state folder: a volume in it may hold a set-user-ID program of a container
    (CVE-2021-41091). A folder that others may enter is closed if it is a daemon's own: ``--state /tmp`` must not close
    /tmp. Raises: StartError, OSError.
    """
    descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise StartError(
                f"the state folder {state} belongs to UID {status.st_uid}, who could change what the daemon trusts: "
                f"chown it, or give --state another folder"
            )
        if not status.st_mode & _OPEN_TO_OTHERS:
            return
        names = os.listdir(descriptor)
        if names and LOCK_FILE not in names:
            raise StartError(
                f"the state folder {state} is open to other users and holds what is no daemon's: "
                f"give --state a folder of its own, or chmod it to 0700"
            )
        os.fchmod(descriptor, status.st_mode & _PRIVATE)
    finally:
        os.close(descriptor)


def limit_arenas() -> None:
    """Two malloc arenas and not eight a core: gRPC's threads would keep a few megabytes each (mallopt(3))."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def notify_systemd(message: str) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(message.encode())
