"""Whether the system refused this process a thread (pids.max, no memory), and gives them again.

gRPC counts a thread that it was refused among those it has (seen with grpcio 1.85), and some time later stands still for good:
bytes lie unread in a socket, or a connection is never made, without a word, while whatever else of the process goes on. No
connection of its is to be trusted again, and the pool cannot be made anew: a process that was refused threads has to begin anew.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

PERIOD_S = 1.0
CALM_PROBES = 5
"""So many threads in a row begin before it counts as over: a process that begins anew needs some at once."""


def _begin_thread() -> None:
    """Raises: RuntimeError: there is none to be had."""
    thread = threading.Thread(target=_nothing, daemon=True)
    thread.start()
    thread.join()


def _nothing() -> None: ...


async def threads_were_refused(begin: Callable[[], None] = _begin_thread, *, period_s: float = PERIOD_S) -> None:
    """Return once threads were refused, and have been given again for some seconds. Never, where all is well.

    Args:
        begin: begins a thread and waits for its end; raises RuntimeError.
    """
    calm: int | None = None
    while calm != CALM_PROBES:
        try:
            begin()
        except RuntimeError:
            calm = 0
        else:
            calm = None if calm is None else calm + 1
        await asyncio.sleep(period_s)
