"""The checker itself: histories known to be right and known to be wrong."""

from __future__ import annotations

import random

from tests.linearizability import UNKNOWN, Operation, check


def op(client: str, invoked: float, returned: float, call: tuple[object, ...], output: object = None) -> Operation:
    return Operation(client, invoked, returned, call, output)


def test_sequential_history() -> None:
    assert check([op("a", 0, 1, ("write", 1)), op("a", 2, 3, ("read",), 1), op("b", 4, 5, ("cas", 1, 2), True)])


def test_a_stale_read_is_found() -> None:
    assert not check([op("a", 0, 1, ("write", 1)), op("a", 2, 3, ("write", 2)), op("b", 4, 5, ("read",), 1)])


def test_concurrent_operations_may_take_either_order() -> None:
    writes = [op("a", 0, 10, ("write", 1)), op("b", 0, 10, ("write", 2))]
    assert check([*writes, op("c", 11, 12, ("read",), 1)])
    assert check([*writes, op("c", 11, 12, ("read",), 2)])
    assert not check([*writes, op("c", 11, 12, ("read",), 1), op("c", 13, 14, ("read",), 2)])


def test_reads_may_not_go_back_in_time() -> None:
    write = op("a", 0, 10, ("write", 1))
    assert check([write, op("b", 1, 2, ("read",)), op("c", 3, 4, ("read",), 1)])
    assert not check([write, op("b", 1, 2, ("read",), 1), op("c", 3, 4, ("read",))])


def test_an_unknown_write_may_happen_late_or_never() -> None:
    lost = op("a", 0, 1, ("write", 1), UNKNOWN)
    assert check([lost, op("b", 5, 6, ("read",)), op("b", 7, 8, ("read",), 1)])
    assert check([lost, op("b", 5, 6, ("read",))])
    assert not check([lost, op("b", 5, 6, ("read",), 1), op("b", 7, 8, ("read",))])


def test_compare_and_swap_answers_must_fit() -> None:
    assert not check([op("a", 0, 1, ("write", 1)), op("b", 2, 3, ("cas", 1, 2), False)])
    assert not check([op("a", 0, 1, ("write", 1)), op("b", 2, 3, ("cas", 7, 2), True)])


def test_random_linearizable_histories_pass_and_a_changed_answer_fails() -> None:
    for seed in range(30):
        rng = random.Random(seed)
        state: int | None = None
        history: list[Operation] = []
        for number in range(1, 200):
            point = float(number)
            start, end = point - rng.uniform(0, 2), point + rng.uniform(0, 2)
            if rng.random() < 0.5:
                state = number
                history.append(op("c", start, end, ("write", number)))
            else:
                history.append(op("c", start, end, ("read",), state))
        assert check(history)
        wrong = [*history, op("d", 300, 301, ("read",), -1)]
        assert not check(wrong)
