"""Keys by a value that changes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from manager.model.ordered import Ordered

changes = st.lists(st.tuples(st.integers(0, 9), st.one_of(st.none(), st.integers(0, 20))), max_size=400)


@given(changes, st.integers(0, 12))
def test_it_is_as_sorted_whatever_was_changed(history: list[tuple[int, int | None]], count: int) -> None:
    ordered: Ordered[int, tuple[int, int]] = Ordered()
    values: dict[int, tuple[int, int]] = {}
    for key, value in history:
        ordered.set(key, None if value is None else (value, key))
        if value is None:
            values.pop(key, None)
        else:
            values[key] = (value, key)
        assert len(ordered) == len(values)
    in_order = sorted(values, key=values.__getitem__)
    assert ordered.firsts(count) == in_order[:count]
    assert ordered.firsts(count) == in_order[:count], "they stay"
    taken = []
    while (first := ordered.pop()) is not None:
        taken.append(first)
    assert taken == [(values[key], key) for key in in_order]
    assert not ordered


def test_of_equal_values_the_one_set_first_is_first() -> None:
    ordered: Ordered[str, int] = Ordered()
    for key in ("b", "a", "c"):
        ordered.set(key, 1)
    assert ordered.firsts(3) == ["b", "a", "c"]


def test_what_was_replaced_does_not_pile_up() -> None:
    ordered: Ordered[str, int] = Ordered()
    for value in range(10_000):
        ordered.set("a", value)
    assert len(ordered._heap) < 100
    assert ordered.first() == (9_999, "a")
