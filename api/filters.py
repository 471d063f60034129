"""Filters and times in queries, without HTTP.

Filters come as ``{"k": {"v": true}}`` (CLI) or ``{"k": ["v"]}`` (docker-py) (feature W04).

Source: moby ``api/types/filters/parse.go``, ``api/types/time/timestamp.go``.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from api.errors import BadRequestError
from base import times
from base.json_text import read_json

Filters = dict[str, list[str]]


def timestamp_ns(text: str, name: str) -> int:
    """``seconds[.nanoseconds]`` since the epoch as nanoseconds; 0 for an empty text. Raises: BadRequestError."""
    if not text:
        return 0
    try:
        return times.timestamp_ns(text)
    except ValueError as error:
        raise BadRequestError(f"invalid value for {name}: {error}") from None


def parse_filters(text: str, known: Collection[str] | None = None) -> Filters:
    """The filters of a request: values of one key are alternatives, keys must all match.

    Raises: BadRequestError for what is no filter, and for a key that is not in ``known`` (when given).
    """
    if not text:
        return {}
    try:
        decoded = read_json(text, type=object)
    except msgspec.DecodeError as error:
        raise BadRequestError(f"invalid filter: {error}") from None
    if not isinstance(decoded, dict):
        raise BadRequestError(f"invalid filter: want an object, got {text!r}")
    filters = {key: _filter_values(key, values) for key, values in decoded.items()}
    for key in filters:
        if known is not None and key not in known:
            raise BadRequestError(f"invalid filter '{key}'")
    return filters


def _filter_values(key: str, values: object) -> list[str]:
    if isinstance(values, dict):
        return list(values)
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return values
    raise BadRequestError(f"invalid filter: '{key}' wants a list of strings or an object of booleans")
