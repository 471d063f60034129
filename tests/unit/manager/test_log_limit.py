"""Peers that make us write lines without end (manager/log_limit.py)."""

from __future__ import annotations

from manager.log_limit import LogLimit


def test_a_line_for_each_cause_and_period_with_the_number_of_those_left_out() -> None:
    now_s = 0.0
    limit = LogLimit(60.0, monotonic=lambda: now_s)
    assert [limit.due("a") for _ in range(3)] == [0, None, None]
    assert limit.due("b") == 0
    now_s = 60.0
    assert limit.due("a") == 2
    assert limit.due("a") is None


def test_causes_without_end_cost_no_memory_and_no_lines() -> None:
    now_s = 0.0
    limit = LogLimit(60.0, monotonic=lambda: now_s)
    lines = [limit.due(number) for number in range(10_000)]
    assert sum(line is not None for line in lines) == 1024
    now_s = 61.0
    assert limit.due("another") == 0
