"""Lists through the Engine API: 10 000 tasks of 100 services on 1 000 nodes, 1 000 services in all.

    scripts/bench reads [--against TREE] [--tasks 10000] [--rounds 15] [--docker PATH]

A manager (the real store, control API and socket, a log of one member) and the swarm routes, each in a process of its
own, and a plain client. Prints a line a request: median and worst time, processor time of both processes, the longest
that either's event loop was held; then the memory that listing added. ``--against`` is the root of another checkout that
gets the same store in the same run, request by request in turn; ``--docker`` a docker CLI to time as well. Machines
differ and so do minutes: quote the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import logging
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from api.application import build
from api.swarm_routes import routes
from base.unix_rpc import UnixChannel, UnixServer
from manager.consensus.inprocess import InProcessConsensus
from manager.control.forward import LeaderForwarder
from manager.control.rpc import control_handler
from manager.control.service import ControlService
from manager.model.versions import first_version, present_version
from manager.store import Store, Working
from pki.identifiers import new_id
from proto.control_pb2_grpc import ControlStub
from proto.objects_pb2 import Cluster, Config, Node, NodeState, Secret, Service, Task, TaskState
from proto.specs_pb2 import NodeAvailability, NodeRole, ServiceSpec
from worker.membership.cluster_member import LocalNodeState, SwarmInfo

NODES, SERVICES, SERVICES_WITH_TASKS, PAYLOADS = 1000, 1000, 100, 200
LAG_STEP_S = 0.001
TOUCHED = 500
STACK_LABEL = "com.docker.stack.namespace"


# ---------------------------------------------------------------- the store


def service_spec(number: int, replicas: int) -> ServiceSpec:
    spec = ServiceSpec(name=f"service-{number}")
    spec.labels.update({STACK_LABEL: f"stack-{number % 10}", "com.docker.stack.image": "nginx:1.27", "team": "front"})
    container = spec.task_template.container_spec
    container.image = "nginx:1.27@sha256:" + "ab" * 32
    container.args.extend(["nginx", "-g", "daemon off;"])
    container.env.extend(f"VARIABLE_{index}=value of {index}" for index in range(6))
    container.labels[STACK_LABEL] = f"stack-{number % 10}"
    mount = container.mounts.add(type="volume", source="data", target="/var/lib/data")
    mount.volume_options.labels[STACK_LABEL] = f"stack-{number % 10}"
    spec.task_template.resources.limits.memory_bytes = 256 << 20
    spec.task_template.resources.reservations.nano_cpus = 10**8
    spec.task_template.placement.constraints.append("node.role == worker")
    spec.mode.replicated.replicas = replicas
    spec.update_config.parallelism = 2
    return spec


def make_node(number: int) -> Node:
    role = NodeRole.NODE_ROLE_WORKER
    node = Node(id=new_id(), role=role)
    node.spec.role, node.spec.availability = role, NodeAvailability.NODE_AVAILABILITY_ACTIVE
    node.spec.labels.update({"zone": f"zone-{number % 3}", "disk": "ssd"})
    described = node.description
    described.hostname = f"host-{number}"
    described.platform.architecture, described.platform.os = "x86_64", "linux"
    described.resources.nano_cpus, described.resources.memory_bytes = 8 * 10**9, 32 << 30
    described.engine.engine_version = "0.1.0"
    for kind, name in (("Log", "json-file"), ("Network", "bridge"), ("Network", "host"), ("Volume", "local")):
        described.engine.plugins.add(type=kind, name=name)
    described.tls_info.trust_root = "-----BEGIN CERTIFICATE-----\n" + "A" * 640
    node.status.state, node.status.addr = NodeState.NODE_STATE_READY, f"10.0.{number // 250}.{number % 250 + 1}"
    return node


def make_task(service: Service, slot: int, node: Node) -> Task:
    task = Task(id=new_id(), service_id=service.id, spec_version=service.spec_version, slot=slot, node_id=node.id)
    task.desired_state = task.status.state = TaskState.TASK_STATE_RUNNING
    task.status.timestamp.FromNanoseconds(time.time_ns())
    task.status.running_since.CopyFrom(task.status.timestamp)
    task.status.message = "started"
    task.status.container_status.container_id = random.randbytes(32).hex()
    task.status.container_status.pid = random.randrange(2, 1 << 22)
    task.networks_attachments.add(network_id="bridge", addresses=[f"172.17.{slot % 250}.{slot % 250 + 2}/16"])
    return task


async def fill(store: Store, tasks: int) -> None:
    """Real objects, through the log; the same for every run of these numbers but for IDs and times."""
    working = store.begin()

    def create(obj: Any) -> None:
        working.create(obj)
        working.boundary()

    create(Cluster(id="cluster"))
    nodes = [make_node(number) for number in range(NODES)]
    for node in nodes:
        create(node)
    each = tasks // SERVICES_WITH_TASKS
    for number in range(SERVICES):
        replicas = each if number < SERVICES_WITH_TASKS else 0
        service = first_version(new_id(), service_spec(number, replicas))
        create(service)
        create(present_version(service))
        for slot in range(1, replicas + 1):
            create(make_task(service, slot, nodes[(number * 7 + slot) % NODES]))
    for number in range(PAYLOADS):
        for made in (Secret(id=new_id()), Config(id=new_id())):
            made.spec.name, made.spec.data = f"payload-{number}", bytes(4096)
            create(made)
    await store.commit(working, split=True, timeout_s=600)


# ---------------------------------------------------------------- the two processes


async def watch_loop(told: list[float]) -> None:
    """Keep the most processor time that others took between two turns since it was last asked: a busy machine is no fault."""
    while True:
        begin = time.thread_time()
        await asyncio.sleep(LAG_STEP_S)
        told[0] = max(told[0], time.thread_time() - begin)


async def until_told(commands: dict[str, Any]) -> None:
    """Answer each line on stdin (a word, arguments) with one on stdout."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().split():
        answer = commands[line[0]](*line[1:])
        print(json.dumps(await answer if asyncio.iscoroutine(answer) else answer), flush=True)


