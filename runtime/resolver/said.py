"""What the resolver logs: JSON lines on stderr as the daemon writes them, few of each kind however often it happens.

structlog would be two thirds of this process's memory, and what a container can cause must not fill the host's log.
"""

from __future__ import annotations

import contextlib
import os
import time

import msgspec

_LINES_MAX, _WITHIN_S = 10, 60.0
_lines: dict[str, tuple[float, int]] = {}


def say(event: str, level: str = "info", **fields: object) -> None:
    """At most ten lines a minute of one event; the next one that is written says how many were not."""
    now_s = time.monotonic()
    since_s, count = _lines.get(event, (now_s, 0))
    if now_s - since_s > _WITHIN_S:
        if count > _LINES_MAX:
            fields["unsaid"] = count - _LINES_MAX
        since_s, count = now_s, 0
    _lines[event] = since_s, count + 1
    if count < _LINES_MAX:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {**fields, "event": f"resolver.{event}", "level": level, "timestamp": stamp}
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(2, msgspec.json.encode(line, enc_hook=str) + b"\n")


def say_failed(event: str, error: Exception) -> None:
    """A defect of ours, with where it is."""
    import traceback  # here: a megabyte that is seldom needed

    trace = "".join(traceback.format_exception(error, limit=-6))
    say(event, "error", reason=repr(error), exception=trace)
