"""Filters and times in queries, without HTTP.

Filters come as ``{"k": {"v": true}}`` (CLI) or ``{"k": ["v"]}`` (docker-py) (feature W04).

Source: moby ``api/types/filters/parse.go``, ``api/types/time/timestamp.go``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import msgspec

from api.errors import BadRequestError

NANOSECONDS = 1_000_000_000

Filters = dict[str, list[str]]

_TIMESTAMP = re.compile(r"(-?\d{1,11})(?:\.(\d{1,9}))?")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def timestamp_ns(text: str, name: str) -> int:
    """``seconds[.nanoseconds]`` since the epoch as nanoseconds; 0 for an empty text. Raises: BadRequestError."""
    if not text:
        return 0
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise BadRequestError(f"invalid value for {name}: {text!r}, want seconds[.nanoseconds] since the epoch")
    return int(match[1]) * NANOSECONDS + int((match[2] or "").ljust(9, "0"))


def parse_filters(text: str, known: Collection[str] | None = None) -> Filters:
    """The filters of a request: values of one key are alternatives, keys must all match.

    Raises: BadRequestError for what is no filter, and for a key that is not in ``known`` (when given).
    """
    if not text:
        return {}
    try:
        decoded = msgspec.json.decode(text)
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


def prune_until_s(filters: Mapping[str, Sequence[str]], now_s: float | None = None) -> float:
    """The ``until`` filter as seconds since the epoch, infinity when absent.

    A time (``2026-01-02T15:04:05Z``, seconds) or how long ago (``1h30m``). Raises: BadRequestError.
    """
    values = filters.get("until", ())
    if not values:
        return float("inf")
    if len(values) > 1:
        raise BadRequestError("more than one until filter specified")
    text = values[0]
    if _DURATION.fullmatch(text):
        age_s = sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION_PART.findall(text))
        return (time.time() if now_s is None else now_s) - age_s
    if _TIMESTAMP.fullmatch(text):
        return timestamp_ns(text, "until") / NANOSECONDS
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadRequestError(f"invalid filter 'until={text}'") from None
    return moment.timestamp() if moment.tzinfo else moment.astimezone().timestamp()


def matches_label(labels: Mapping[str, str], wanted: str) -> bool:
    """Whether ``labels`` has ``key`` or ``key=value``."""
    key, separator, value = wanted.partition("=")
    return key in labels and (not separator or labels[key] == value)


def matches_any_label(labels: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Whether one of the label filters holds."""
    return any(matches_label(labels, one) for one in wanted)
