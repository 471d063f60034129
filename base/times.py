"""Times as the Engine API has them, in answers, filters and queries."""

from __future__ import annotations

import re
from datetime import UTC, datetime

NANOSECONDS = 1_000_000_000

_TIMESTAMP = re.compile(r"(-?\d{1,11})(?:\.(\d{1,9}))?")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def rfc3339(since_epoch_ns: int) -> str:
    """UTC with nine digits, as in inspect and ``docker logs -t``."""
    seconds, rest = divmod(since_epoch_ns, NANOSECONDS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def timestamp_ns(text: str) -> int:
    """``seconds[.nanoseconds]`` since the epoch as nanoseconds. Raises: ValueError."""
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r}: want seconds[.nanoseconds] since the epoch")
    return int(match[1]) * NANOSECONDS + int((match[2] or "").ljust(9, "0"))


def moment_s(text: str, now_s: float) -> float:
    """A timestamp, a time (RFC 3339; the host's zone without one) or a Go duration before ``now_s``, since the epoch.

    Source: moby ``api/types/time/timestamp.go``. Raises: ValueError.
    """
    if _DURATION.fullmatch(text):
        return now_s - sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION_PART.findall(text))
    if _TIMESTAMP.fullmatch(text):
        return timestamp_ns(text) / NANOSECONDS
    moment = datetime.fromisoformat(text)
    return moment.timestamp() if moment.tzinfo else moment.astimezone().timestamp()
