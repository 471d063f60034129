"""Signal names as the API takes them: "SIGTERM", "term", "15", "RTMIN+3"."""

from __future__ import annotations

import re
import signal

from base.numbers import natural
from runtime.errors import InvalidParameterError

_REALTIME = re.compile(r"RTM(IN|AX)([+-][0-9]{1,3})?")


def parse(text: str) -> int:
    """Number of a signal. Raises InvalidParameterError with dockerd's text."""
    name = text.strip().upper().removeprefix("SIG")
    if number := natural(name, largest=signal.NSIG - 1):
        return number
    if match := _REALTIME.fullmatch(name):
        base = signal.SIGRTMIN if match[1] == "IN" else signal.SIGRTMAX
        realtime = base + int(match[2] or 0)
        if signal.SIGRTMIN <= realtime <= signal.SIGRTMAX:
            return realtime
    found = signal.__dict__.get(f"SIG{name}", 0)
    if not isinstance(found, signal.Signals):
        raise InvalidParameterError(f"Invalid signal: {text[:200]}")
    return int(found)
