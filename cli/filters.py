"""``--filter key=value``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any  # Any: values of the API's JSON


def name_and_value(text: str) -> tuple[str, str]:
    """One filter. Raises: ValueError."""
    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError("bad format of filter (expected name=value)")
    return key.strip().lower(), value.strip()


def parse_filters(texts: Sequence[str]) -> dict[str, Any]:
    """Key to list of values; several of one key are alternatives."""
    found: dict[str, Any] = {}
    for key, value in map(name_and_value, texts):
        found.setdefault(key, []).append(value)
    return found
