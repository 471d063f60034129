"""A real engine per test: own state, own cgroup, own network namespace; nothing of it is left afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from runtime.containers import cgroups
from runtime.engine import Engine
from runtime.kernel.syscalls import CLONE_NEWNET, setns
from tests.unit.engine.support import Bench, clean_up, load_image


@pytest.fixture
def network_namespace() -> Iterator[None]:
    """A network namespace of the test's own; threads that start after this are in it too."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    try:
        yield
    finally:
        setns(home, CLONE_NEWNET)
        os.close(home)


@pytest.fixture
async def bench(tmp_path: Path, network_namespace: None) -> AsyncIterator[Bench]:
    """An open engine with busybox:latest, and what makes another one on the same state."""
    cgroup = f"/test-engine-{secrets.token_hex(4)}"
    made: list[Engine] = []

    def make() -> Engine:
        made.append(Engine(state=tmp_path / "state", run=tmp_path / "run", cgroup_parent=cgroup))
        return made[-1]

    engine = make()
    await engine.open()
    await load_image(engine)
    bench = Bench(engine, make, tmp_path, cgroup)
    try:
        yield bench
    finally:
        await clean_up(bench)
        _remove_cgroups(cgroup)


def _remove_cgroups(cgroup: str) -> None:
    mounts = set(cgroups.detect().mounts.values()) | {Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified")}
    for mount in mounts:
        group = mount / cgroup.lstrip("/")
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        assert not group.exists(), f"{group} is left over"


@pytest.fixture
def make_engine(bench: Bench) -> Callable[[], Engine]:
    """Another engine on the same folders, to be opened once the first is closed."""
    return bench.make
