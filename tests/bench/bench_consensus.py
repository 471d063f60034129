"""Commands per second and latency of three local members: a process each, mTLS, fdatasync, 1 KB commands.

Run: ``python -m tests.bench.bench_consensus [--seconds 3] [--folder DIR]``. Target (architecture, section 4):
at least 20 000/s at 64 in flight, at most 1.2 ms for one at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import structlog

from manager.consensus.port import Member, NodeID
from manager.consensus.raft import RaftConsensus
from tests.unit.consensus.cluster import FAST, Authority, Cluster, free_port
from tests.waiting import until

COMMAND = b"c" * 1024
STATE_ENTRIES = 1000
"""The state stays small: the log is measured here, not the writing of large snapshots."""


def _member(name: str, folder: str, ports: dict[str, int], pipe: Connection) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asyncio.run(_serve(name, Path(folder), ports, pipe))


async def _serve(name: str, folder: Path, ports: dict[str, int], pipe: Connection) -> None:
    """A follower: joins and waits to be told to stop."""
    cluster = Cluster(folder, FAST, authority=Authority.load(folder))
    cluster.ports = dict(ports)
    cluster.keep = STATE_ENTRIES
    member = await cluster.start(name, join=True)
    pipe.send("started")
    await member.consensus.admit(await asyncio.get_running_loop().run_in_executor(None, pipe.recv))
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    await cluster.close()


async def _run(folder: Path, seconds: float, depths: list[int]) -> None:
    cluster = Cluster(folder, FAST)
    ports = {name: free_port() for name in "abc"}
    cluster.ports = dict(ports)
    cluster.keep = STATE_ENTRIES
    for name in "abc":
        cluster.authority.issue(name)
    spawn = multiprocessing.get_context("spawn")
    followers = []
    for name in "bc":
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_member, args=(name, str(folder), ports, theirs))
        process.start()
        followers.append((process, ours))
    leader = await cluster.start("a")
    await until(lambda: leader.consensus.leader.is_leader)
    for name, (_, pipe) in zip("bc", followers, strict=True):
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        pipe.send(await leader.consensus.admission())
        await leader.consensus.add_member(Member(NodeID(name), f"127.0.0.1:{ports[name]}"))
    try:
        for depth in depths:
            await _measure(leader.consensus, depth, seconds)
    finally:
        for process, pipe in followers:
            pipe.send("stop")
            process.join(10)
        await cluster.close()


async def _measure(consensus: RaftConsensus, depth: int, seconds: float) -> None:
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        while (before := time.perf_counter()) < end:
            await consensus.propose(COMMAND)
            latencies.append(time.perf_counter() - before)

    started, syncs = time.perf_counter(), consensus.journal_syncs
    await asyncio.gather(*(client() for _ in range(depth)))
    elapsed = time.perf_counter() - started
    quantiles = statistics.quantiles(latencies, n=100)
    print(
        f"in flight {depth:5d}: {len(latencies) / elapsed:8.0f} commands/s   "
        f"p50 {quantiles[49] * 1000:6.2f} ms   p99 {quantiles[98] * 1000:6.2f} ms   "
        f"{(consensus.journal_syncs - syncs) / elapsed:6.0f} fdatasyncs/s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--folder", type=Path, help="parent of the state folders (default: the temporary folder)")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 64, 1000])
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        asyncio.run(_run(Path(folder), arguments.seconds, arguments.depths))


if __name__ == "__main__":
    main()
