"""Waiting until a service has converged, told while it happens."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import click

from cli import output
from cli.client import Engine

POLL_S = 0.2
DEFAULT_MONITOR_NS = 5_000_000_000
_FINAL = {"paused": "service update paused: ", "rollback_paused": "service rollback paused: "}


def watch_convergence(
    engine: Engine, service_id: str, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
) -> None:
    """Return once every wanted task has run for the monitor period (A8.07), or the service is gone.

    Raises:
        click.ClickException: the update paused or was rolled back.
    """
    stable_since: float | None = None
    last = ""
    while True:
        service = engine.get(f"/services/{service_id}")
        monitor_s = (service["Spec"].get("UpdateConfig") or {}).get("Monitor", DEFAULT_MONITOR_NS) / 1e9
        running, wanted, errors = _count(engine, service)
        state = (service.get("UpdateStatus") or {}).get("State", "")
        if state in _FINAL:
            raise click.ClickException(_FINAL[state] + service["UpdateStatus"].get("Message", ""))
        line = f"overall progress: {running} out of {wanted} tasks" + (f" ({errors})" if errors else "")
        if line != last and not quiet:
            _say(line)
            last = line
        busy = state in ("updating", "rollback_started")
        if running >= wanted and not busy:
            stable_since = clock() if stable_since is None else stable_since
            if clock() - stable_since >= monitor_s:
                _say(f"verify: Service {service_id} converged", quiet)
                if state == "rollback_completed":
                    raise click.ClickException(f"service rolled back: {service['UpdateStatus'].get('Message', '')}")
                return
        else:
            stable_since = None
        time.sleep(POLL_S)


def _count(engine: Engine, service: dict[str, Any]) -> tuple[int, int, str]:
    """Tasks running and wanted of the newest version, and the newest error of one that does not run."""
    tasks = engine.list("/tasks", {"service": [service["ID"]], "_up-to-date": ["true"]})
    live = [task for task in tasks if task["DesiredState"] in ("running", "ready")]
    running = sum(task["Status"]["State"] == "running" for task in live)
    replicated = service["Spec"]["Mode"].get("Replicated")
    if replicated is not None:
        wanted = replicated.get("Replicas", 1)
    else:
        nodes = engine.list("/nodes")
        active = {n["ID"] for n in nodes if n["Status"]["State"] == "ready" and n["Spec"]["Availability"] == "active"}
        wanted = len({task["NodeID"] for task in live if task.get("NodeID") in active})
        wanted = wanted or len(live)
    errors = [
        task["Status"]["Err"] for task in tasks if task["Status"].get("Err") and task["Status"]["State"] != "running"
    ]
    return running, wanted, errors[-1] if errors and running < wanted else ""


def _say(text: str, quiet: bool = False) -> None:
    if not quiet:
        output.write(text)
        sys.stdout.flush()
