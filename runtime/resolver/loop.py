"""The resolver's event loop: epoll, timers, and calls from other threads. Nothing in it waits or awaits.

Not asyncio: a datagram costs one of its callbacks what answering it costs here, and its import is half of this process.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import time
from collections import deque
from collections.abc import Callable

from runtime.resolver.said import say_failed

READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT
_EVENTS_A_TURN = 64
_SHARE_A_TURN = 16
_TIMERS_MAX = 4096
"""With more of them, those that were cancelled are looked for."""


class Timer:
    """Something to do later, unless it is cancelled."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Idempotent, also when it is over."""
        self.callback = None


class Watched:
    """Handlers of descriptors that are ready; each gets its turn before one gets a second.

    What a handler raises is a defect: it is logged, and its descriptor is watched no longer, as it would be ready for ever.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}

    def watch(self, descriptor: int, handler: Callable[[int], None], events: int = READABLE) -> None:
        """Call ``handler`` with the events of a descriptor as long as it has some. Raises OSError."""
        self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def change(self, descriptor: int, events: int) -> None:
        """Wait for other events of one that is watched; 0 for none but its end."""
        self._epoll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Before it is closed. Idempotent."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def handle(self, timeout_s: float, events_max: int) -> None:
        """What is ready, or becomes so within the time (-1: any)."""
        handlers = self._handlers
        for descriptor, events in self._epoll.poll(timeout_s, events_max):
            handler = handlers.get(descriptor)
            if handler is not None:  # closed by one before it
                try:
                    handler(events)
                except Exception as error:
                    say_failed("handler.failed", error)
                    self.forget(descriptor)


class Share(Watched):
    """Descriptors that together have one place among those of the loop, however many are ready: one container's."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop
        loop.watch(self._epoll.fileno(), self._ready)

    def later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """As ``Loop.later``."""
        return self._loop.later(delay_s, callback)

    def close(self) -> None:
        """The descriptors of others are theirs to close."""
        self._loop.forget(self._epoll.fileno())
        self._epoll.close()

    def _ready(self, events: int) -> None:
        self.handle(0, _SHARE_A_TURN)


class Loop(Watched):
    """The one of the process."""

    def __init__(self) -> None:
        super().__init__()
        self._timers: list[tuple[float, int, Timer]] = []
        self._timers_max, self._numbers = _TIMERS_MAX, itertools.count()
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.watch(self._wake, self._woken)

    def later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call it once, ``delay_s`` from now."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._numbers), timer))
        if len(self._timers) > self._timers_max:
            self._timers = [each for each in self._timers if each[2].callback is not None]
            heapq.heapify(self._timers)
            self._timers_max = max(_TIMERS_MAX, 2 * len(self._timers))
        return timer

    def call(self, callback: Callable[[], None]) -> None:
        """In the next turn. From any thread."""
        self._calls.append(callback)
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Until something is raised that is no Exception: SystemExit of a signal's handler."""
        while True:
            self.turn(self._wait_s())

    def turn(self, timeout_s: float) -> None:
        """One round: what is ready, or becomes so within the time (-1: any), and the timers that are over."""
        self.handle(timeout_s, _EVENTS_A_TURN)
        if self._timers:
            self._run_timers()

    def close(self) -> None:
        """The descriptors of others are theirs to close."""
        self._epoll.close()
        os.close(self._wake)

    def _wait_s(self) -> float:
        if not self._timers:
            return -1
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _run_timers(self) -> None:
        now_s = time.monotonic()
        for _ in range(_EVENTS_A_TURN):
            if not self._timers or self._timers[0][0] > now_s:
                break
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                try:
                    callback()
                except Exception as error:
                    say_failed("timer.failed", error)

    def _woken(self, events: int) -> None:
        os.eventfd_read(self._wake)
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception as error:
                say_failed("call.failed", error)
