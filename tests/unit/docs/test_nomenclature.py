"""docs/nomenclature.md: what it names is where it says, and no name has two meanings that it does not know of."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "nomenclature.md").read_text()
PACKAGES = ("api", "base", "cli", "manager", "pki", "runtime", "worker")
CODE = re.compile(r"`([^`]+)`")


def table_rows(page: str, columns: int) -> list[list[str]]:
    """The cells of every row of the tables with so many columns."""
    lines = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| word | what")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if len(row) == columns and row[0] != "name"]


def words() -> list[list[str]]:
    return table_rows(PAGE, 5)


@pytest.mark.parametrize(("word", "_what", "where", "names", "_not"), words())
def test_the_word_is_where_the_page_says(word: str, _what: str, where: str, names: str, _not: str) -> None:
    paths = [ROOT / path for path in CODE.findall(where)]
    assert paths, word
    assert [path for path in paths if not path.is_file()] == []
    text = "\n".join(path.read_text() for path in paths)
    assert [name for name in CODE.findall(names) if not re.search(rf"\b{re.escape(name)}\b", text)] == []


def test_every_path_exists() -> None:
    paths = [name for name in CODE.findall(PAGE) if "/" in name and name.endswith((".py", ".proto"))]
    assert len(paths) > 100
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_a_word_has_one_row() -> None:
    names = [
        word
        for row in words()
        for word in re.sub(r"\(.*?\)", lambda found: found[0].replace(",", ";"), row[0]).split(", ")
    ]
    assert len(names) > 80
    assert sorted({name for name in names if names.count(name) > 1}) == []


@cache
def classes() -> dict[str, list[str]]:
    """Public classes by name -> the modules that define them; errors aside."""
    found: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not node.name.endswith("Error"):
                    found[node.name].append(str(path.relative_to(ROOT)))
    return found


def test_the_page_knows_every_name_that_two_classes_have() -> None:
    """Another one needs another name, or a row that says why both are right."""
    told = {CODE.findall(row[0])[0]: {CODE.findall(cell)[0] for cell in row[1:]} for row in table_rows(PAGE, 3)}
    shared = {name: set(paths) for name, paths in classes().items() if len(paths) > 1}
    assert told == shared
