"""Durations in the words of docker/go-units."""

from __future__ import annotations

import pytest

from base.durations import human_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "Less than a second"),
        (0.5, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (59.9, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (120, "2 minutes"),
        (150, "2 minutes"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (5399, "About an hour"),
        (5400, "2 hours"),
        (7200, "2 hours"),
        (9000, "3 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (13.9 * 86400, "13 days"),
        (14 * 86400, "2 weeks"),
        (6_000_000, "2 months"),
        (60 * 86400, "2 months"),
        (729 * 86400, "24 months"),
        (70_000_000, "2 years"),
        (731 * 86400, "2 years"),
    ],
)
def test_ages_are_those_of_go_units(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text
