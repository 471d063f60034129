"""What is measured: a row is a function of a formed cluster that returns figures.

A row leaves no service behind and needs none that others made, so that rows can be run alone and in any order.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.bench.scale.cluster import ScaleTestbed
from tests.waiting import wait_until

DEADLINE_S = 180.0
IDLE_S = 20.0
CLIENTS = 16
ROUNDS = 20
PROBE_PERIOD_S = 0.1


@dataclass
class Bench:
    """What a row is given.

    Attributes:
        tasks: as the row's declaration has it, or the command line.
        figures: what was measured, by name.
    """

    testbed: ScaleTestbed
    nodes: int
    tasks: int
    deadline_s: float = DEADLINE_S
    profile_name: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    # ------------------------------------------------------------ what users do

    def create(self, replicas: int, *, name: str = "load", **update: Any) -> str:
        """Create a service; its ID."""
        spec = {
            "Name": name,
            "TaskTemplate": {"ContainerSpec": {"Image": "busybox:latest", "Command": ["sleep", "3600"]}},
            "Mode": {"Replicated": {"Replicas": replicas}},
            "UpdateConfig": update or None,
        }
        return str(self.testbed.api().ask("POST", "/services/create", spec)["ID"])

    def change(self, service_id: str, change: Callable[[dict[str, Any]], None]) -> None:
        """What `docker service update` does: the inspected spec back, with something changed."""
        api = self.testbed.api()
        found = api.ask("GET", f"/services/{service_id}")
        change(found["Spec"])
        version = found["Version"]["Index"]
        api.ask("POST", f"/services/{service_id}/update?version={version}", found["Spec"])

    def scale(self, service_id: str, replicas: int) -> None:
        def change(spec: dict[str, Any]) -> None:
            spec["Mode"]["Replicated"]["Replicas"] = replicas

        self.change(service_id, change)

    def force_update(self, service_id: str) -> None:
        def change(spec: dict[str, Any]) -> None:
            spec["TaskTemplate"]["ForceUpdate"] = spec["TaskTemplate"].get("ForceUpdate", 0) + 1

        self.change(service_id, change)

    def remove(self, service_id: str) -> None:
        self.testbed.api().ask("DELETE", f"/services/{service_id}")

    def update_state(self, service_id: str) -> str:
        found = self.testbed.api().ask("GET", f"/services/{service_id}")
        return str(found.get("UpdateStatus", {}).get("State", ""))

    def clear(self) -> None:
        """Remove every service and wait until nothing is left of them."""
        for service in self.testbed.api().ask("GET", "/services"):
            self.remove(service["ID"])
        self.wait(0)
        self.testbed.settle()

    def filled(self, replicas: int, **update: Any) -> str:
        """A service whose tasks run, unmeasured; its ID."""
        self.clear()
        service_id = self.create(replicas, **update)
        self.wait(replicas)
        self.testbed.settle()
        return service_id

    def wait(self, running: int) -> None:
        self.testbed.driver.wait_tasks(running, deadline_s=self.deadline_s)

    # ------------------------------------------------------------ how it is measured

    @contextmanager
    def measured(self) -> Iterator[None]:
        """CPU until the managers are quiet again, wall time until the block ends; also when it ends by an error."""
        testbed, figures = self.testbed, self.figures
        testbed.driver.latencies()
        statuses, index = testbed.driver.state()["statuses"], testbed.api().log_index()
        with testbed.profiled(self.profile_name):
            hosts = {host: testbed.cpu_s(host) for host in testbed.hosts()}
            begun_s = time.monotonic()
            try:
                yield
                figures["wall_s"] = time.monotonic() - begun_s
                testbed.settle()
            finally:
                spent_s = {host: testbed.cpu_s(host) - before_s for host, before_s in hosts.items()}
                figures["cpu_s"] = sum(spent_s.values())
                if testbed.count > 1:
                    figures.update({f"cpu_{host}_s": value for host, value in spent_s.items()})
        figures["statuses"] = testbed.driver.state()["statuses"] - statuses
        figures["entries"] = testbed.api().log_index() - index - 1
        found = testbed.driver.latencies()
        for key in ("report_p99_ms", "report_max_ms", "lag_p99_ms"):
            figures[key] = found[key]

    @contextmanager
    def probed(self) -> Iterator[None]:
        """Read one node again and again meanwhile: how long a small request waits."""
        node_id = self.testbed.node_id(1)
        stop, times_s = threading.Event(), list[float]()

        def probe() -> None:
            api = self.testbed.api()
            while not stop.wait(PROBE_PERIOD_S):
                begun_s = time.monotonic()
                api.ask("GET", f"/nodes/{node_id}")
                times_s.append(time.monotonic() - begun_s)

        with ThreadPoolExecutor(1) as pool:
            probing = pool.submit(probe)
            try:
                yield
            finally:
                stop.set()
        probing.result()
        times_s.sort()
        self.figures["get_node_p99_ms"] = 1000 * times_s[len(times_s) * 99 // 100]
        self.figures["get_node_max_ms"] = 1000 * times_s[-1]


def create(bench: Bench) -> None:
    """A service of so many tasks, until all run."""
    bench.clear()
    with bench.measured():
        bench.create(bench.tasks)
        bench.wait(bench.tasks)
    bench.figures["cpu_ms_a_task"] = 1000 * bench.figures["cpu_s"] / bench.tasks


def scale_down(bench: Bench) -> None:
    """To the half, until the other half is gone."""
    service_id = bench.filled(bench.tasks)
    with bench.measured():
        bench.scale(service_id, bench.tasks // 2)
        bench.wait(bench.tasks // 2)
    bench.figures["cpu_ms_a_task"] = 1000 * bench.figures["cpu_s"] / (bench.tasks // 2)


def remove(bench: Bench) -> None:
    """A service with its tasks, until nothing is left."""
    service_id = bench.filled(bench.tasks)
    with bench.measured():
        bench.remove(service_id)
        bench.wait(0)
    bench.figures["cpu_ms_a_task"] = 1000 * bench.figures["cpu_s"] / bench.tasks


def _update(bench: Bench, order: str) -> None:
    service_id = bench.filled(bench.tasks, Parallelism=50, Order=order)
    with bench.measured():
        bench.force_update(service_id)
        bench.testbed.driver.wait_version(service_id, 2, bench.tasks, deadline_s=bench.deadline_s)
        wait_until(
            lambda: bench.update_state(service_id) == "completed",
            "the update is completed",
            deadline_s=60,
            step_s=0.5,
        )
    bench.figures["cpu_ms_a_task"] = 1000 * bench.figures["cpu_s"] / bench.tasks


def update_stop_first(bench: Bench) -> None:
    """Rolling update by 50, with the 5 s of its monitor."""
    _update(bench, "stop-first")


def update_start_first(bench: Bench) -> None:
    """The same, new tasks before the old."""
    _update(bench, "start-first")


def idle(bench: Bench) -> None:
    """Nothing but heartbeats."""
    bench.clear()
    before_s, begun_s = bench.testbed.cpu_s(), time.monotonic()
    with bench.testbed.profiled(bench.profile_name):
        time.sleep(IDLE_S)
    bench.figures["core_percent"] = 100 * (bench.testbed.cpu_s() - before_s) / (time.monotonic() - begun_s)
    bench.figures["pss_mb"] = bench.testbed.pss_mb()


def config_writes(bench: Bench) -> None:
    """Configs written by one client and by sixteen."""
    count = 1600
    stamp = f"{time.monotonic_ns()}"
    for label, clients in (("1_client", 1), (f"{CLIENTS}_clients", CLIENTS)):
        apis = [bench.testbed.api() for _ in range(clients)]

        def work(index: int, apis: list[Any] = apis, label: str = label) -> None:
            for number in range(count // len(apis)):
                apis[index].write_config(f"{label}-{stamp}-{index}-{number}")

        bench.testbed.settle()
        cpu_s, begun_s = bench.testbed.cpu_s(), time.monotonic()
        with bench.testbed.profiled(bench.profile_name + label), ThreadPoolExecutor(clients) as pool:
            list(pool.map(work, range(clients)))
        bench.figures[f"{label}_cpu_ms"] = 1000 * (bench.testbed.cpu_s() - cpu_s) / count
        bench.figures[f"{label}_per_s"] = count / (time.monotonic() - begun_s)


def get_tasks(bench: Bench) -> None:
    """GET /tasks."""
    bench.filled(bench.tasks)
    api, times = bench.testbed.api(), []
    with bench.testbed.profiled(bench.profile_name):
        for _ in range(15):
            begun_s = time.monotonic()
            size = api.size_of("/tasks")
            times.append(time.monotonic() - begun_s)
    bench.figures["p50_ms"] = 1000 * statistics.median(times)
    bench.figures["mb"] = size / 1e6


def restart(bench: Bench) -> None:
    """The leader's daemon is killed, with all tasks running, and started again: until every node is ready."""
    testbed = bench.testbed
    bench.filled(bench.tasks)
    host, nodes = testbed.leader(1), bench.nodes + testbed.count
    testbed.kill_daemon(host)
    before_s, begun_s = testbed.cpu_s(), time.monotonic()
    testbed.start(host, wait=False)

    def ready() -> int:
        found = testbed.api().ask("GET", "/nodes")
        return sum(node["Status"]["State"] == "ready" for node in found)

    wait_until(lambda: ready() > 0, "a manager answers", deadline_s=bench.deadline_s, step_s=0.05)
    bench.figures["first_ready_s"] = time.monotonic() - begun_s
    wait_until(lambda: ready() == nodes, "every node is ready", deadline_s=bench.deadline_s, step_s=0.25)
    bench.figures["all_ready_s"] = time.monotonic() - begun_s
    bench.figures["cpu_s"] = testbed.cpu_s() - before_s
    bench.wait(bench.tasks)


