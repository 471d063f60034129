"""One swarm under many simulated nodes: what the managers take for each change, and how long it lasts.

    scripts/bench scale [--nodes N] [--tasks M] [--managers 1|3] [--rows NAME...] [--profile DIR]

Managers are real daemons; the nodes join with the token and speak the real protocol, from one process on a host of its
own. ``cpu_s`` is what all processes of all managers took until they were quiet again, the driver's left out.
``statuses`` is how many were written and ``entries`` what all of it took in the log, ``report_max_ms`` the longest that a
report was under way, ``lag_p99_ms`` how late the driver itself was.
``--nodes`` and ``--tasks`` take the place of each row's own numbers. ``--profile`` writes the manager's stacks of each row.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import time
from pathlib import Path

from tests.bench.scale.cluster import ScaleTestbed
from tests.bench.scale.rows import DEADLINE_S, ROWS, Bench

REFERENCE = json.loads((Path(__file__).parent / "scale" / "docker_20_10.json").read_text())
"""Docker's figures under simulated agents of its own protocol, taken once on two cores of the same class; not of this run."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--tasks", type=int)
    parser.add_argument("--managers", type=int, choices=[1, 3], default=1)
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--deadline", type=float, default=DEADLINE_S, help="seconds a row may take")
    parser.add_argument("--profile", type=Path, metavar="DIR")
    parser.add_argument("--name", default="sc", help="of the hosts: a second bench beside this one needs another")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root")
    return options


def show(row: str, figures: dict[str, float]) -> None:
    reference: dict[str, float] = REFERENCE.get(row, {})
    told = (
        f"{name} {value:.4g}" + (f" (Docker 20.10: {reference[name]:g})" if name in reference else "")
        for name, value in figures.items()
    )
    print(f"{row:24}" + "  ".join(told), flush=True)


def measure_rows(options: argparse.Namespace, nodes: int, rows: list[str]) -> list[str]:
    """Measure rows on one cluster of so many nodes, until one does not end. Returns: those still to be measured."""
    testbed = ScaleTestbed(options.managers, name=options.name, profile=options.profile)
    try:
        testbed.form()
        cpu_s = testbed.cpu_s()
        with testbed.profiled(f"join-{nodes}"):
            joined = testbed.join(nodes)
        testbed.settle()
        joined["cpu_ms_a_node"] = 1000 * (testbed.cpu_s() - cpu_s) / nodes
        show(f"join-{nodes}", joined)
        for number, row in enumerate(rows):
            work, _, tasks = ROWS[row]
            bench = Bench(testbed, nodes, options.tasks or tasks, deadline_s=options.deadline)
            bench.profile_name = row
            began_s, elections = time.monotonic(), testbed.elections()
            ended = sum(testbed.driver.state()["ended"].values())
            try:
                work(bench)
            except TimeoutError as error:
                state = testbed.driver.state()
                show(row, bench.figures)
                print(f"{row:24}not finished after {time.monotonic() - began_s:.0f} s: {error}; {state}", flush=True)
                return rows[number + 1 :]
            bench.figures["sessions_lost"] = sum(testbed.driver.state()["ended"].values()) - ended
            bench.figures["elections"] = testbed.elections() - elections
            show(row, bench.figures)
        return []
    finally:
        testbed.down()


def main() -> None:
    options = parse()
    if options.profile:
        options.profile = options.profile.resolve()
        options.profile.mkdir(parents=True, exist_ok=True)
    groups: dict[int, list[str]] = {}
    for row in options.rows:
        groups.setdefault(options.nodes or ROWS[row][1], []).append(row)
    with Path(f"/run/lock/swarm-bench-{options.name}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # hosts of this name are taken down by whoever makes some
        for nodes, rows in groups.items():
            while rows:
                rows = measure_rows(options, nodes, rows)


if __name__ == "__main__":
    main()
