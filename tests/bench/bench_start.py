"""What a daemon costs before it does anything: CPU until the first answered ``/_ping``, and memory when idle.

    scripts/bench start [--rounds 5] [--python PYTHON]

A line a metric: ours, Docker's (where dockerd is installed) and the ratio, of the same run, rounds taken in turns. CPU is
that of every process of the host but its init (user and system, in seconds); memory is proportional (PSS, in MB), some
seconds later, of a node that is in no swarm.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

import docker
import requests.exceptions

from tests.conformance.hosts import EngineHost
from tests.waiting import wait_until

SETTLE_S = 5.0
_TICKS = os.sysconf("SC_CLK_TCK")


class OurHost(EngineHost):
    """A host with swarmd, run by a given interpreter."""

    python = sys.executable

    def daemon_command(self) -> list[str]:
        _, *rest = super().daemon_command()
        return [self.python, *rest]


class DockerHost(EngineHost):
    """A host with dockerd and its containerd."""

    def daemon_command(self) -> list[str]:
        return [
            *(
                "dockerd",
                "--data-root",
                str(self.directory / "state"),
                "--exec-root",
                str(self.directory / "run" / "exec"),
            ),
            *("--pidfile", str(self.directory / "pid"), "--cgroup-parent", self.cgroup_parent),
            *("--host", f"unix://{self.socket}"),
        ]


def cpu_s(host: EngineHost) -> float:
    """Of every process there and of the children they waited for."""
    total = 0
    for pid in host.processes():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(field) for field in fields[11:15])
    return total / _TICKS


def pss_mb(host: EngineHost) -> float:
    total_kb = 0
    for pid in host.processes():
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total_kb += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total_kb / 1024


def answers(client: docker.DockerClient) -> bool:
    """Dockerd listens before it is there."""
    with contextlib.suppress(requests.exceptions.ConnectionError):
        return bool(client.ping())
    return False


def measure(host: EngineHost) -> dict[str, float]:
    """One start."""
    begin = time.monotonic()
    try:
        host.start()
        with contextlib.closing(host.client(version="1.41")) as client:
            wait_until(lambda: answers(client), f"the daemon answers; its log: {host.log}")
        wall_s, spent_s = time.monotonic() - begin, cpu_s(host)
        time.sleep(SETTLE_S)
        return {
            "start_cpu_s": spent_s,
            "start_s": wall_s,
            "start_and_idle_cpu_s": cpu_s(host),
            "idle_pss_mb": pss_mb(host),
        }
    finally:
        host.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", default=sys.executable, help="an environment without the tests' packages, say")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root")
    OurHost.python = options.python
    kinds: dict[str, type[EngineHost]] = {"ours": OurHost}
    if shutil.which("dockerd"):
        kinds["docker"] = DockerHost
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(options.rounds):
        for name, kind in kinds.items():
            rounds[name].append(measure(kind()))
    print(f"{'metric':24}{'ours':>10}{'docker':>10}{'ratio':>8}")
    for metric in rounds["ours"][0]:
        ours, theirs = (
            statistics.median(each[metric] for each in rounds[name]) if name in rounds else math.nan
            for name in ("ours", "docker")
        )
        print(f"{metric:24}{ours:10.3f}{theirs:10.3f}{ours / theirs:8.2f}")


if __name__ == "__main__":
    main()
