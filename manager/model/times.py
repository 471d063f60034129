"""Times as decisions count them: seconds since the epoch, handed in by whoever has a clock."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from manager import constants


def to_timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch as a message."""
    whole, nanos = divmod(round(seconds * 1e9), 1_000_000_000)
    return Timestamp(seconds=whole, nanos=nanos)


def from_timestamp(timestamp: Timestamp) -> float:
    """A message as seconds since the epoch."""
    return timestamp.seconds + timestamp.nanos / 1e9


def is_ahead(at: float, now: float) -> bool:
    """Whether ``at``, when something happened, is still to come: the clock that wrote it was set back since.

    What is to happen some time after it would wait for as long as the clock was wrong.
    """
    return at > now + constants.CLOCK_SKEW_S_MAX
