"""Times at which to look at something again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from manager.dispatcher.alarms import Alarms

STEPS = st.lists(
    st.tuples(st.sampled_from(["set", "drop", "due"]), st.sampled_from("abc"), st.floats(0, 5)), max_size=60
)


@given(STEPS)
def test_what_is_set_is_due_once_and_not_before_its_time(steps: list[tuple[str, str, float]]) -> None:
    alarms, times, now = Alarms(), dict[str, float](), 0.0
    for what, key, value in steps:
        match what:
            case "set":
                alarms.set(key, now + value)
                times[key] = now + value
            case "drop":
                alarms.drop(key)
                times.pop(key, None)
            case _:
                now += value
                expected = sorted((at_s, key) for key, at_s in times.items() if at_s <= now)
                assert alarms.due(now) == [key for _, key in expected]
                times = {key: at_s for key, at_s in times.items() if at_s > now}
        first_s = alarms.first_s()
        assert (first_s is None) == (not times)
        assert first_s is None or first_s <= min(times.values())
        assert {key for key in "abc" if key in alarms} == set(times)
        assert len(alarms) == len(times)


def test_what_is_moved_all_day_leaves_nothing_behind() -> None:
    alarms = Alarms()
    for number in range(10_000):
        if number % 3 == 0:
            alarms.drop("n")
        alarms.set("n", 100.0 + number % 7)
    assert len(alarms._heap) < 1000
    alarms.due(50.0)
    for number in range(1000):
        alarms.set("n", 100.0 + number)
        alarms.due(100.0 + number - 0.5)
    assert len(alarms._heap) == 1
