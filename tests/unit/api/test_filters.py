"""Times and filters without HTTP."""

from __future__ import annotations

import pytest

from api.errors import BadRequestError
from api.filters import parse_filters, timestamp_ns


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("1700000000", 1_700_000_000_000_000_000), ("1.5", 1_500_000_000), ("1.000000001", 1_000_000_001)],
)
def test_timestamps_are_seconds_with_a_fraction(text: str, expected: int) -> None:
    assert timestamp_ns(text, "since") == expected


@pytest.mark.parametrize("text", ["noon", "1.", "1.1234567891", "1e9", " 1", "9" * 12, "2026-01-01"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(BadRequestError, match="since"):
        timestamp_ns(text, "since")


def test_filters_are_limited_to_what_the_route_knows() -> None:
    assert parse_filters('{"a":{"x":true,"y":true}}', {"a"}) == {"a": ["x", "y"]}
    with pytest.raises(BadRequestError, match="invalid filter 'b'"):
        parse_filters('{"b":["x"]}', {"a"})
