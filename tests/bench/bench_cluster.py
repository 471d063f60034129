"""A cluster of five hosts (three managers) through the Engine API: ours, and Docker's own beside it.

    scripts/bench cluster [--only ours|docker] [--replicas 50]

Prints a line a metric: ours, Docker's (where dockerd is installed) and the ratio, both of the same run. Hosts are
network namespaces made here (tests/multihost/testbed.py). Machines differ by a factor of two: quote the ratio.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import math
import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker

from tests.multihost.testbed import Testbed, run
from tests.support_images import busybox_rootfs
from tests.waiting import wait_until

HOSTS, MANAGERS = 5, 3
SLEEP = ["sh", "-c", "trap 'exit 0' TERM; sleep 3600 & wait"]
Metrics = dict[str, float]


class DockerTestbed(Testbed):
    """The same hosts with Docker's own daemon."""

    def daemon_command(self, host: int) -> list[str]:
        directory = self.directory(host)
        return [
            *("dockerd", "--data-root", str(directory / "data"), "--exec-root", str(directory / "exec")),
            *("--pidfile", str(directory / "pid"), "--host", f"unix://{self.socket(host)}"),
        ]

    def daemon_pids(self, host: int) -> list[int]:
        """dockerd alone: its containerd goes on, as ours is killed and conmon goes on."""
        pids = map(int, run(["ip", "netns", "pids", self.namespace(host)], check=False).split())
        return [pid for pid in pids if comm(pid) == "dockerd"]

    def client(self, host: int, *, timeout_s: float = 60) -> Any:
        return docker.DockerClient(base_url=f"unix://{self.socket(host)}", timeout=int(timeout_s), version="1.41")


def comm(pid: int) -> str:
    """The process's name, "" when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def seconds(condition: Callable[[], object], what: str, *, deadline_s: float = 180, step_s: float = 0.02) -> float:
    """How long until the condition holds; NaN when it does not."""
    begin = time.monotonic()
    try:
        wait_until(condition, what, deadline_s=deadline_s, step_s=step_s)
    except TimeoutError:
        return math.nan
    return time.monotonic() - begin


@contextmanager
def timed(into: Metrics, name: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    into[name] = time.monotonic() - begin


def create(testbed: Testbed, name: str, replicas: int, **options: Any) -> Any:
    mode = docker.types.ServiceMode("replicated", replicas)
    return testbed.client(1).services.create("busybox:latest", command=SLEEP, name=name, mode=mode, **options)


def scale(testbed: Testbed, service_id: str, replicas: int) -> None:
    """What `docker service scale` does: the inspected spec back, with one number changed."""
    api = testbed.client(1).api
    found = api.inspect_service(service_id)
    found["Spec"]["Mode"]["Replicated"]["Replicas"] = replicas
    url = api._url("/services/{0}/update", service_id)
    api._raise_for_status(api._post_json(url, data=found["Spec"], params={"version": found["Version"]["Index"]}))


def pss_mb(testbed: Testbed, host: int) -> float:
    """Proportional memory of every process of the host's daemon, containers and their monitors left out."""
    total_kb = 0
    for pid in run(["ip", "netns", "pids", testbed.namespace(host)], check=False).split():
        with suppress(OSError, IndexError):
            if comm(int(pid)) in ("tini", "sh", "conmon", "nsenter", "sleep"):
                continue
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total_kb += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total_kb / 1024


def measure_formation(testbed: Testbed, into: Metrics) -> None:
    first = testbed.client(1)
    with timed(into, "swarm_init_s"):
        first.swarm.init(advertise_addr=testbed.ip(1), listen_addr="0.0.0.0:2377")
    first.swarm.reload()
    tokens = first.swarm.attrs["JoinTokens"]
    joins = []
    for host in testbed.hosts()[1:]:
        begin = time.monotonic()
        token = tokens["Manager" if host <= MANAGERS else "Worker"]
        testbed.client(host).swarm.join([f"{testbed.ip(1)}:2377"], token, advertise_addr=testbed.ip(host))
        joins.append(time.monotonic() - begin)
    into["swarm_join_s"] = statistics.median(joins)
    wait_until(
        lambda: sum(node.attrs["Status"]["State"] == "ready" for node in first.nodes.list()) == HOSTS,
        "every node is ready",
    )


def measure_containers(testbed: Testbed, into: Metrics) -> None:
    client, times = testbed.client(1), []
    for _ in range(12):
        begin = time.monotonic()
        client.containers.run("busybox:latest", "true", remove=True)
        times.append(time.monotonic() - begin)
    into["run_rm_s"] = statistics.median(times[2:])


def measure_services(testbed: Testbed, into: Metrics, replicas: int) -> None:
    begin = time.monotonic()
    service = create(testbed, "deploy", replicas)
    seconds(lambda: len(testbed.tasks("deploy")) == replicas, "every task runs")
    into[f"deploy_{replicas}_s"] = time.monotonic() - begin
    times = []
    for more in range(1, 6):
        begin = time.monotonic()
        scale(testbed, service.id, replicas + more)
        seconds(lambda n=replicas + more: len(testbed.tasks("deploy")) == n, "one more runs", step_s=0.01)  # type: ignore[misc]
        times.append(time.monotonic() - begin)
    into["scale_plus_one_s"] = statistics.median(times)
    scale(testbed, service.id, replicas)
    seconds(lambda: len(testbed.tasks("deploy")) == replicas, "scaled back")


