"""Moments as conmon and the API write them, as numbers."""

from __future__ import annotations

import calendar
import re
import time


def parse_time(text: str) -> int:
    """Nanoseconds since the epoch of ``2026-11-24T09:16:30.123456789+00:00``. Raises ValueError."""
    seconds = calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))
    rest = text[19:]
    nanoseconds = 0
    if rest.startswith("."):
        digits = re.match(r"\.(\d+)", rest)
        if digits is None:
            raise ValueError(text)
        nanoseconds = int(digits[1].ljust(9, "0")[:9])
        rest = rest[digits.end() :]
    if rest not in ("Z", "z", ""):
        hours, minutes = int(rest[1:3]), int(rest[4:6])
        seconds -= (hours * 3600 + minutes * 60) * (-1 if rest[0] == "-" else 1)
    return seconds * 1_000_000_000 + nanoseconds
