"""A value in a Compose file at its place: read as the type that belongs there, or refused with file and line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeVar

from cli import values
from cli.composefile.source import ManifestError, Place

T = TypeVar("T")


class Cursor:
    """One value. Every reading method raises ManifestError when the value is of another kind.

    Attributes:
        value: None when the key is absent or empty.
    """

    def __init__(self, place: Place, value: object) -> None:
        self.place, self.value = place, value

    def __bool__(self) -> bool:
        """Whether there is a value."""
        return self.value is not None

    def error(self, message: str) -> ManifestError:
        return self.place.error(message)

    def _inner(self, key: str | int, value: object) -> Cursor:
        return Cursor(self.place.inner(key), value)

    def instead(self, value: object) -> Cursor:
        """Another value at the same place: a short form in its long one."""
        return Cursor(self.place, value)

    # ------------------------------------------------------------------ containers

    def entries(self) -> Iterator[tuple[str, Cursor]]:
        """Keys and values of a mapping whose keys are free."""
        if self.value is None:
            return
        if not isinstance(self.value, dict):
            raise self.error("must be a mapping")
        for key, value in self.value.items():
            yield key, self._inner(key, value)

    def check(self, known: Collection[str], *, unread: Collection[str] = ()) -> list[Place]:
        """See that a mapping has only known keys and ``x-`` ones.

        Args:
            unread: keys of the format that the model has not.

        Returns:
            The places of those that are there.
        """
        found = []
        for key, inner in self.entries():
            if key in unread:
                found.append(inner.place)
            elif key not in known and not key.startswith("x-"):
                raise inner.error("unknown key")
        return found

    def get(self, key: str, known: Collection[str] | None = None) -> Cursor:
        """The value of a key; ``known`` are the keys that the mapping there may have."""
        if self.value is not None and not isinstance(self.value, dict):
            raise self.error("must be a mapping")
        inner = self._inner(key, (self.value or {}).get(key))
        if known is not None:
            inner.check(known)
        return inner

    def items(self) -> list[Cursor]:
        """Items of a list."""
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            raise self.error("must be a list")
        return [self._inner(index, value) for index, value in enumerate(self.value)]

    # ------------------------------------------------------------------ scalars

    def text(self, default: str = "") -> str:
        if self.value is None:
            return default
        if isinstance(self.value, dict | list):
            raise self.error("must be text")
        return scalar_text(self.value)

    def optional_text(self) -> str | None:
        """As ``text``; None when the value is absent."""
        return self.text() if self else None

    def parse(self, function: Callable[[str], T]) -> T:
        """The text as ``function`` reads it; its ValueError becomes a refusal."""
        text = self.text()
        try:
            return function(text)
        except ValueError as error:
            raise self.error(str(error)) from error

    def integer(self, least: int = 0) -> int:
        text = self.text()
        if isinstance(self.value, bool) or not text.removeprefix("-").isdecimal() or len(text) > 19:
            raise self.error(f"want an integer, got {text[:40]!r}")
        if int(text) < least:
            raise self.error(f"must not be below {least}, got {text}")
        return int(text)

    def duration_ns(self) -> int:
        """Nanoseconds of "1m30s"."""
        return self.parse(values.duration_ns)

    def size_bytes(self) -> int:
        """Bytes of "64m"."""
        return self.parse(values.size_bytes)

    def boolean(self) -> bool:
        """True or false, also as the text that a variable brought in; an absent value is false."""
        if self.value is None or isinstance(self.value, bool):
            return bool(self.value)
        if self.value in ("true", "false"):
            return bool(self.value == "true")
        raise self.error(f"want true or false, got {self.text()[:40]!r}")

    def read(self, reader: Callable[[Cursor], T]) -> T | None:
        """What ``reader`` makes of it; None when the value is absent."""
        return reader(self) if self else None

    def choice(self, *words: str) -> str:
        text = self.text()
        if text not in words:
            raise self.error(f"want one of {', '.join(words)}, got {text[:40]!r}")
        return text

    # ------------------------------------------------------------------ texts

    def texts(self) -> list[str]:
        """A list of texts, or one text."""
        if self.value is None:
            return []
        return [item.text() for item in self.items()] if isinstance(self.value, list) else [self.text()]

    def text_map(self) -> dict[str, str]:
        """Labels and the like: a mapping, or a list of ``key=value``."""
        return {key: item or "" for key, item in self.optional_map().items()}

    def optional_map(self) -> dict[str, str | None]:
        """As ``text_map``; a key without a value has None."""
        if isinstance(self.value, list):
            return assignments(item.text() for item in self.items())
        return {key: item.text() if item else None for key, item in self.entries()}


def scalar_text(value: object) -> str:
    """A scalar as Docker's command writes it into the environment; a whole number has no ``.0``."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def assignments(lines: Iterator[str] | Sequence[str]) -> dict[str, str | None]:
    """``key=value`` lines as a mapping; None for a key alone."""
    return {key: value if separator else None for key, separator, value in (line.partition("=") for line in lines)}
