"""SIGKILL at any moment of containers' lives: the next daemon finds what is, and nothing else is left on the host."""

from __future__ import annotations

import asyncio
import os
import random
import re
import sys
from pathlib import Path

import pytest

from runtime.containers import cgroups
from runtime.kernel import nft
from runtime.types import HostConfig
from tests.unit.engine.support import Bench
from tests.waiting import until

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[3]
ROUNDS = int(os.environ.get("KILL_ROUNDS", "0"))


@pytest.mark.skipif(not ROUNDS, reason="set KILL_ROUNDS to kill so many engines at random moments")
async def test_a_killed_engine_leaves_what_its_successor_says_and_nothing_else(bench: Bench) -> None:
    seed = int(os.environ.get("KILL_SEED", random.randrange(1 << 32)))
    print("seed", seed)
    choice = random.Random(seed)
    steady = await bench.run("sleep", "1000", host=HostConfig())
    pid = bench.engine.inspect(steady).State.Pid
    for number in range(ROUNDS):
        await bench.engine.close()
        await _live_and_die(bench, choice.uniform(0, 1.0))
        bench.engine = bench.make()
        await bench.engine.open()
        assert (bench.engine.inspect(steady).State.Status, bench.engine.inspect(steady).State.Pid) == ("running", pid)
        try:  # restarts of what is to run are under way
            await until(lambda: _wrong(bench) == [], what="the host as the engine says")
        except TimeoutError:
            raise AssertionError(f"seed {seed}, round {number}: {_wrong(bench)}") from None
        for summary in bench.engine.list(all=True):
            if summary.Id != steady and choice.random() < 0.5:
                async with asyncio.timeout(30):
                    await bench.engine.remove(summary.Id, force=True)


async def _live_and_die(bench: Bench, after_s: float) -> None:
    arguments = [str(bench.folder / "state"), str(bench.folder / "run"), bench.cgroup]
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.unit.engine.lives", *arguments, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert daemon.stdout is not None
    while b"ready" not in (line := await daemon.stdout.readline()):
        assert line, "the daemon ended"
    await asyncio.sleep(after_s)  # the moment of the kill is what is tried out
    assert daemon.returncode is None
    daemon.kill()
    await daemon.wait()


def _wrong(bench: Bench) -> list[str]:
    """What on the host belongs to no container that runs, or is missing."""
    engine, state, run = bench.engine, bench.folder / "state", bench.folder / "run"
    found = {summary.Id: engine.inspect(summary.Id) for summary in engine.list(all=True)}
    running = {key: item for key, item in found.items() if item.State.Running and not item.State.Restarting}
    ports = {int(port.HostPort) for item in running.values() for few in item.NetworkSettings.Ports.values() for port in few or ()}  # fmt: skip
    groups = {mount / bench.cgroup.lstrip("/") for mount in set(cgroups.detect().mounts.values())}
    seen = {
        "names": len({item.Name for item in found.values()}) == len(found),
        "dead": all(Path(f"/proc/{item.State.Pid}").exists() for item in running.values()),
        "monitors": _monitored(run) == set(running),
        "mounts": _mounted(state) == set(running),
        "groups": all(_inside(group) <= set(running) for group in groups),
        "bundles": _names(run / "bundles") == _names(run / "runc") == set(running) and not _names(run / "exits"),
        "files": _names(state / "containers") == _names(state / "images/snapshots/containers") == set(found),
        "interfaces": all(
            _interfaces(item.State.Pid) == len(item.NetworkSettings.Networks) for item in running.values()
        ),
        "links": _interfaces(os.getpid(), "veth")
        == sum(len(item.NetworkSettings.Networks) for item in running.values()),
        "endpoints": all(
            set(engine.networks.inspect(name).Containers)
            == {key for key, item in running.items() if name in item.NetworkSettings.Networks}
            for name in ("bridge", *(each.Name for each in engine.networks.list() if each.Name == "net"))
        ),
        "ports": set(map(int, re.findall(r"\. (9\d{3}) :", nft.run("list ruleset")))) == ports,
    }
    return [what for what, good in seen.items() if not good]


def _interfaces(pid: int, prefix: str = "eth") -> int:
    """Of the network namespace of a process."""
    try:
        lines = (
            Path(f"/proc/{pid}/net/dev" if pid != os.getpid() else "/proc/thread-self/net/dev").read_text().splitlines()
        )
    except OSError:
        return -1
    return sum(line.strip().startswith(prefix) for line in lines)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _inside(group: Path) -> set[str]:
    return {path.name for path in group.iterdir() if path.is_dir()} if group.is_dir() else set()


def _monitored(run: Path) -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"conmon") and any(word.startswith(os.fsencode(run)) for word in words):
            found.add(words[words.index(b"--cid") + 1].decode())
    return found


def _mounted(state: Path) -> set[str]:
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return {Path(point).parent.name for point in points if point.startswith(str(state))}
