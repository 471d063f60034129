"""Signals that people send to a daemon to look into it or to have it read its settings again; they end no process of ours.

Whoever knows dockerd sends SIGUSR1 for the stacks and SIGHUP for the configuration, to all processes of the name at once.
Here SIGUSR1 writes the stack of every thread to the standard error, whatever the process is doing at the time; SIGHUP and
SIGUSR2 have nothing to do.
"""

from __future__ import annotations

import faulthandler
import signal

NOTHING_TO_DO = (signal.SIGHUP, signal.SIGUSR2)


def answer() -> None:
    """Answer them from here on, in this process and those forked from it; call it in the first thread.

    They are handled, not ignored: what is started by exec (runc, a container) has their default again.
    """
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    for number in NOTHING_TO_DO:
        signal.signal(number, lambda number, frame: None)
