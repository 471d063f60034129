"""Every promise of docs/security.md names tests that exist."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from tests.unit.docs.test_compatibility import ROOT, all_tests

PAGE = ROOT / "docs" / "security.md"


def problems(page: str, tests: Collection[str]) -> Iterator[str]:
    for line in page.splitlines():
        if not line.startswith("|") or line.startswith(("| promise", "|---")):
            continue
        promise, *shown_by = (cell.strip() for cell in line.strip("|").split(" | "))
        named = re.findall(r"`([^`]+)`", " ".join(shown_by))
        if len(shown_by) != 1 or not named:
            yield f"a promise and its tests are wanted: {line}"
        yield from (f"{promise}: no test {test}" for test in named if test not in tests)


def test_the_page_is_true() -> None:
    found = list(problems(PAGE.read_text(), all_tests()))
    assert not found, "\n".join(found)


def test_a_promise_needs_a_test_that_exists() -> None:
    page = "| promise | shown by |\n|---|---|\n| a | |\n| b | `unit/x.py::test_y` |\n| c | `unit/x.py::test_z` |\n"
    found = list(problems(page, {"unit/x.py::test_z"}))
    assert found == ["a promise and its tests are wanted: | a | |", "b: no test unit/x.py::test_y"]
