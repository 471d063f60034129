"""Two small tools of the adapter: work that several callers share, and a stream that a thread reads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

from base.tasks import cancel_and_wait, wait_to_end
from base.threads import AbortedError

T = TypeVar("T")
Update = tuple[str, int, int]
"""Progress of shared work: what it does now, bytes done, bytes in all (0: unknown)."""
Listener = Callable[[Update], None]


class _Running(msgspec.Struct, Generic[T]):
    task: asyncio.Task[T]
    waiters: int = 0
    listeners: list[Listener] = msgspec.field(default_factory=list)
    last: Update | None = None
    dying: bool = False

    def publish(self, update: Update) -> None:
        self.last = update
        for listener in self.listeners:
            listener(update)


class SharedWork(Generic[T]):
    """Runs the work of a key once, for everybody who asks for it meanwhile.

    Invariants: at most one task per key; a caller that is cancelled leaves the others alone; when the last caller
    leaves, the task is cancelled and has ended before that caller's cancellation goes on.
    """

    def __init__(self) -> None:
        self._running: dict[str, _Running[T]] = {}

    async def run(self, key: str, work: Callable[[Listener], Awaitable[T]], *, listener: Listener | None = None) -> T:
        """Do ``work(publish)`` or join who does it already; ``listener`` gets what ``publish`` is given."""
        while (entry := self._running.get(key)) is not None and entry.dying:
            await asyncio.wait([entry.task])  # its files are its own until it has ended
        if entry is None:
            entry = self._start(key, work)
        entry.waiters += 1
        if listener is not None:
            entry.listeners.append(listener)
            if entry.last is not None:
                listener(entry.last)
        try:
            return await asyncio.shield(entry.task)
        finally:
            entry.waiters -= 1
            if listener is not None:
                entry.listeners.remove(listener)
            if entry.waiters == 0 and not entry.task.done():
                entry.dying = True
                await cancel_and_wait(entry.task)

    def is_running(self, key: str) -> bool:
        """Whether the key's work is under way, or has yet to end after it was cancelled."""
        return key in self._running

    def _start(self, key: str, work: Callable[[Listener], Awaitable[T]]) -> _Running[T]:
        async def body() -> T:
            try:
                return await work(lambda update: entry.publish(update))
            finally:
                del self._running[key]

        entry = _Running(asyncio.get_running_loop().create_task(body(), name=f"images:{key}"))
        self._running[key] = entry
        return entry

    async def close(self) -> None:
        """Cancel all work and wait for its end."""
        for entry in list(self._running.values()):
            entry.dying = True
            await cancel_and_wait(entry.task)


class BytePipe:
    """Feeds an asynchronous byte stream to a reader in a thread: ``read(n)`` of a binary file, at most ``limit`` bytes ahead."""

    def __init__(self, *, limit_bytes: int = 4 << 20) -> None:
        self._chunks: list[bytes] = []
        self._size = 0
        self._limit = limit_bytes
        self._ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def read(self, size: int = -1) -> bytes:
        """Blocking; any number of bytes up to ``size``, b"" at the end. Raises what the source raised."""
        with self._changed:
            while not self._chunks and not self._ended and self._error is None:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            if not self._chunks:
                return b""
            data = self._chunks.pop(0)
            if 0 <= size < len(data):
                self._chunks.insert(0, data[size:])
                data = data[:size]
            self._size -= len(data)
        self._loop.call_soon_threadsafe(self._room.set)
        return data

    async def feed(self, source: AsyncIterable[bytes]) -> None:
        """Pump ``source`` to its end; its exceptions appear in the reader."""
        try:
            async for chunk in source:
                await self._put(bytes(chunk))
        except BaseException as error:
            self.fail(error if isinstance(error, Exception) else AbortedError())
            raise
        with self._changed:
            self._ended = True
            self._changed.notify()

    async def _put(self, chunk: bytes) -> None:
        while True:
            self._room.clear()
            with self._changed:
                if self._size < self._limit:
                    if chunk:
                        self._chunks.append(chunk)
                        self._size += len(chunk)
                        self._changed.notify()
                    return
            await self._room.wait()

    def fail(self, error: BaseException) -> None:
        """Make the reader raise ``error``."""
        with self._changed:
            self._error = error
            self._changed.notify()


async def run_with_stream(source: AsyncIterable[bytes], work: Callable[[BytePipe], T]) -> T:
    """Run ``work(pipe)`` in a thread while ``source`` is pumped into the pipe.

    If ``work`` ends early, the rest of the source is left unread. Errors of the source come out of ``work`` unless it
    handles them; cancellation ends both before it goes on.
    """
    pipe = BytePipe()
    feeder = asyncio.ensure_future(pipe.feed(source))
    worker = asyncio.ensure_future(asyncio.to_thread(work, pipe))
    try:
        return await asyncio.shield(worker)
    finally:
        pipe.fail(AbortedError())
        feeder.cancel()
        await wait_to_end(feeder, worker)
