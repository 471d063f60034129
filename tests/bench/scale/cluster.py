"""Managers as users run them and one more host for the driver; what the managers take is read from /proc."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.bench_cluster import UnixConnection, comm
from tests.bench.scale.driver import Driver
from tests.multihost.testbed import Testbed, run
from tests.waiting import wait_until

TICKS_S = os.sysconf("SC_CLK_TCK")
SOURCES = 32
"""Addresses of the driver's host: a manager lets 200 nodes of one address join at once."""

QUIET_SHARE = 0.30
"""Of a core: below it the managers have done what was to be done, and only hear heartbeats."""


_TERM = re.compile(r"\bterm\W+(\d+)")


class Api(UnixConnection):
    """A manager's HTTP API."""

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Raises: RuntimeError with the answer."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self.request(method, f"/v1.44{path}", json.dumps(body) if body is not None else None, headers)
        with self.getresponse() as response:
            answer = response.read()
            if response.status >= 400:
                raise RuntimeError(f"{method} {path}: {response.status} {answer[:300]!r}")
        return json.loads(answer) if answer.strip() else None

    def size_of(self, path: str) -> int:
        """Read an answer and throw it away."""
        self.request("GET", f"/v1.44{path}")
        with self.getresponse() as response:
            return len(response.read())

    def write_config(self, name: str) -> str:
        """Create a config; its ID."""
        config = {"Name": name, "Data": base64.b64encode(b"x" * 512).decode()}
        return str(self.ask("POST", "/configs/create", config)["ID"])

    def log_index(self) -> int:
        """Of the log, by an entry of its own."""
        config_id = self.write_config(f"mark-{time.monotonic_ns()}")
        return int(self.ask("GET", f"/configs/{config_id}")["Version"]["Index"])


class ScaleTestbed(Testbed):
    """``managers`` hosts with daemons, then one without, for the driver."""

    def __init__(self, managers: int, *, name: str = "sc", profile: Path | None = None) -> None:
        super().__init__(managers, name=name, network="192.168.97", log_level="info")
        self._profile = profile
        self._driver: Driver | None = None

    @property
    def driver(self) -> Driver:
        assert self._driver is not None
        return self._driver

    def daemon_command(self, host: int) -> list[str]:
        command = super().daemon_command(host)
        if self._profile is None:
            return command
        return [
            *("env", f"PYTHONPATH={Path(__file__).resolve().parents[3]}", f"SWARM_BENCH_PROFILES={self._profile}"),
            *(sys.executable, "-m", "tests.bench.scale.profiled", *command),
        ]

    # ------------------------------------------------------------ life

    def form(self) -> None:
        """Start the managers, make a swarm of them that runs no tasks itself, start the driver."""
        self.up()
        self._wire_driver()
        self.form_cluster(self.count)
        for host in self.hosts():
            self.update_node(self.node_id(host), Availability="drain")

    def _wire_driver(self) -> None:
        """Each source has an address of the first manager's of its own, whose route says where calls come from."""
        driver = self.count + 1
        self._wire(driver)
        self._power_on(driver)
        for number in range(1, SOURCES + 1):
            run(["ip", "-n", self.namespace(1), "addr", "add", f"192.168.98.{number}/32", "dev", "eth0"])
            run(["ip", "-n", self.namespace(driver), "addr", "add", f"192.168.99.{number}/32", "dev", "eth0"])
            route = ["route", "add", f"192.168.98.{number}/32", "dev", "eth0", "src", f"192.168.99.{number}"]
            run(["ip", "-n", self.namespace(driver), *route])
        for host in self.hosts():
            run(["ip", "-n", self.namespace(host), "route", "add", "192.168.99.0/24", "dev", "eth0"])
        self._driver = Driver(self.inside(driver, []))

    def join(self, count: int) -> dict[str, Any]:
        """Have so many more simulated nodes join; returns when each has its session."""
        before = self.driver.state()["sessions"]
        token = self.api().ask("GET", "/swarm")["JoinTokens"]["Worker"]
        hosts = [f"192.168.98.{number}" for number in range(1, SOURCES + 1)]
        found = self.driver.join(count, [f"{ip}:2377" for ip in hosts], token, [f"{ip}:7946" for ip in hosts])
        self.driver.wait_sessions(before + count)
        return found

    def down(self) -> None:
        if self._driver is not None:
            self._driver.close()
            self._driver = None
        super().down()

    # ------------------------------------------------------------ what is read

    def api(self, host: int = 1) -> Api:
        return Api(self.socket(host))

    def cpu_s(self, host: int | None = None) -> float:
        """Processor time of every manager's processes so far (of one host's), the node's process included."""
        hosts = self.hosts() if host is None else [host]
        return sum(_cpu_s(pid) for host in hosts for pid in self.daemon_pids(host))

    def pss_mb(self, host: int = 1) -> float:
        """Proportional memory of the manager process."""
        return sum(_pss_kb(pid) for pid in self.managers(host)) / 1024

    def managers(self, host: int = 1) -> list[int]:
        """The host's manager process."""
        return [pid for pid in self.daemon_pids(host) if comm(pid) == "swarm-manager"]

    def settle(self, *, deadline_s: float = 120) -> None:
        """Wait until the managers do nothing but hear heartbeats. Raises: TimeoutError."""
        last, since_s = self.cpu_s(), time.monotonic()

        def quiet() -> bool:
            nonlocal last, since_s
            time.sleep(0.5)
            now, now_s = self.cpu_s(), time.monotonic()
            share, last, since_s = (now - last) / (now_s - since_s), now, now_s
            return share < QUIET_SHARE

        wait_until(quiet, "the managers are quiet", deadline_s=deadline_s)

    def elections(self) -> int:
        """How many terms the managers have told of in their logs."""
        told = (line for host in self.hosts() for line in self.log(host).splitlines() if "leader.changed" in line)
        return len({found.group(1) for line in told if (found := _TERM.search(line))})

    @contextlib.contextmanager
    def profiled(self, name: str) -> Iterator[None]:
        """Sample the first manager meanwhile, where profiles were asked for."""
        if self._profile is None:
            yield
            return
        (pid,) = self.managers()
        os.kill(pid, signal.SIGRTMIN)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGRTMIN)
            written = self._profile / f"{_inner_pid(pid)}.stacks"
            wait_until(written.exists, "the profile is written", deadline_s=30)
            shutil.move(written, self._profile / f"{name}.stacks")


def _cpu_s(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_S
    return 0.0


def _pss_kb(pid: int) -> int:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return 0


def _inner_pid(pid: int) -> int:
    """The process's number in its own namespace."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("NSpid:")).split()[-1])
