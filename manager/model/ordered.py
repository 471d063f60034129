"""Keys in the order of a value that changes: what is due next, which slot is the next to go."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Any, Generic, Protocol, TypeVar


class _Comparable(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...  # Any: of its own type; protocols cannot say so


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=_Comparable)

_SPARE_MAX = 64


class Ordered(Generic[K, V]):
    """A value for each key, smallest first; of equal values the one that was set first.

    A change costs the logarithm of their number. What was replaced stays in the heap until it comes up, or until such
    entries are more than those that count.
    """

    __slots__ = ("_heap", "_set", "_values")

    def __init__(self) -> None:
        self._values: dict[K, V] = {}
        self._heap: list[tuple[V, int, K]] = []
        self._set = 0

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[K]:
        """Every key, in no particular order."""
        return iter(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ordered) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]  # it changes

    def get(self, key: K) -> V | None:
        return self._values.get(key)

    def set(self, key: K, value: V | None) -> None:
        """Give the key that value, whatever it had; None takes it out."""
        if value is None:
            self._values.pop(key, None)
        elif self._values.get(key) != value:
            self._values[key] = value
            self._set += 1
            heapq.heappush(self._heap, (value, self._set, key))
        if len(self._heap) > 2 * len(self._values) + _SPARE_MAX:
            # Each key once: one whose value came back stands there twice.
            counting = {entry[2]: entry for entry in sorted(self._heap, reverse=True) if self._counts(entry)}
            self._heap = sorted(counting.values())

    def _counts(self, entry: tuple[V, int, K]) -> bool:
        return entry[2] in self._values and self._values[entry[2]] == entry[0]

    def first(self) -> tuple[V, K] | None:
        """The smallest value and its key, or None."""
        heap = self._heap
        while heap:
            if self._counts(heap[0]):
                return heap[0][0], heap[0][2]
            heapq.heappop(heap)
        return None

    def pop(self) -> tuple[V, K] | None:
        """Take the first out; returns it, or None."""
        first = self.first()
        if first is not None:
            heapq.heappop(self._heap)
            del self._values[first[1]]
        return first

    def firsts(self, count: int) -> list[K]:
        """The first ``count`` keys, in order; they stay."""
        taken: list[tuple[V, K]] = []
        while len(taken) < count and (first := self.pop()) is not None:
            taken.append(first)
        for value, key in taken:
            self.set(key, value)
        return [key for _, key in taken]