class UnixConnection(http.client.HTTPConnection):
    """The standard library's client on a unix socket: docker-py takes a core for itself with 16 threads."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def create_config(self, name: str) -> None:
        body = json.dumps({"Name": name, "Data": base64.b64encode(b"x" * 512).decode()})
        self.request("POST", "/v1.41/configs/create", body, {"Content-Type": "application/json"})
        with self.getresponse() as response:
            answer = response.read()
            assert response.status == 201, answer


def measure_writes(testbed: Testbed, into: Metrics, count: int = 200, clients: int = 16) -> None:
    def docker_py() -> Callable[[str], object]:
        client = testbed.client(1)
        return lambda name: client.configs.create(name=name, data=b"x" * 512)

    def plain() -> Callable[[str], object]:
        return UnixConnection(testbed.socket(1)).create_config

    for label, connect in (("writes", docker_py), ("writes_plain_client", plain)):
        one = connect()
        begin = time.monotonic()
        for number in range(count):
            one(f"{label}-{number}")
        into[f"{label}_serial_per_s"] = count / (time.monotonic() - begin)
        many = [connect() for _ in range(clients)]

        def work(index: int, label: str = label, many: Sequence[Callable[[str], object]] = many) -> None:
            for number in range(count // 4):
                many[index](f"{label}-{index}-{number}")

        with ThreadPoolExecutor(clients) as pool:
            begin = time.monotonic()
            list(pool.map(work, range(clients)))
            into[f"{label}_{clients}_clients_per_s"] = clients * (count // 4) / (time.monotonic() - begin)


@contextmanager
def busy_machine() -> Iterator[None]:
    """Twice as many processes that never wait as there are processors."""
    burners = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def measure_daemon_back(testbed: Testbed, into: Metrics, name: str, replicas: int) -> None:
    """A worker's daemon is killed and started again 10 s later: how many tasks of its host were replaced."""
    host = MANAGERS + 1
    node_id = testbed.node_id(host)
    before = {task["ID"] for task in testbed.tasks("deploy") if task["NodeID"] == node_id}
    testbed.kill_daemon(host)
    time.sleep(10)
    testbed.start(host)

    def settled() -> bool:
        nodes = testbed.client(1, timeout_s=25).nodes.list(filters={"id": node_id})
        return nodes[0].attrs["Status"]["State"] == "ready" and len(testbed.tasks("deploy")) == replicas

    seconds(settled, "the node is ready and every task runs")
    time.sleep(5)  # what Docker's node finds missing it says a moment after it is ready
    seconds(settled, "every task runs still")
    into[name] = len(before - {task["ID"] for task in testbed.tasks("deploy")}) if before else math.nan


def measure_losses(testbed: Testbed, into: Metrics, replicas: int) -> None:
    lost = testbed.node_id(HOSTS)
    testbed.kill(HOSTS)

    def elsewhere(*nodes: str, via: int = 1) -> bool:
        return len([task for task in testbed.tasks("deploy", via=via) if task["NodeID"] not in nodes]) >= replicas

    into["worker_loss_recover_s"] = seconds(lambda: elsewhere(lost), "the worker's tasks run elsewhere")
    leader = testbed.leader(1)
    leader_node = testbed.node_id(leader)
    other = next(host for host in range(1, MANAGERS + 1) if host != leader)
    testbed.kill(leader)
    attempts = iter(range(10**6))

    def write() -> bool:
        testbed.client(other, timeout_s=5).configs.create(name=f"after-{next(attempts)}", data=b"x")
        return True

    into["leader_loss_write_s"] = seconds(write, "another manager accepts a write")
    into["leader_loss_tasks_recover_s"] = seconds(
        lambda: elsewhere(lost, leader_node, via=other), "the leader host's tasks run elsewhere"
    )


def measure(testbed: Testbed, replicas: int) -> Metrics:
    """Every metric of one engine."""
    into: Metrics = {}
    try:
        testbed.up()
        rootfs = busybox_rootfs()
        for host in testbed.hosts():
            testbed.import_image(host, rootfs)
        measure_formation(testbed, into)
        measure_containers(testbed, into)
        time.sleep(2)  # let both settle before their memory is read
        into["manager_pss_mb"], into["worker_pss_mb"] = pss_mb(testbed, 2), pss_mb(testbed, HOSTS)
        measure_services(testbed, into, replicas)
        measure_writes(testbed, into)
        measure_daemon_back(testbed, into, "daemon_back_replaced", replicas)
        with busy_machine():
            measure_daemon_back(testbed, into, "daemon_back_busy_replaced", replicas)
        measure_losses(testbed, into, replicas)
    except Exception as error:
        print(f"stopped: {error}")
    finally:
        testbed.down()
    return into


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["ours", "docker"])
    parser.add_argument("--replicas", type=int, default=50)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root")
    ours: Metrics = {}
    theirs: Metrics = {}
    if options.only != "docker":
        ours = measure(Testbed(HOSTS, name="bo", network="192.168.94"), options.replicas)
    if options.only != "ours" and shutil.which("dockerd"):
        theirs = measure(DockerTestbed(HOSTS, name="bd", network="192.168.95"), options.replicas)
    print(f"{'metric':36}{'ours':>10}{'docker':>10}{'ratio':>8}")
    for name in ours or theirs:
        a, b = ours.get(name, math.nan), theirs.get(name, math.nan)
        print(f"{name:36}{a:10.3f}{b:10.3f}{a / b if b else math.nan:8.2f}")


if __name__ == "__main__":
    main()
