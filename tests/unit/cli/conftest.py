"""A fake engine, and the command run in this process against it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli import main
from tests.unit.cli.fake_engine import FakeEngine, serving


@dataclass(frozen=True)
class Ran:
    """What a command left: texts and exit status."""

    out: str
    err: str
    code: int


Run = Callable[..., Ran]


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    # A socket's path has at most 107 bytes, so pytest's own long directories will not do.
    with tempfile.TemporaryDirectory(prefix="cli-") as directory, serving(Path(directory)) as found:
        yield found


@pytest.fixture
def run(engine: FakeEngine, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("node", "ls")`` as the console script does it."""

    def call(*words: str, host: str | None = None) -> Ran:
        monkeypatch.setattr("sys.argv", ["swarm", "-H", engine.host if host is None else host, *words])
        capfd.readouterr()
        code = 0
        try:
            main.main()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        out, err = capfd.readouterr()
        return Ran(out, err, code)

    return call
