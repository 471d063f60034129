"""The shell patterns of the ``reference`` filter: Go's ``path.Match``, in time that no pattern can make long.

``*`` stands for any characters but ``/``, ``?`` for one of them, ``[a-z]`` and ``[^a-z]`` for one of a class, ``\\x`` for x.
What lies between two stars has a fixed length, and its first place that fits is always good enough: a later one leaves the
next star less. So a star never looks back once what follows it was found (an atomic group); looking back at every star is
exponential, as it takes each division of the name among them.

Source: Go ``path/match.go``; distribution/reference ``FamiliarMatch``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from runtime.images.errors import InvalidArgumentError
from runtime.images.reference import Reference

_STAR = "[^/]*?"


class Pattern:
    """One value of the filter. Raises InvalidArgumentError for what is no pattern."""

    def __init__(self, text: str) -> None:
        chunks = _chunks(text)
        first, last = chunks[0], chunks[-1] if len(chunks) > 1 else None
        between = "".join(f"(?>{_STAR}{chunk})" for chunk in chunks[1:-1])
        # The last one has one place, the end.
        self._regex = re.compile(first + between + ("" if last is None else f"[^/]*{last}"), re.DOTALL)

    def matches(self, reference: Reference) -> bool:
        """Whether the familiar name fits, with its tag and digest or without."""
        return any(self._regex.fullmatch(text) for text in (reference.familiar, reference.familiar_name))


def matches_any(patterns: Iterable[Pattern], references: Iterable[Reference]) -> bool:
    """Whether one of the patterns fits one of the references."""
    names = list(references)
    return any(pattern.matches(name) for pattern in patterns for name in names)


def _chunks(pattern: str) -> list[str]:
    """What stands before, between and behind the stars, as regular expressions of fixed length."""
    chunks, at, after_star = [""], 0, False
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            if not after_star:
                chunks.append("")
            after_star = True
            continue
        after_star = False
        if char == "?":
            chunks[-1] += "[^/]"
        elif char == "[":
            text, at = _class(pattern, at)
            chunks[-1] += text
        else:
            if char == "\\":
                char, at = _character(pattern, at - 1)
            chunks[-1] += re.escape(char)
    return chunks


def _class(pattern: str, at: int) -> tuple[str, int]:
    """The class whose content begins at ``at``, and the place behind its bracket."""
    negated = pattern[at : at + 1] == "^"
    at += negated
    ranges: list[str] = []
    while not (ranges and pattern[at : at + 1] == "]"):
        if pattern[at : at + 1] in ("", "-", "]"):
            raise _bad(pattern)
        low, at = _character(pattern, at)
        high = low
        if pattern[at : at + 1] == "-":
            if pattern[at + 1 : at + 2] in ("", "-", "]"):
                raise _bad(pattern)
            high, at = _character(pattern, at + 1)
        ranges.append(f"{re.escape(low)}-{re.escape(high)}" if low <= high else "")
    content = "".join(ranges)
    if not content:  # [z-a] is empty
        return ("(?s:.)" if negated else "(?!)"), at + 1
    return f"[{'^' if negated else ''}{content}]", at + 1


def _character(pattern: str, at: int) -> tuple[str, int]:
    """The character at ``at``, a backslash before it taken off, and the place behind it."""
    if pattern[at] == "\\":
        at += 1
        if at == len(pattern):
            raise _bad(pattern)
    return pattern[at], at + 1


def _bad(pattern: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"invalid filter 'reference={pattern}': syntax error in pattern")
