"""Times and filters without HTTP."""

from __future__ import annotations

import pytest

from api.errors import BadRequestError
from api.filters import matches_any_label, parse_filters, prune_until_s, timestamp_ns


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1h30m", 10_000 - 5400), ("10s", 9990), ("1.5h", 10_000 - 5400), ("500", 500), ("1970-01-01T00:01:00Z", 60)],
)
def test_prune_until_is_a_time_or_an_age(text: str, expected: float) -> None:
    assert prune_until_s({"until": [text]}, now_s=10_000) == expected


def test_prune_until_is_given_once_and_makes_sense() -> None:
    assert prune_until_s({}) == float("inf")
    for values in (["1h", "2h"], ["soon"], ["1d"]):
        with pytest.raises(BadRequestError):
            prune_until_s({"until": values})


def test_filters_are_limited_to_what_the_route_knows() -> None:
    assert parse_filters('{"a":{"x":true,"y":true}}', {"a"}) == {"a": ["x", "y"]}
    with pytest.raises(BadRequestError, match="invalid filter 'b'"):
        parse_filters('{"b":["x"]}', {"a"})


def test_label_filters_match_key_or_pair() -> None:
    labels = {"tier": "front", "empty": ""}
    assert matches_any_label(labels, ["tier"])
    assert matches_any_label(labels, ["no", "tier=front"])
    assert matches_any_label(labels, ["empty="])
    assert not matches_any_label(labels, ["tier=back", "other"])