def take(held: list[float]) -> float:
    longest, held[0] = held[0], 0.0
    return longest


async def serve_manager(folder: Path, snapshot: Path) -> None:
    consensus = InProcessConsensus()
    store = Store(consensus, clock=time.time, debug=False)
    service = ControlService(store, consensus)
    await consensus.start(store)
    store.load([snapshot.read_bytes()], 10**6)()
    server = UnixServer()
    server.add_generic_rpc_handlers((control_handler(LeaderForwarder(service, consensus, lambda: None).call),))
    server.add_insecure_port(f"unix:{folder}/manager.sock")
    await server.start()
    changed = iter(range(10**9))

    async def touch(count: str) -> int:
        """Change as many tasks, others each time."""
        everything = list(store.view.tasks)

        def change(working: Working) -> None:
            for _ in range(int(count)):
                task = Task()
                task.CopyFrom(everything[next(changed) % len(everything)])
                task.status.message = f"changed {next(changed)}"
                working.update(task)
                working.boundary()

        working = store.begin()
        change(working)
        return await store.commit(working, split=True)

    held = [0.0]
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch_loop(held), name="watch")
        await until_told({"held": lambda: take(held), "touch": touch, "ready": lambda: True})
        watching.cancel()


class Member:
    """A manager's host, as the routes see it."""

    def __init__(self, address: str) -> None:
        self._stub = ControlStub(UnixChannel(address))

    def info(self) -> SwarmInfo:
        return SwarmInfo(LocalNodeState.ACTIVE, node_id="node", control_available=True)

    async def wait_control(self, _timeout_s: float) -> Any:  # Any: the asynchronous face of the stub
        return self._stub


async def serve_api(folder: Path) -> None:
    # Any: of a cluster's member the routes measured here ask these two things.
    member: Any = Member(f"unix:{folder}/manager.sock")

    async def ping(_request: web.Request) -> web.Response:
        return web.Response(text="OK")

    app = build([*routes(member), web.get("/_ping", ping)], server="swarmd/bench (linux)")
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "api.sock")).start()
    held = [0.0]
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch_loop(held), name="watch")
        await until_told({"held": lambda: take(held), "ready": lambda: True})
        watching.cancel()


# ---------------------------------------------------------------- measuring


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


