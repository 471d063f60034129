"""Telling others what changed in the store."""

from __future__ import annotations

import asyncio  # noqa: TID251 - subscribers wait; nothing here applies
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from manager.store.kinds import AnyKind
from manager.store.objects import StoredObject

WATCH_CHANGES_MAX = 20_000
"""Changes a watch holds for a reader that lags; beyond that it gets one ``Resync`` in their place."""


@dataclass(slots=True)  # not frozen, which makes it three times as dear: there is one for each object of each entry
class Change:
    """One object changed. Nobody changes it.

    Attributes:
        kind: what it is.
        id: the object's ID.
        old: what it was; None when it is new.
        new: what it is; None when it was removed.
        index: log index of the entry that did it.
    """

    kind: AnyKind
    id: str
    old: StoredObject | None
    new: StoredObject | None
    index: int


@dataclass(frozen=True, slots=True)
class Resync:
    """The reader was too slow and changes were dropped: look at everything again."""

    index: int


class Watch:
    """An asynchronous iterator over what changes, in order, as much at a time as has come together.

    Close it (or use it as a context manager) when done; it then ends. One reader at a time.
    """

    def __init__(self, kinds: frozenset[AnyKind], forget: Callable[[Watch], None]) -> None:
        self._kinds = kinds
        self._forget = forget
        self._changes: list[Change] = []
        self._resync: Resync | None = None
        self._ready = asyncio.Event()
        self._closed = False

    def offer(self, changes: Sequence[Change]) -> None:
        """Take note of committed changes (called by the store)."""
        mine = [change for change in changes if change.kind in self._kinds] if self._kinds else changes
        if not mine:
            return
        if self._resync is not None or len(self._changes) + len(mine) > WATCH_CHANGES_MAX:
            self._changes.clear()
            self._resync = Resync(mine[-1].index)
        else:
            self._changes.extend(mine)
        self._ready.set()

    def close(self) -> None:
        self._closed = True
        self._forget(self)
        self._ready.set()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> list[Change] | Resync:
        await self._ready.wait()
        if self._closed:
            raise StopAsyncIteration
        self._ready.clear()
        if self._resync is not None:
            resync, self._resync = self._resync, None
            return resync
        changes, self._changes = self._changes, []
        return changes

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
