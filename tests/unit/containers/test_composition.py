"""The engine is put together in one direction: each part gets what it stands on, and nothing is hung into it later."""

from __future__ import annotations

import ast
from pathlib import Path

RUNTIME = Path(__file__).parents[3] / "runtime"
SOURCES = [RUNTIME / "engine.py", *sorted((RUNTIME / "containers").rglob("*.py"))]


def test_no_part_is_given_anything_after_it_was_made() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
                continue
            of_a_part = isinstance(node.value, ast.Attribute) and getattr(node.value.value, "id", "") == "self"
            is_hook = node.attr.startswith("on_") and getattr(node.value, "id", "") != "self"
            if (of_a_part and ast.unparse(node.value) != "self.state") or is_hook:  # a record's state is its own
                found.append(f"{path.relative_to(RUNTIME)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []
