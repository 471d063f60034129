"""Numbers of any length and script."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.numbers import natural


@given(number=st.integers(0, 300), zeros=st.integers(0, 5), largest=st.integers(0, 300))
def test_what_is_in_range_is_read(number: int, zeros: int, largest: int) -> None:
    assert natural("0" * zeros + str(number), largest=largest) == (number if number <= largest else None)


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", " 1", "1 ", "1_000", "1.0", "０", "१", "²", "x", "9" * 5000, "9" * 50]
)  # digits of other scripts
def test_what_is_no_number_or_larger_is_none(text: str) -> None:
    assert natural(text, largest=2**64) is None


def test_zeros_before_a_number_are_as_many_as_one_likes() -> None:
    assert natural("0" * 5000 + "7", largest=9) == 7
