"""Attaching with what was printed before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.engine.support import Bench

pytestmark = pytest.mark.root


async def test_an_attach_with_logs_gives_the_log_and_then_what_follows(bench: Bench) -> None:
    script = "seq 3000; echo old >&2; until [ -e /go ]; do sleep 0.02; done; echo new"
    container_id = await bench.run("sh", "-c", script)
    async for line in bench.engine.logs(container_id, follow=True):
        if line.data == b"old\n":
            break
    async with await bench.engine.attach(container_id, logs=True) as stream:
        assert [await stream.read() for _ in range(2)] == [("stdout", b"1\n"), ("stdout", b"2\n")]
        (bench.folder / "state/images/snapshots/containers" / container_id / "merged" / "go").touch()
        await bench.engine.wait(container_id)
        seen = {"stdout": b"", "stderr": b""}
        while (piece := await stream.read()) is not None:
            seen[piece[0]] += piece[1]
    numbers = "".join(f"{number}\n" for number in range(3, 3001))
    assert seen == {"stdout": f"{numbers}new\n".encode(), "stderr": b"old\n"}


async def test_an_attach_that_ends_in_the_middle_of_the_log_keeps_no_file_open(bench: Bench) -> None:
    container_id = await bench.run("seq", "3000")
    await bench.engine.wait(container_id)
    async with await bench.engine.attach(container_id, stderr=False, logs=True) as stream:
        assert await stream.read() == ("stdout", b"1\n")
        assert _open_logs(bench)
    assert not _open_logs(bench)


def _open_logs(bench: Bench) -> list[str]:
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link for link in links if link.endswith(".log") and link.startswith(str(bench.folder))]
