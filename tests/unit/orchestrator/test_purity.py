"""What decides and what applies reads no clock, no randomness, no environment, no file, and writes no log.

Imports are the linter's to refuse (``manager/pure.toml``). Here: that it does so in each of the folders, and what needs
no import.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = ["model", "orchestrator", "allocator", "scheduler", "store"]
PURE = [path for folder in FOLDERS for path in sorted((ROOT / "manager" / folder).rglob("*.py"))]

IMPURE_CALLS = {"open", "input", "hash", "id", "GetCurrentTime"}
"""Files, the terminal, what differs from process to process, and the clock of protobuf's timestamps."""


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_linter_refuses_the_outside_world(folder: str) -> None:
    lines = [
        "import asyncio",
        "import grpc",
        "import random",
        "import secrets",
        "import structlog",
        "import time",
        "import uuid",
        "from datetime import datetime",
        "from os import urandom",
        "from time import monotonic",
    ]
    name = f"manager/{folder}/new.py"
    lint = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--select",
            "TID251",
            "--output-format",
            "concise",
            "--stdin-filename",
            name,
        ],
        input="\n".join(lines),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    for number in range(1, len(lines) + 1):
        assert f"{name}:{number}:" in lint.stdout, lint.stdout + lint.stderr


@pytest.mark.parametrize("module", PURE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_outside_world_without_an_import(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            assert name not in IMPURE_CALLS, f"line {node.lineno}"
