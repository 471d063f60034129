"""What is measured: a row is a function of a formed cluster that returns figures.

A row leaves no service behind and needs none that others made, so that rows can be run alone and in any order.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.bench.scale.cluster import ScaleTestbed
from tests.waiting import wait_until

DEADLINE_S = 180.0
IDLE_S = 20.0
CLIENTS = 16


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
    def measured(self, name: str = "") -> Any:
        """CPU until the managers are quiet again, wall time until the block ends; also when it ends by an error."""
        prefix = f"{name}_" if name else ""
        self.testbed.driver.latencies()
        with self.testbed.profiled(self.profile_name + prefix.rstrip("_")):
            cpu_s, begun_s = self.testbed.cpu_s(), time.monotonic()
            try:
                yield
                self.figures[f"{prefix}wall_s"] = time.monotonic() - begun_s
                self.figures[f"{prefix}cpu_to_there_s"] = self.testbed.cpu_s() - cpu_s
                self.testbed.settle()
            finally:
                self.figures[f"{prefix}cpu_s"] = self.testbed.cpu_s() - cpu_s
        found = self.testbed.driver.latencies()
        for key in ("report_p99_ms", "report_max_ms", "lag_p99_ms"):
            self.figures[f"{prefix}{key}"] = found[key]


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
        bench.figures["all_new_s"] = 0.0
        wait_until(
            lambda: bench.update_state(service_id) == "completed",
            "the update is completed",
            deadline_s=60,
            step_s=0.5,
        )
    del bench.figures["all_new_s"]
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
}
"""Name -> what is measured, on how many nodes, with how many tasks."""
