"""For every test: as root, the machine is afterwards as it was before (namespaces, links, mounts, cgroups, processes).

And the order of the tests, which is the files' unless ``TEST_ORDER_SEED`` is set.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from api.startup import UMASK

# Generated examples are the same in every run, so that a failure is of the change and not of the day;
# HYPOTHESIS_PROFILE=default looks for new ones.
# None may depend on how quick the machine is.
_ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", _ANY_SPEED, derandomize=True)
settings.register_profile("default", _ANY_SPEED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

ORDER_SEED = os.environ.get("TEST_ORDER_SEED")

# Stores look for messages changed in place, and what is kept from change to change is compared with what is derived anew: in
# tests' own processes, and in the managers of the hosts they start.
os.environ.setdefault("SWARM_STORE_DEBUG", "1")

os.umask(UMASK)  # what is tested runs under the daemon's, and so it is seen when a mode was left to the umask


def pytest_report_header() -> str | None:
    return f"random order: TEST_ORDER_SEED={ORDER_SEED}" if ORDER_SEED else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Shuffle the modules, and the tests within each, so that what a module sets up is still set up once."""
    if not ORDER_SEED:
        return
    by_module: dict[Path, list[pytest.Item]] = {}
    for item in items:
        by_module.setdefault(item.path, []).append(item)
    modules, rng = list(by_module.values()), random.Random(ORDER_SEED)
    rng.shuffle(modules)
    for module in modules:
        rng.shuffle(module)
    items[:] = [item for module in modules for item in module]


_DEADLINE_S = 30.0
_OURS = (b"swarmd", b"worker.membership.zygote", b"conmon", b"docker-registry", b"sleep\0infinity")


def _processes() -> set[str]:
    """Daemons, monitors and hosts' inits: ``pid command`` of each that looks like one of ours."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if any(word in command for word in _OURS) and int(path.parent.name) != os.getpid():
            found.add(f"{path.parent.name} {command[:120].replace(bytes(1), b' ').decode(errors='replace')}")
    return found


def _names(path: str) -> Callable[[], set[str]]:
    return lambda: {entry.name for entry in Path(path).iterdir()} if Path(path).is_dir() else set()


def _cgroups() -> set[str]:
    root = Path("/sys/fs/cgroup")
    return {str(path) for depth in ("swarm*", "*/swarm*") for path in root.glob(depth)}


def _mounts() -> set[str]:
    """Mount points of ours; the host may mount what it likes meanwhile."""
    points = {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()}
    return {point for point in points if any(word in point for word in ("swarm", "pytest", "netns"))}


_KINDS: dict[str, Callable[[], set[str]]] = {
    "network namespace": _names("/run/netns"),
    "link": _names("/sys/class/net"),
    "mount": _mounts,
    "cgroup": _cgroups,
    "process": _processes,
}


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail the run when it leaves something in the kernel. Of parallel workers none could tell whose it is."""
    if os.geteuid() != 0 or "PYTEST_XDIST_WORKER" in os.environ:
        yield
        return
    before = {kind: look() for kind, look in _KINDS.items()}
    yield
    end = time.monotonic() + _DEADLINE_S
    while left := {kind: more for kind, look in _KINDS.items() if (more := look() - before[kind])}:
        if time.monotonic() > end:
            pytest.fail(f"the tests left behind: {left}")
        time.sleep(0.1)
