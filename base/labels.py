"""Labels as filters name them: ``key``, or ``key=value``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    """Whether ``key`` is there, with that value where one is given (``key=`` wants an empty one)."""
    key, separator, value = wanted.partition("=")
    return key in labels and (not separator or labels[key] == value)


def has_labels(labels: Mapping[str, str], wanted: Iterable[str]) -> bool:
    """Whether all of them are there."""
    return all(has_label(labels, one) for one in wanted)


def has_any_label(labels: Mapping[str, str], wanted: Iterable[str]) -> bool:
    """Whether one of them is there."""
    return any(has_label(labels, one) for one in wanted)
