"""``--filter key=value``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any  # Any: values of the API's JSON

from cli.commands.groups import FlagValueError


def parse_filters(texts: Sequence[str]) -> dict[str, Any]:
    """Key to list of values; several of one key are alternatives."""
    found: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise FlagValueError(
                f'invalid argument "{text}" for "-f, --filter" flag: bad format of filter (expected name=value)'
            )
        found.setdefault(key.strip().lower(), []).append(value.strip())
    return found
