"""``swarmd`` with a sampler: SIGRTMIN begins and ends a profile of the process that gets it, the manager's say.

Run as ``python -m tests.bench.scale.profiled PATH-OF-SWARMD OPTIONS...``; profiles go to the folder that
SWARM_BENCH_PROFILES names, as ``PID.stacks``: a line a stack, "frame;frame;frame milliseconds" as flame graphs are made
of. The kernel's timer ticks by the processor time of the whole process; a tick is the main thread's where that is not
waiting, else another Python thread's (Raft), else "native" (gRPC's own threads).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType

PERIOD_S = 0.004
"""A jiffy on most kernels: the timer does not tick more often."""

WAITING = frozenset({"select", "wait", "get", "_worker"})
"""Functions in which a thread does nothing, whatever the timer says."""

NATIVE = WAITING | {"run"}
"""The same of other threads; gRPC's is a bare ``Thread.run``, what it runs is compiled."""


class Sampler:
    """Counts the stack that the processor was in, tick by tick. Made and ended on the main thread."""

    def __init__(self) -> None:
        self._ticks: Counter[str] = Counter()
        signal.signal(signal.SIGPROF, self._tick)
        signal.setitimer(signal.ITIMER_PROF, PERIOD_S, PERIOD_S)

    def end(self, path: Path) -> None:
        """Write what was counted."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        lines = (f"{stack} {1000 * PERIOD_S * ticks:.0f}\n" for stack, ticks in self._ticks.most_common())
        unfinished = path.with_suffix(".part")
        unfinished.write_text("".join(lines))
        unfinished.replace(path)

    def _tick(self, _number: int, frame: FrameType | None) -> None:
        if frame is None or frame.f_code.co_name in WAITING:
            frames = sys._current_frames()
            del frames[threading.get_ident()]
            frame = next((each for each in frames.values() if each.f_code.co_name not in NATIVE), None)
        self._ticks[_stack(frame)] += 1


def _stack(frame: FrameType | None) -> str:
    names: list[str] = []
    while frame is not None:
        code = frame.f_code
        names.append(f"{Path(code.co_filename).stem}.{code.co_qualname}")
        frame = frame.f_back
    return ";".join(reversed(names)) or "native"


def main() -> None:
    """Entry point: SWARM_BENCH_PROFILES is set."""
    folder = Path(os.environ["SWARM_BENCH_PROFILES"])
    running: list[Sampler] = []

    def toggle(_number: int, _frame: FrameType | None) -> None:
        if running:
            running.pop().end(folder / f"{os.getpid()}.stacks")
        else:
            running.append(Sampler())

    signal.signal(signal.SIGRTMIN, toggle)  # forked processes inherit it
    sys.argv = sys.argv[1:]
    from api.swarmd import main as swarmd

    swarmd()


if __name__ == "__main__":
    main()
