"""Events of the local engine: what happened to a container, image, network or volume, in Engine API spelling.

Two kinds of reader:

- API clients subscribe to a bounded queue. A reader that is too slow loses its subscription (``closed`` with
  ``overflowed`` set) rather than growing without bound or slowing the engine.
- The worker's agent registers a plain callback, called synchronously on the event loop at the moment of the change.

The last 256 events are kept for ``since`` (moby daemon/events, ``eventsLimit``).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec
import structlog

log = structlog.get_logger(__name__)

RING_SIZE = 256
QUEUE_SIZE = 1024


class Actor(msgspec.Struct, frozen=True):
    """The object an event is about: its ID and the attributes that filters look at."""

    ID: str
    Attributes: dict[str, str]


class EventMessage(msgspec.Struct, frozen=True):
    """One line of ``docker events``: ``time`` in seconds, ``timeNano`` in nanoseconds since the epoch."""

    Type: str
    Action: str
    Actor: Actor
    scope: str
    time: int
    timeNano: int  # noqa: N815 - the API's spelling


class Subscription:
    """One reader of the bus: iterate over it, then ``close()``.

    Iteration ends after ``close()``, or when the reader fell more than 1024 events behind (``overflowed``).
    """

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._queue: asyncio.Queue[EventMessage | None] = asyncio.Queue(maxsize=QUEUE_SIZE + 1)
        self.overflowed = False

    def push(self, message: EventMessage) -> None:
        """Called by the bus."""
        if self._queue.qsize() >= QUEUE_SIZE:
            self.overflowed = True
            log.warning("subscriber.dropped", queued=self._queue.qsize())
            self.close()
            return
        self._queue.put_nowait(message)

    def close(self) -> None:
        """Stop receiving; what is queued can still be read. Idempotent."""
        if self._bus.discard(self):
            self._queue.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[EventMessage]:
        while (message := await self._queue.get()) is not None:
            yield message


class EventBus:
    """Publishes events to subscribers and callbacks, and remembers the last 256."""

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._ring: deque[EventMessage] = deque(maxlen=RING_SIZE)
        self._subscriptions: set[Subscription] = set()
        self._callbacks: list[Callable[[EventMessage], None]] = []

    def publish(self, kind: str, action: str, object_id: str, attributes: Mapping[str, str] | None = None) -> None:
        """Tell everybody. ``kind`` is container, image, network, volume; ``action`` as in ``docker events``."""
        now = self._clock_ns()
        actor = Actor(ID=object_id, Attributes=dict(attributes or {}))
        message = EventMessage(kind, action, actor, "local", now // 1_000_000_000, now)
        self._ring.append(message)
        for subscription in tuple(self._subscriptions):
            subscription.push(message)
        for callback in tuple(self._callbacks):
            callback(message)

    def recent(self, since_ns: int = 0) -> list[EventMessage]:
        """The kept events at or after ``since_ns``, oldest first."""
        return [message for message in self._ring if message.timeNano >= since_ns]

    def subscribe(self) -> Subscription:
        """A subscription that starts now; together with ``recent()`` in the same step it misses nothing."""
        subscription = Subscription(self)
        self._subscriptions.add(subscription)
        return subscription

    def discard(self, subscription: Subscription) -> bool:
        """Forget a subscription; true when it was known."""
        known = subscription in self._subscriptions
        self._subscriptions.discard(subscription)
        return known

    def on_event(self, callback: Callable[[EventMessage], None]) -> Callable[[], None]:
        """Call ``callback`` for each event, on the loop, at once; it must neither block nor raise.

        Returns a function that ends it.
        """
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def close(self) -> None:
        """End every subscription."""
        for subscription in tuple(self._subscriptions):
            subscription.close()
