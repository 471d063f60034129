"""A real engine on a small disk that is really full."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.engine import Engine
from runtime.errors import EngineError
from runtime.images import NoSpaceError
from runtime.types import HostConfig, RestartPolicy
from tests.unit.engine.support import Bench, load_image
from tests.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("small_disk")]

SIZE = "size=48m,nr_inodes=2000"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The state folder of ``bench`` on a file system of its own."""
    disk = tmp_path / "state"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{SIZE},mode=755", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def fill(disk: Path) -> Path:
    """Neither a byte nor a file is left; what is to be removed to have them again."""
    folder = disk / "filler"
    folder.mkdir()
    with (folder / "large").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    with contextlib.suppress(OSError):
        for number in itertools.count():
            (folder / str(number)).touch()
    return folder


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
    shutil.rmtree(filler)
    await engine.close()
    bench.engine = engine = make_engine()
    await engine.open()
    codes = [
        (engine.inspect(each).State.Status, engine.inspect(each).State.ExitCode) for each in (seven, well, stopped)
    ]
    assert codes == [("exited", 7), ("exited", 0), ("exited", 137)]


async def test_an_engine_opens_on_a_full_disk_and_room_can_be_made(
    bench: Bench, small_disk: Path, make_engine: Callable[[], Engine]
) -> None:
    engine = bench.engine
    steady = await bench.run("sleep", "1000")
    done = await bench.run("sh", "-c", "head -c 8000000 /dev/zero > /big")
    await until(lambda: not engine.inspect(done).State.Running, what="its end")
    await engine.volumes.create("data")
    await load_image(engine, "other")
    await engine.close()
    fill(small_disk)
    bench.engine = engine = make_engine()
    await engine.open()
    assert engine.inspect(steady).State.Running
    assert any("No space left" in warning for warning in engine.warnings())
    await engine.stop(steady, timeout_s=0)
    pruned = await engine.images.prune(filters={"dangling": ["false"]})
    assert [item.Untagged for item in pruned.ImagesDeleted if item.Untagged] == ["other:latest"]
    await engine.volumes.remove("data")
    await engine.remove(done)
    await until(lambda: engine.warnings() == [], what="everything to be saved")
    await bench.run("true")  # there is room again
    await engine.close()
    bench.engine = engine = make_engine()
    await engine.open()
    assert [image["RepoTags"] for image in engine.images.list()] == [["busybox:latest"]]
    assert engine.inspect(steady).State.ExitCode == 137
