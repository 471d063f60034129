"""How long one container takes from create to removal, and how fast many start at once.

Run as root: ``python -m tests.bench.bench_runtime [--runs N] [--many N]``. Works in a network namespace and folders of
its own and removes everything. Prints milliseconds: median and 90th percentile.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import itertools
import json
import logging
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from runtime.engine import Engine
from runtime.kernel.syscalls import CLONE_NEWNET
from runtime.types import ContainerConfig, HostConfig
from tests.support_images import BUSYBOX_TAG, busybox_rootfs

STEPS = ("create", "start", "exit", "remove", "total")


async def one(engine: Engine, host: HostConfig) -> list[float]:
    """Milliseconds of each step of one container, then their sum."""
    marks = [time.perf_counter()]
    container_id, _ = await engine.create(ContainerConfig(Image=BUSYBOX_TAG, Cmd=["true"]), host)
    marks.append(time.perf_counter())
    await engine.start(container_id)
    marks.append(time.perf_counter())
    await engine.wait(container_id)
    marks.append(time.perf_counter())
    await engine.remove(container_id)
    marks.append(time.perf_counter())
    steps = [(after - before) * 1000 for before, after in itertools.pairwise(marks)]
    return [*steps, sum(steps)]


async def many(engine: Engine, count: int) -> float:
    """Milliseconds until ``count`` containers run, all asked for at once."""
    config = ContainerConfig(Image=BUSYBOX_TAG, Cmd=["sleep", "1000"])
    began = time.perf_counter()

    async def run() -> str:
        container_id, _ = await engine.create(config, HostConfig())
        await engine.start(container_id)
        return container_id

    ids = await asyncio.gather(*(run() for _ in range(count)))
    took = (time.perf_counter() - began) * 1000
    await asyncio.gather(*(engine.remove(container_id, force=True) for container_id in ids))
    return took


async def bench(folder: Path, runs: int, count: int) -> dict[str, object]:
    """All figures as a dictionary."""
    engine = Engine(state=folder / "state", run=folder / "run", cgroup_parent="/bench-runtime")
    await engine.open()

    async def chunks() -> AsyncIterator[bytes]:
        yield busybox_rootfs()

    await engine.images.import_tar(chunks(), repo="busybox", tag="latest")
    result: dict[str, object] = {}
    try:
        for name, host in (
            ("none", HostConfig(NetworkMode="none")),
            ("bridge", HostConfig()),
            ("bridge, no seccomp", HostConfig(SecurityOpt=["seccomp=unconfined"])),
        ):
            await one(engine, host)
            rows = [await one(engine, host) for _ in range(runs)]
            result[name] = {
                step: (round(statistics.median(values), 1), round(sorted(values)[int(len(values) * 0.9)], 1))
                for step, values in zip(STEPS, zip(*rows, strict=True), strict=True)
            }
        result[f"{count} at once until all run"] = round(await many(engine, count))
    finally:
        await engine.networks.remove_devices()
        await engine.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--many", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise SystemExit("bench_runtime: needs root")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-runtime-"))
    try:
        result = asyncio.run(bench(folder, options.runs, options.many))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for group in Path("/sys/fs/cgroup").glob("**/bench-runtime"):
            group.rmdir()
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        text = (
            "  ".join(f"{step} {mid} (p90 {high})" for step, (mid, high) in value.items())
            if isinstance(value, dict)
            else f"{value} ms"
        )
        print(f"{name}: {text}")


if __name__ == "__main__":
    main()