def mass(bench: Bench) -> None:
    """Many tasks at once: nobody may starve."""
    bench.clear()
    with bench.probed(), bench.measured():
        bench.create(bench.tasks)
        bench.wait(bench.tasks)
    bench.figures["cpu_ms_a_task"] = 1000 * bench.figures["cpu_s"] / bench.tasks
    bench.figures["pss_mb"] = bench.testbed.pss_mb()
    nodes = bench.testbed.api().ask("GET", "/nodes")
    bench.figures["nodes_down"] = sum(node["Status"]["State"] == "down" for node in nodes)


def memory(bench: Bench) -> None:
    """Twenty rounds of tasks made and removed: what the manager's process holds after each."""
    bench.clear()
    for number in range(ROUNDS + 1):
        bench.figures[f"pss_mb_{number}"] = bench.testbed.pss_mb()
        if number < ROUNDS:
            service_id = bench.create(bench.tasks)
            bench.wait(bench.tasks)
            bench.remove(service_id)
            bench.wait(0)
            bench.testbed.settle()


ROWS: dict[str, tuple[Callable[[Bench], None], int, int]] = {
    "idle-1000": (idle, 1000, 0),
    "create-100x10000": (create, 100, 10_000),
    "create-1000x10000": (create, 1000, 10_000),
    "create-1000x1000": (create, 1000, 1_000),
    "down-100": (scale_down, 100, 10_000),
    "down-1000": (scale_down, 1000, 10_000),
    "rm-100": (remove, 100, 5_000),
    "update-stop-first": (update_stop_first, 100, 1_000),
    "update-start-first": (update_start_first, 100, 1_000),
    "config-writes": (config_writes, 100, 0),
    "get-tasks": (get_tasks, 100, 10_000),
    "down-100x500": (scale_down, 100, 500),
    "update-100x500": (update_stop_first, 100, 500),
    "update-100x10000": (update_stop_first, 100, 10_000),
    "memory": (memory, 100, 10_000),
    "restart-1000": (restart, 1000, 10_000),
    "mass-1000x50000": (mass, 1000, 50_000),
}
"""Name -> what is measured, on how many nodes, with how many tasks."""
