"""A manager's restart and its snapshots with a large state: one member on the disk, its store, no network.

Run: ``python -m tests.bench.bench_restart [--tasks 100000] [--services 1000] [--nodes 1000] [--folder DIR]``. Wanted: a
restart to a serving leader in 5 s, no write held up by more than 100 ms by a snapshot. ``--rounds N`` looks at memory
instead: so many times 10 000 tasks are made and removed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import resource
import ssl
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import structlog

from manager.consensus.port import NodeID
from manager.consensus.raft import RaftConsensus
from manager.consensus.sealed import KeyRing
from manager.consensus.settings import RaftConfig
from manager.store import Store, Working
from pki.identifiers import new_id
from proto.objects_pb2 import NODE_STATE_READY, TASK_STATE_RUNNING, Cluster, Config, Node, Service, Task
from proto.specs_pb2 import NODE_AVAILABILITY_ACTIVE
from tests.waiting import until

UPDATED_ENTRY_OBJECTS = 200
STALL_PROBE_S = 0.005


def _no_peer(_: ssl.SSLObject) -> NodeID:
    raise AssertionError("a member alone has no peers")


@asynccontextmanager
async def _member(folder: Path) -> AsyncIterator[tuple[RaftConsensus, Store]]:
    """A member that leads, its store debugging nothing."""
    consensus = RaftConsensus(
        RaftConfig(
            node_id=NodeID("a"),
            address="127.0.0.1:2377",
            folder=folder,
            keys=KeyRing(bytes(32)),
            client_ssl=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            peer_identity=_no_peer,
        )
    )
    store = Store(consensus, clock=time.time, debug=False)
    await consensus.start(store)
    try:
        await until(lambda: consensus.leader.is_leader, deadline_s=60)
        yield consensus, store
    finally:
        await consensus.stop()


def _fill(working: Working, tasks: int, services: int, nodes: int) -> None:
    working.create(Cluster(id=new_id()))
    node_ids = [new_id() for _ in range(nodes)]
    for number, node_id in enumerate(node_ids):
        node = Node(id=node_id)
        node.description.hostname = f"host-{number}"
        node.status.state = NODE_STATE_READY
        node.spec.availability = NODE_AVAILABILITY_ACTIVE
        working.create(node)
        working.boundary()
    for number in range(services):
        service = Service(id=new_id(), spec_version=1)
        service.spec.name = f"web-{number}"
        service.spec.task_template.container_spec.image = "busybox"
        service.spec.mode.replicated.replicas = tasks // services
        working.create(service)
        working.boundary()
        for slot in range(1, tasks // services + 1):
            _create_task(working, service.id, slot, node_ids[(number + slot) % nodes])


def _create_task(working: Working, service_id: str, slot: int, node_id: str) -> None:
    task = Task(id=new_id(), service_id=service_id, spec_version=1, slot=slot, node_id=node_id)
    task.desired_state = task.status.state = TASK_STATE_RUNNING
    task.status.message = "started"
    task.status.container_status.container_id = new_id() + new_id()
    task.status.container_status.pid = 4711
    working.create(task)
    working.boundary()


async def _update_all(store: Store, passes: int) -> None:
    """Write every task again, 200 an entry."""
    for _ in range(passes):
        working = store.begin()
        for task in list(store.view.tasks):
            changed = Task()
            changed.CopyFrom(task)
            changed.status.container_status.pid += 1
            working.update(changed)
            working.boundary()
        await store.commit(working, split=True, timeout_s=600)


@contextmanager
def _stalls(what: str) -> Iterator[list[float]]:
    """How long a thread that wants the interpreter waits for it at most, while the block runs."""
    waits: list[float] = []
    ended = threading.Event()

    def probe() -> None:
        while not ended.is_set():
            before = time.perf_counter()
            time.sleep(STALL_PROBE_S)
            waits.append(time.perf_counter() - before - STALL_PROBE_S)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield waits
    finally:
        ended.set()
        thread.join()
    print(f"  {what}: another thread waits {max(waits) * 1e3:.0f} ms at most")


def _snapshots(folder: Path) -> set[str]:
    return {path.name for path in (folder / "snapshots").iterdir() if "." not in path.name}


async def _snapshot_under_writes(folder: Path, consensus: RaftConsensus, store: Store) -> None:
    snapshots = _snapshots(folder)
    latencies: list[float] = []

    async def write() -> None:
        working = store.begin()
        config = Config(id=new_id())
        config.spec.name = config.id
        working.create(config)
        before = time.perf_counter()
        await store.commit(working)
        latencies.append(time.perf_counter() - before)

    for _ in range(200):
        await write()
    quiet = statistics.median(latencies)
    latencies.clear()
    with _stalls("snapshot under writes"):
        started = time.perf_counter()
        consensus.request_snapshot()
        while _snapshots(folder) == snapshots:
            await write()
        took_s = time.perf_counter() - started
    print(
        f"  snapshot in {took_s:.2f} s; a write takes {quiet * 1e3:.1f} ms without it, with it"
        f" {statistics.median(latencies) * 1e3:.1f} ms, at most {max(latencies) * 1e3:.0f} ms ({len(latencies)} writes)"
    )


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def _restart(folder: Path, what: str) -> None:
    gc.unfreeze()
    gc.collect()
    started, cpu_s = time.perf_counter(), _cpu_s()
    async with _member(folder) as (_, store):
        took_s, cpu_s = time.perf_counter() - started, _cpu_s() - cpu_s
        print(f"restart, {what}: {took_s:.2f} s, {cpu_s:.2f} s of CPU, {len(store.view.tasks)} tasks", flush=True)


async def _large_state(folder: Path, tasks: int, services: int, nodes: int) -> None:
    async with _member(folder) as (consensus, store):
        working = store.begin()
        _fill(working, tasks, services, nodes)
        started = time.perf_counter()
        await store.commit(working, split=True, timeout_s=600)
        print(f"{tasks} tasks, {services} services, {nodes} nodes: {time.perf_counter() - started:.1f} s to write them")
        gc.collect()
        gc.freeze()
        await _snapshot_under_writes(folder, consensus, store)
        objects = len(store.view.tasks)
        started, cpu_s = time.perf_counter(), _cpu_s()
        await _update_all(store, 1)
        took_s, cpu_s = time.perf_counter() - started, _cpu_s() - cpu_s
        print(f"  every task updated, 200 an entry: {cpu_s / objects * 1e6:.1f} us of CPU a task, {took_s:.1f} s")
        snapshots = _snapshots(folder)
        await asyncio.sleep(0.2)
        consensus.request_snapshot()
        await until(lambda: _snapshots(folder) != snapshots, deadline_s=60)
    await _restart(folder, "from a snapshot alone")
    async with _member(folder) as (_, store):
        await _update_all(store, 3)
    await _restart(folder, "after each task was written three times")


async def _rounds(folder: Path, rounds: int) -> None:
    async with _member(folder) as (_, store):
        for number in range(rounds):
            working = store.begin()
            for slot in range(10_000):
                _create_task(working, "service", slot, f"node-{slot % 100}")
            await store.commit(working, split=True, timeout_s=600)
            working = store.begin()
            for task in list(store.view.tasks):
                working.remove(task)
                working.boundary()
            await store.commit(working, split=True, timeout_s=600)
            del working
            gc.collect()
            print(f"round {number + 1}: {_rss_mb():.1f} MB, {len(gc.get_objects())} objects", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="parent of the state folder (default: the temporary folder)")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.rounds:
            asyncio.run(_rounds(Path(folder) / "raft", options.rounds))
        else:
            asyncio.run(_large_state(Path(folder) / "raft", options.tasks, options.services, options.nodes))


if __name__ == "__main__":
    main()
