"""docs/compatibility.md resolves every ID that is cited, and says nothing that no test or text stands behind."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "compatibility.md"
PACKAGES = ("api", "base", "cli", "manager", "pki", "proto", "runtime", "worker")
CITING_FOLDERS = (*PACKAGES, "docs", "scripts", "tests")
CITING_SUFFIXES = {"", ".md", ".proto", ".py", ".pyi", ".sh", ".toml"}
ID = re.compile(r"(?<![-\w.])(?:[AB]\d{1,2}\.\d{2}|[CDEWX]\d{2})\b")
SECTION_CITE = re.compile(r"[Ff]eatures?,?(?: section)? ([^)\n]*)")
SECTION = re.compile(r"\b[AB]\d{1,2}\b(?!\.\d)")
STATES = {"works", "partly", "refused", "planned"}
GAP = "…"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the page: ``state`` is its first word, ``detail`` what follows the colon."""

    id: str
    state: str
    detail: str
    tests: tuple[str, ...]


def rows_of(page: str) -> list[Row]:
    found = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|") or not re.fullmatch(r"[A-Z]\d[\d.]*", cells[0]):
            continue
        assert len(cells) == 4, line
        state, _, detail = cells[2].partition(": ")
        found.append(Row(cells[0], state, detail, tuple(re.findall(r"`([^`]+)`", cells[3]))))
    return found


def problems(page: str, *, cited: Mapping[str, str], tests: Collection[str], texts: Collection[str]) -> Iterator[str]:
    """What is wrong with a page.

    Args:
        cited: IDs, and where each is cited.
        tests: names such as ``unit/x/test_y.py::test_z``.
        texts: texts of the code, ``…`` where something is filled in.
    """
    rows = rows_of(page)
    known = {row.id for row in rows}
    for id_, place in cited.items():
        if id_ not in known:
            yield f"{place} cites {id_}, which has no row"
    for position, row in enumerate(rows):
        if any(other.id == row.id for other in rows[:position]):
            yield f"{row.id} has two rows"
        if not ID.fullmatch(row.id):
            yield f"{row.id} is no ID"
        if row.state not in STATES or (row.state in ("partly", "refused")) != bool(row.detail):
            yield f"{row.id}: state {row.state!r} with {row.detail!r}"
        if (row.state in ("works", "partly")) != bool(row.tests):
            yield f"{row.id}: {row.state} with {len(row.tests)} tests"
        for test in row.tests:
            if test not in tests:
                moved = [other for other in tests if other.endswith(test.partition("::")[2])]
                yield f"{row.id}: no test {test}" + "".join(f", but {other}" for other in moved)
        if row.state == "refused":
            quoted = re.fullmatch(r'"(.+)"', row.detail)
            if quoted is None or not any(quoted[1] in text for text in texts):
                yield f"{row.id}: no such text in the code: {row.detail}"


def citing_files() -> Iterator[Path]:
    yield from ROOT.glob("*.md")
    for folder in CITING_FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in CITING_SUFFIXES and path not in (PAGE, Path(__file__).resolve()):
                yield path


@cache
def cited_ids() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in citing_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for match in ID.finditer(text):
            found.setdefault(match[0], str(path.relative_to(ROOT)))
    return found


def test_sections_that_are_cited_exist() -> None:
    headings = set(re.findall(r"^#+ ([A-Z]\d*)\. ", PAGE.read_text(), re.MULTILINE))
    cited = {
        section: path
        for path in citing_files()
        if path.suffix in (".py", ".md", ".proto")
        for cite in SECTION_CITE.findall(path.read_text())
        for section in SECTION.findall(cite)
    }
    assert {"A3", "A5", "B1"} <= set(cited)
    assert not {section: path for section, path in cited.items() if section not in headings}


@cache
def all_tests() -> frozenset[str]:
    folder = ROOT / "tests"
    found = set()
    for path in folder.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.add(f"{path.relative_to(folder)}::{node.name}")
    return frozenset(found)