@dataclass
class Side:
    """One tree's two processes."""

    name: str
    folder: Path
    processes: list[subprocess.Popen[str]]

    def tell(self, process: int, line: str) -> Any:
        running = self.processes[process]
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(line + "\n")
        running.stdin.flush()
        return json.loads(running.stdout.readline())

    def cpu_s(self) -> float:
        ticks = 0
        for process in self.processes:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_mb(self, process: int) -> float:
        lines = Path(f"/proc/{self.processes[process].pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024

    def get(self, path: str) -> bytes:
        """With a connection of its own, as the docker CLI makes one a command."""
        connection = UnixConnection(self.folder / "api.sock")
        try:
            connection.request("GET", f"/v1.51{path}")
            with connection.getresponse() as response:
                body = response.read()
                assert response.status == 200, body[:500]
                return body
        finally:
            connection.close()


@contextlib.contextmanager
def running(name: str, tree: Path, folder: Path, snapshot: Path) -> Iterator[Side]:
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(tree)}
    side = Side(name, folder, [])
    try:
        for part in ("manager", "api"):
            command = [sys.executable, str(Path(__file__).resolve()), "--serve", part, str(folder), str(snapshot)]
            process = subprocess.Popen(
                command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            side.processes.append(process)
            side.tell(-1, "ready")
        yield side
    finally:
        for process in side.processes:
            process.send_signal(signal.SIGKILL)
            process.wait()


def requests(side: Side, docker: str | None) -> Iterator[tuple[str, Any, bool]]:
    """(what it is called, the call, whether tasks are to be changed before each) of what is measured."""

    def get(path: str) -> Any:
        return lambda: side.get(path)

    def filters(path: str, **values: str) -> str:
        return f"{path}?filters=" + json.dumps({key: [value] for key, value in values.items()}).replace(" ", "")

    first = next(found for found in json.loads(side.get("/services")) if found["Spec"]["Name"] == "service-7")
    node = json.loads(side.get("/nodes"))[100]
    yield "GET /tasks", get("/tasks"), False
    yield f"GET /tasks, {TOUCHED} changed since", get("/tasks"), True
    yield "GET /tasks of a service", get(filters("/tasks", service="service-7")), False
    yield "GET /tasks of a node", get(filters("/tasks", node=node["ID"])), False
    yield "GET /tasks of a stack", get(filters("/tasks", label=f"{STACK_LABEL}=stack-3")), False
    yield "GET /tasks shut down (none)", get(filters("/tasks", **{"desired-state": "shutdown"})), False
    yield "GET /services?status", get("/services?status=true"), False
    yield "GET /services/ID", get(f"/services/{first['ID']}"), False
    yield "GET /nodes", get("/nodes"), False
    yield "GET /configs", get("/configs"), False
    if docker is not None:
        environment = os.environ | {"DOCKER_HOST": f"unix://{side.folder}/api.sock"}

        def cli(*arguments: str) -> Any:
            return lambda: subprocess.run([docker, *arguments], env=environment, check=True, capture_output=True).stdout

        yield "docker service ls", cli("service", "ls"), False
        yield "docker service ps", cli("service", "ps", "service-7"), False
        yield "docker node ps", cli("node", "ps", node["Description"]["Hostname"]), False
        yield "docker stack ps", cli("stack", "ps", "stack-3"), False


def measure(sides: list[Side], rounds: int, docker: str | None) -> None:
    print(f"{'':36}{'':>8}{'p50 ms':>9}{'max ms':>9}{'CPU ms':>9}{'held ms, manager':>18}{'API':>7}{'kB':>9}")
    for rows in zip(*(requests(side, docker) for side in sides), strict=True):
        times: dict[str, list[float]] = {side.name: [] for side in sides}
        cpu, size, first = dict.fromkeys(times, 0.0), dict.fromkeys(times, 0), {}
        held = {side.name: [0.0, 0.0] for side in sides}
        for turn in range(rounds + 1):
            for side, (_, call, changes) in zip(sides, rows, strict=True):
                if changes:
                    side.tell(0, f"touch {TOUCHED}")
                side.tell(0, "held"), side.tell(1, "held")
                cpu_before, begin = side.cpu_s(), time.perf_counter()
                size[side.name] = len(call())
                took = time.perf_counter() - begin
                if not turn:
                    first[side.name] = took
                    continue
                times[side.name].append(took)
                cpu[side.name] += side.cpu_s() - cpu_before
                for process in (0, 1):
                    held[side.name][process] = max(held[side.name][process], side.tell(process, "held"))
        for side in sides:
            name = side.name
            print(
                f"{rows[0][0]:36}{name:>8}{statistics.median(times[name]) * 1e3:9.1f}{max(times[name]) * 1e3:9.1f}"
                f"{cpu[name] / rounds * 1e3:9.1f}{held[name][0] * 1e3:18.1f}{held[name][1] * 1e3:7.1f}"
                f"{size[name] / 1e3:9.0f}   first {first[name] * 1e3:.1f}",
                flush=True,
            )


async def write_snapshot(path: Path, tasks: int) -> None:
    consensus = InProcessConsensus()
    store = Store(consensus, clock=time.time, debug=False)
    await consensus.start(store)
    await fill(store, tasks)
    path.write_bytes(b"".join(store.snapshot()()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="root of another checkout, with this file in it")
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--docker", help="a docker CLI")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        part, folder, snapshot = options.serve
        structlog.configure(
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        )
        asyncio.run(serve_manager(Path(folder), Path(snapshot)) if part == "manager" else serve_api(Path(folder)))
        return
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as stack:
        root = Path(made)
        snapshot = root / "snapshot"
        asyncio.run(write_snapshot(snapshot, options.tasks))
        trees = {"now": Path(__file__).resolve().parents[2]} | ({"before": options.against} if options.against else {})
        sides = [stack.enter_context(running(name, tree, root / name, snapshot)) for name, tree in trees.items()]
        before = {side.name: [side.memory_mb(process) for process in (0, 1)] for side in sides}
        measure(sides, options.rounds, options.docker)
        for side in sides:
            for process, part in enumerate(("manager", "API")):
                was, now = before[side.name][process], side.memory_mb(process)
                print(f"memory of the {part}, {side.name}: {was:.0f} MB, after the lists {now:.0f} MB")


if __name__ == "__main__":
    main()
