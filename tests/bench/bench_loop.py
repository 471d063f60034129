"""How long the manager takes from `service create` to every task assigned, without network and disk.

Run: ``python -m tests.bench.bench_loop [--tasks 10000] [--nodes 100 1000]``. Docker's figure for 10 000 tasks on
100 nodes is 4.2 s.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time

import structlog

from manager.consensus.inprocess import InProcessConsensus
from manager.reconcile.loop import ReconcileLoop
from manager.store import Store, Working
from pki.identifiers import new_id
from proto.objects_pb2 import (
    NODE_STATE_READY,
    TASK_STATE_ASSIGNED,
    TASK_STATE_RUNNING,
    Cluster,
    Node,
    Service,
    Task,
)
from proto.specs_pb2 import NODE_AVAILABILITY_ACTIVE


async def assign_all(tasks: int, nodes: int) -> None:
    """Print how long it takes to create and place that many tasks, and what one status report then costs."""
    log = InProcessConsensus()
    store = Store(log, clock=time.time, debug=False)
    await log.start(store)
    working = store.begin()
    working.create(Cluster(id=new_id()))
    for number in range(nodes):
        node = Node(id=new_id())
        node.description.hostname = f"host-{number}"
        node.status.state = NODE_STATE_READY
        node.spec.availability = NODE_AVAILABILITY_ACTIVE
        working.create(node)
        working.boundary()
    await store.commit(working, split=True)
    loop = ReconcileLoop(store, time.time, new_id)
    loop.start()
    while await loop.step():
        pass
    service = Service(id=new_id(), spec_version=1)
    service.spec.name = "web"
    service.spec.task_template.container_spec.image = "busybox"
    service.spec.mode.replicated.replicas = tasks
    longest_s, started = 0.0, time.perf_counter()
    working = store.begin()
    working.create(service)
    await store.commit(working)
    while True:
        before = time.perf_counter()
        more = await loop.step()
        longest_s = max(longest_s, time.perf_counter() - before)
        if not more:
            break
    took_s = time.perf_counter() - started
    assigned = sum(task.status.state == TASK_STATE_ASSIGNED for task in store.view.tasks)
    assert assigned == tasks, f"{assigned} of {tasks} tasks assigned"
    spread = [len(store.view.tasks.by_node(node.id)) for node in store.view.nodes]
    print(
        f"{tasks} tasks on {nodes} nodes: {took_s:.2f} s, {tasks / took_s:.0f} tasks/s, longest pass {longest_s * 1e3:.0f} ms"
        f", {min(spread)} to {max(spread)} a node, {store.index} entries"
    )
    await report_one(store, loop)
    loop.close()
    await log.stop()


async def report_one(store: Store, loop: ReconcileLoop) -> None:
    """Print what a change of one task's status costs the loop."""
    reports, task_id = 200, next(iter(store.view.tasks)).id

    def report(working: Working) -> None:
        current = working.tasks.get(task_id)
        assert current is not None
        task = Task()
        task.CopyFrom(current)
        task.status.state = TASK_STATE_RUNNING
        working.update(task)

    started = time.perf_counter()
    for _ in range(reports):
        await store.update(report)
        while await loop.step():
            pass
    print(f"  one status report: {(time.perf_counter() - started) / reports * 1e6:.0f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1000])
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    for nodes in options.nodes:
        asyncio.run(assign_all(options.tasks, nodes))


if __name__ == "__main__":
    main()
