"""What decides and what applies reads no clock, no randomness, no environment, no file, and writes no log."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

PURE = [
    *sorted((ROOT / "manager/orchestrator").glob("*.py")),
    *sorted((ROOT / "manager/allocator").glob("*.py")),
    *sorted((ROOT / "manager/scheduler").glob("*.py")),
    *(
        ROOT / "manager/store" / f"{name}.py"
        for name in ("errors", "kinds", "machine", "mutation", "rows", "snapshot", "tables", "views")
    ),
]

IMPURE = {
    "asyncio",
    "datetime",
    "io",
    "logging",
    "os",
    "pathlib",
    "random",
    "secrets",
    "socket",
    "structlog",
    "subprocess",
    "sys",
    "threading",
    "time",
    "uuid",
}


@pytest.mark.parametrize("module", PURE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_outside_world(module: Path) -> None:
    tree = ast.parse(module.read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "input", "print", "hash"), f"line {node.lineno}"
    assert not imported & IMPURE
