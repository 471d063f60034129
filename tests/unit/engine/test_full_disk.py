"""A real engine on a small disk that is really full."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.engine import Engine
from runtime.errors import EngineError
from runtime.images import NoSpaceError
from runtime.types import HostConfig, RestartPolicy
from tests.unit.engine.support import Bench
from tests.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("small_disk")]

SIZE = "48m"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The state folder of ``bench`` on a file system of its own."""
    disk = tmp_path / "state"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=755", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def fill(disk: Path) -> Path:
    """Not a byte is left."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


async def test_ends_on_a_full_disk_are_known_after_an_orderly_restart(
    bench: Bench, small_disk: Path, make_engine: Callable[[], Engine], tmp_path: Path
) -> None:
    engine, shared = bench.engine, tmp_path / "shared"
    shared.mkdir()
    until_go = "while [ ! -e /shared/go ]; do sleep 0.02; done; exit "

    def host(policy: str) -> HostConfig:
        return HostConfig(NetworkMode="none", Binds=[f"{shared}:/shared"], RestartPolicy=RestartPolicy(Name=policy))

    seven = await bench.run("sh", "-c", f"{until_go}7", host=host("no"))
    well = await bench.run("sh", "-c", f"{until_go}0", host=host("on-failure"))
    stopped = await bench.run("sleep", "1000", host=host("unless-stopped"))
    filler = fill(small_disk)
    (shared / "go").touch()
    await engine.stop(stopped, timeout_s=0)
    await until(lambda: not any(engine.inspect(each).State.Running for each in (seven, well)), what="their ends")
    with pytest.raises((EngineError, NoSpaceError)):
        await bench.create("true")
    filler.unlink()
    await engine.close()
    bench.engine = engine = make_engine()
    await engine.open()
    codes = [
        (engine.inspect(each).State.Status, engine.inspect(each).State.ExitCode) for each in (seven, well, stopped)
    ]
    assert codes == [("exited", 7), ("exited", 0), ("exited", 137)]
