"""Times and labels as filters write them."""

from __future__ import annotations

import pytest

from base.labels import has_any_label, has_labels
from base.times import moment_s


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1h30m", 10_000 - 5400), ("10s", 9990), ("1.5h", 10_000 - 5400), ("500", 500), ("1970-01-01T00:01:00Z", 60)],
)
def test_a_moment_is_a_time_or_an_age(text: str, expected: float) -> None:
    assert moment_s(text, 10_000) == expected


@pytest.mark.parametrize("text", ["soon", "1d", "", "-1h"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="isoformat"):
        moment_s(text, 10_000)


def test_label_filters_match_key_or_pair() -> None:
    labels = {"tier": "front", "empty": ""}
    assert has_any_label(labels, ["tier"])
    assert has_any_label(labels, ["no", "tier=front"])
    assert has_any_label(labels, ["empty="])
    assert not has_any_label(labels, ["tier=back", "other"])
    assert has_labels(labels, ["tier=front", "empty"])
    assert not has_labels(labels, ["tier=front", "other"])
