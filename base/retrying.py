"""Work that could not be done and is tried again, in a thread that is there only while something is left of it.

For what has no caller who waits: a file that the disk did not take, a folder that would not go. It knows no event loop, so
that any thread may leave work here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from base.backoff import Backoff

log = structlog.get_logger(__name__)

FIRST_S, MAX_S = 0.5, 5.0


class Retrier:
    """Calls ``attempt`` with growing pauses as long as ``pending`` says that something is left."""

    def __init__(
        self,
        attempt: Callable[[], None],
        pending: Callable[[], bool],
        *,
        name: str,
        first_s: float = FIRST_S,
        max_s: float = MAX_S,
    ) -> None:
        """
        Args:
            attempt: blocks; called in a thread, one call at a time. What it raises is logged.
            pending: whether to go on; from any thread, quick.
            name: of the thread.
            first_s, max_s: the pauses before the attempts, see ``Backoff``.
        """
        self._attempt, self._pending, self._name = attempt, pending, name
        self._pauses = first_s, max_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Something is left since now. Any thread."""
        with self._lock:
            if self._thread is not None or self._stop.is_set():
                return
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the host has no thread for us: the next one to leave something tries again
                log.warning("retry.not_begun", name=self._name, reason=str(error))
            else:
                self._thread = thread

    def close(self) -> None:
        """Try no more; returns when an attempt that is under way has ended. Blocks. Idempotent."""
        self._stop.set()
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        backoff = Backoff(*self._pauses)
        while not self._stop.wait(backoff.next_s()):
            try:
                self._attempt()
            except Exception as error:
                log.error("retry.failed", name=self._name, reason=str(error), exc_info=error)
            with self._lock:  # who leaves something after this look begins a thread of his own
                if not self._pending():
                    self._thread = None
                    return