@cache
def code_texts() -> frozenset[str]:
    """Every text of the packages as it is shown, docstrings aside; what an f-string fills in is ``…``."""
    return frozenset(
        text
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for text in texts_of(ast.parse(path.read_text()))
    )


def texts_of(tree: ast.AST) -> Iterator[str]:
    nodes = list(ast.walk(tree))
    passed_over = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    passed_over |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
            yield "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and id(node) not in passed_over:
            if isinstance(node.value, str):
                yield node.value
            elif isinstance(node.value, bytes):
                yield node.value.decode(errors="replace")


def answers_of(page: str) -> dict[str, list[str]]:
    """The last table: what an answer has -> the rows it belongs to."""
    rows = re.findall(r'^\| "(.+?)"[^|]*\| ([^|]+) \|$', page, re.MULTILINE)
    return {text: ID.findall(ids) for text, ids in rows}


def test_every_answer_that_says_not_served_leads_to_its_rows() -> None:
    page = PAGE.read_text()
    answers, known = answers_of(page), {row.id for row in rows_of(page)}
    assert all(ids and set(ids) <= known for ids in answers.values())
    texts = [text for text in code_texts() if "not served" in text]
    assert len(texts) > 30
    assert [text for text in texts if not any(answer in text for answer in answers)] == []
    assert [answer for answer in answers if not any(answer in text for text in texts)] == []


def test_texts_are_found_as_they_are_shown() -> None:
    tree = ast.parse('"""Doc."""\nx = f"port {y} is " "not served"\nraise E("a" "b", b"c")\n')
    assert list(texts_of(tree)) == ["port … is not served", "ab", "c"]


def test_the_page_is_true() -> None:
    found = list(problems(PAGE.read_text(), cited=cited_ids(), tests=all_tests(), texts=code_texts()))
    assert not found, "\n".join(found)


def test_something_is_looked_at() -> None:
    """The check above is no check of nothing."""
    assert len(rows_of(PAGE.read_text())) > 350
    assert len(cited_ids()) > 100
    assert {"A6.01", "W07", "D07", "X25"} <= set(cited_ids())


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("| A1.01 | x | works | `unit/a.py::test_a` |", None),
        ("| A1.01 | x | partly: no y | `unit/a.py::test_a` |", None),
        ('| A1.01 | x | refused: "x is … served" | |', None),
        ("| A1.01 | x | planned | |", None),
        ("| A1.02 | x | planned | |", "here.py cites A1.01, which has no row"),
        ("| A1.01 | x | planned | |\n| A1.01 | x | planned | |", "A1.01 has two rows"),
        ("| A1.01 | x | planned | |\n| A1.1 | x | planned | |", "A1.1 is no ID"),
        ("| A1.01 | x | soon | |", "A1.01: state 'soon' with ''"),
        ("| A1.01 | x | works: well | `unit/a.py::test_a` |", "A1.01: state 'works' with 'well'"),
        ("| A1.01 | x | partly | `unit/a.py::test_a` |", "A1.01: state 'partly' with ''"),
        ("| A1.01 | x | works | |", "A1.01: works with 0 tests"),
        ("| A1.01 | x | partly: no y | |", "A1.01: partly with 0 tests"),
        ("| A1.01 | x | works | `unit/a.py::test_b` |", "A1.01: no test unit/a.py::test_b"),
        ("| A1.01 | x | works | `unit/b.py::test_a` |", "A1.01: no test unit/b.py::test_a, but unit/a.py::test_a"),
        ('| A1.01 | x | refused: "y is not" | |', 'A1.01: no such text in the code: "y is not"'),
        ("| A1.01 | x | refused: x is | |", "A1.01: no such text in the code: x is"),
    ],
)
def test_a_wrong_page_is_found_out(row: str, found: str | None) -> None:
    wrong = problems(row, cited={"A1.01": "here.py"}, tests={"unit/a.py::test_a"}, texts={"x is … served"})
    assert list(wrong) == ([] if found is None else [found])
