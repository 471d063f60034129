"""The daemon takes its own place, with nothing of what its process was: the same command, the same process ID.

As after a kill: containers run on, the manager does and is adopted, and clients of the API connect again. Ending and leaving it to
a supervisor was rejected, as there may be none.
"""

from __future__ import annotations

import os
import sys
import time

import structlog

from worker.membership.zygote import Zygote

log = structlog.get_logger(__name__)

CHILDREN_S = 2.0


def begin_anew(reason: str, zygote: Zygote) -> None:
    """Does not return. Raises: OSError: the command is not there any more."""
    log.error("daemon.begins_anew", reason=reason)
    zygote.close()
    _wait_for_children(time.monotonic() + CHILDREN_S)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _wait_for_children(end_s: float) -> None:
    """Those that end when this process lets go of them: nobody could wait for them after it."""
    while time.monotonic() < end_s:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            time.sleep(0.01)
