from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.backoff import Backoff


def test_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(0.1, 1.0)
    assert [round(backoff.next_s(), 3) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_delays_begin_again_after_success() -> None:
    backoff = Backoff(1.0, 60.0, factor=1.5)
    assert [backoff.next_s() for _ in range(3)] == [1.0, 1.5, 2.25]
    backoff.reset()
    assert [backoff.next_s() for _ in range(2)] == [1.0, 1.5]


@pytest.mark.parametrize(("sample", "delays"), [(0.0, [0.5, 1.0, 2.0, 2.0]), (0.5, [0.75, 1.5, 3.0, 3.0])])
def test_a_sample_says_where_between_its_bounds_a_delay_lies(sample: float, delays: list[float]) -> None:
    backoff = Backoff(1.0, 4.0, jitter=(0.5, 1.0))
    assert [backoff.next_s(sample) for _ in range(4)] == delays


@given(samples=st.lists(st.floats(0.0, 1.0), max_size=2000))
def test_no_delay_is_longer_than_the_longest_or_shorter_than_the_first_may_be(samples: list[float]) -> None:
    backoff = Backoff(0.1, 8.0, jitter=(0.75, 1.25))
    assert all(0.075 <= backoff.next_s(sample) <= 8.0 for sample in samples)
