"""Who holds STATE/manager.lock: by that lock a node finds the manager of this host that outlived it.

The file's text says a PID, and what it says is not believed: a manager that took the lock just now has not written its own
yet, and the one of before may be any process's by now, which would be watched, or told to end. The kernel knows who holds
a lock, and shows it in /proc/PID/fdinfo (proc_pid_fdinfo(5), "lock").
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import IO

import structlog

from base.files import LOOK_S_MAX

log = structlog.get_logger(__name__)

_LOOK_AGAIN_S = 0.002


def lock_holder(path: Path, *, patience_s: float = LOOK_S_MAX) -> int | None:
    """PID of the manager that holds the lock file; None when nobody does, or who does is no manager.

    A holder that has not written its PID yet is waited for, at most ``patience_s``. Raises: OSError.
    """
    end = time.monotonic() + patience_s
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        while not _free(file):
            file.seek(0)
            text = file.read(32)
            if text.isdigit() and holds(int(text), file.fileno()):
                return int(text)
            if time.monotonic() > end:
                log.error("manager.lock_held_by_stranger", path=str(path), text=text.decode(errors="replace"))
                return None
            time.sleep(_LOOK_AGAIN_S)
    return None


def holds(pid: int, descriptor: int) -> bool:
    """Whether the process holds a lock (flock) on the file that ``descriptor`` of ours has open too."""
    wanted = os.fstat(descriptor)
    folder = Path(f"/proc/{pid}/fdinfo")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ProcessLookupError):
        for name in os.listdir(folder):
            # What has no lock is not looked at: it may be on a file system that does not answer.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if "FLOCK" in (folder / name).read_text():
                    found = os.stat(f"/proc/{pid}/fd/{name}")
                    if os.path.samestat(found, wanted):
                        return True
    return False


def _free(file: IO[bytes]) -> bool:
    """Whether nobody holds it. It is held for that moment, by us."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True
