"""Signal names as the API takes them: "SIGTERM", "term", "15", "RTMIN+3"."""

from __future__ import annotations

import re
import signal

from runtime.errors import InvalidParameterError

_REALTIME = re.compile(r"RTM(IN|AX)([+-]\d+)?")


def parse(text: str) -> int:
    """Number of a signal. Raises InvalidParameterError with dockerd's text."""
    name = text.strip().upper().removeprefix("SIG")
    if name.isdecimal() and 0 < int(name) < signal.NSIG:
        return int(name)
    if match := _REALTIME.fullmatch(name):
        base = signal.SIGRTMIN if match[1] == "IN" else signal.SIGRTMAX
        number = base + int(match[2] or 0)
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
    number = signal.__dict__.get(f"SIG{name}", 0)
    if not isinstance(number, signal.Signals):
        raise InvalidParameterError(f"Invalid signal: {text}")
    return int(number)
