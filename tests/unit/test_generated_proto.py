"""The committed modules in proto/ are what scripts/gen-proto makes of the .proto files."""

from __future__ import annotations

import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_generated_modules_are_those_of_the_proto_files(tmp_path: Path) -> None:
    subprocess.run(["scripts/gen-proto", str(tmp_path)], cwd=REPOSITORY, check=True, stdin=subprocess.DEVNULL)

    def generated(root: Path) -> dict[str, str]:
        return {path.name: path.read_text() for path in sorted((root / "proto").glob("*_pb2*.py*"))}

    assert generated(tmp_path) == generated(REPOSITORY)
