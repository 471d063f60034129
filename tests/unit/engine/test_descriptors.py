"""Descriptors run out in the middle of whatever it is: what fails leaves nothing, and nobody has to be started anew."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

import pytest

from runtime.errors import EngineError
from runtime.images import ImagesError
from runtime.types import ExecConfig, HostConfig
from tests.unit.engine.support import Bench
from tests.waiting import until

pytestmark = pytest.mark.root


@contextlib.contextmanager
def descriptors(left: int) -> Iterator[None]:
    """Only so many more may be opened."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers: list[int] = []
    while len(fillers) < 4096 and (made := os.open("/dev/null", os.O_RDONLY)) <= taken:
        fillers.append(made)  # the gaps
    os.close(made)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 1 + left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for filler in fillers:
            os.close(filler)


def what_is_there(bench: Bench) -> set[str]:
    folders = [
        *(bench.folder / "run" / name for name in ("bundles", "runc", "exits", "pins", "execs")),
        *(bench.folder / "state" / name for name in ("containers", "volumes")),
        *(bench.folder / "state/images" / name for name in ("content/ingest", "snapshots/tmp", "snapshots/containers")),
    ]
    return {str(path.relative_to(bench.folder)) for folder in folders if folder.exists() for path in folder.iterdir()}


def is_there(pid: int) -> bool:
    """Asked without a descriptor."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("left", [0, 1, 2, 3, 4, 6, 8, 12])
async def test_a_life_cut_short_by_want_of_descriptors_leaves_nothing(bench: Bench, left: int) -> None:
    host = HostConfig(NetworkMode="none", Binds=["/anonymous"])
    warm = await bench.run("true")  # threads, pools and caches that stay
    await bench.engine.wait(warm)
    await bench.engine.remove(warm)
    await until(lambda: what_is_there(bench) == set(), what="the first one to go")
    before = open_descriptors()
    made = ""
    with descriptors(left), contextlib.suppress(EngineError, ImagesError, OSError):
        made = await bench.create("sleep", "1000", host=host)
        await bench.engine.start(made)
        await bench.engine.exec_start(await bench.engine.exec_create(made, ExecConfig(Cmd=["true"])), detach=True)
        await bench.engine.stop(made, timeout_s=0)
        await bench.engine.remove(made, volumes=True)
    if made and any(summary.Id == made for summary in bench.engine.list(all=True)):
        await bench.engine.remove(made, force=True, volumes=True)
    await until(lambda: what_is_there(bench) == set(), what=f"nothing to be left: {what_is_there(bench)}")
    assert bench.engine.volumes.list() == []
    await until(lambda: open_descriptors() <= before, what="every descriptor to be closed")


@pytest.mark.parametrize("left", [0, 2, 5])
async def test_an_end_without_descriptors_is_known_and_leaves_nothing(bench: Bench, left: int) -> None:
    host = HostConfig(NetworkMode="none", Binds=[f"{bench.folder}:/shared"])
    ending = await bench.run("sh", "-c", "while [ ! -e /shared/go ]; do sleep 0.02; done; exit 7", host=host)
    monitor = bench.engine._store.get(ending).state.ConmonPid
    with descriptors(left):
        (bench.folder / "go").mkdir()  # which needs none
        await until(lambda: not is_there(monitor), what="its monitor to end")
    assert (await bench.engine.wait(ending)).StatusCode == 7
    await bench.engine.remove(ending, force=True)
    await until(lambda: what_is_there(bench) == set(), what="nothing to be left")
