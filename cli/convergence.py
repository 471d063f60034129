"""Whether a service has converged, and what to say of it: pure, fed with what the daemon answers.

The words and the rules are Docker's (docker/cli cli/command/service/progress, features A8.07): a service has
converged when every task wanted has been running for the monitor period without a break.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # Any: values of the API's JSON

import click

from cli import output

Object = Mapping[str, Any]

DEFAULT_MONITOR_S = 5.0
BARS_MAX = 20
ERROR_WIDTH = 75
STEPS = 9
STATES = {
    state: number
    for number, state in enumerate(
        (
            *("new", "allocated", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running"),
            *("complete", "shutdown", "failed", "rejected"),
        ),
        1,
    )
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of progress; a later one of the same key takes its place. ``step`` of STEPS draws a bar, 0 none."""

    key: str
    text: str
    step: int = 0


class Convergence:
    """Watches one service.

    Attributes:
        done: nothing is left to wait for.
    """

    def __init__(self, service_id: str) -> None:
        self._service_id = service_id
        self._since: float | None = None
        self._steady = False
        self._rollback = False
        self._started = False
        self._slots: dict[object, int] = {}
        self._ending: Line | None = None
        self.done = False

    def observe(self, service: Object, tasks: Sequence[Object], up_nodes: set[str], now: float) -> list[Line]:
        """What to show after one look.

        Args:
            tasks: of the newest version of the spec (the filter ``_up-to-date``).
            up_nodes: IDs of the nodes that are not down.
            now: seconds of a monotonic clock.

        Raises:
            click.ClickException: the update or the rollback was paused; the daemon's message.
        """
        lines = self._update_status(service.get("UpdateStatus") or {})
        monitor_s = (service["Spec"].get("UpdateConfig") or {}).get("Monitor", 0) / 1e9 or DEFAULT_MONITOR_S
        if self.done:
            return lines
        if self._since is not None and now - self._since >= monitor_s and self._steady:
            self.done = True
            lines.append(Line("verify", f"Service {self._service_id} converged"))
            return [*lines, self._ending] if self._ending else lines
        running, wanted, found = self._tasks(service, tasks, up_nodes)
        return lines + found + self._verify(running == wanted, monitor_s, now)

    def _update_status(self, status: Object) -> list[Line]:
        state, message = status.get("State", ""), status.get("Message", "")
        lines = []
        match state:
            case "updating":
                self._rollback = False
            case "completed" if not self._steady:
                self.done = True
            case "paused":
                raise click.ClickException(f"service update paused: {message}")
            case "rollback_paused":
                raise click.ClickException(f"service rollback paused: {message}")
            case "rollback_started":
                if not self._rollback and message:
                    lines.append(Line("rollback", message))
                self._rollback = True
            case "rollback_completed":
                if not self._steady:
                    self._ending = Line("rollback", message)
                self._rollback = True
        return lines

    def _tasks(self, service: Object, tasks: Sequence[Object], up_nodes: set[str]) -> tuple[int, int, list[Line]]:
        """Running, wanted (-1: not known yet), and their lines."""
        mode = service["Spec"]["Mode"]
        if "Replicated" in mode:
            wanted = mode["Replicated"].get("Replicas", 1)
            found = _newest(tasks, "Slot", {*up_nodes, ""})
            names = {slot: f"{self._slots.setdefault(slot, len(self._slots) + 1)}/{wanted}" for slot in found}
        elif "Global" in mode:
            found = _newest(tasks, "NodeID", None)
            wanted = len(found)
            found = {node_id: task for node_id, task in found.items() if node_id in up_nodes}
            names = {node_id: output.short(str(node_id)) for node_id in found}
            if not wanted:
                return 0, -1, [Line("overall progress", "waiting for new tasks")]
        else:
            raise click.ClickException("unrecognized service mode")
        lines = [] if self._started else self._first(wanted, "Replicated" in mode)
        self._started = True
        if self._steady and any(task["Status"]["State"] != "running" for task in found.values()):
            self._steady = False
        running = sum(_is_running(task) for task in found.values())
        if not self._steady:
            if wanted <= BARS_MAX:
                lines += [line for key, task in found.items() if (line := _task_line(names[key], task, wanted))]
            lines.append(self._overall(running, wanted))
        self._steady = running == wanted
        return running, wanted, lines

    def _first(self, wanted: int, replicated: bool) -> list[Line]:
        bars = range(1, wanted + 1) if replicated and wanted <= BARS_MAX else range(0)
        return [self._overall(0, wanted), *(Line(f"{number}/{wanted}", " ") for number in bars)]

    def _overall(self, running: int, wanted: int) -> Line:
        what = "rolling back update: " if self._rollback else ""
        return Line("overall progress", f"{what}{running} out of {wanted} tasks")

    def _verify(self, converged: bool, monitor_s: float, now: float) -> list[Line]:
        if not converged:
            broken = self._since is not None
            self._since = None
            return [Line("verify", "Detected task failure")] if broken else []
        if self._since is None:
            self._since = now
        left = monitor_s - (now - self._since)
        if left < 0:
            return []
        return [Line("verify", f"Waiting {int(left) + 1} seconds to verify that tasks are stable...")]


def _newest(tasks: Sequence[Object], key: str, nodes: set[str] | None) -> dict[object, Object]:
    """The task that counts of each slot or node: the lowest desired state, then the lowest observed one."""
    found: dict[object, Object] = {}
    for task in tasks:
        rank = _rank(task)
        if 0 in rank or (nodes is not None and task.get("NodeID", "") not in nodes):
            continue
        place = task.get(key, 0)
        if place not in found or rank < _rank(found[place]):
            found[place] = task
    return dict(sorted(found.items(), key=lambda pair: str(pair[0]).rjust(30)))


def _rank(task: Object) -> tuple[int, int]:
    return STATES.get(task.get("DesiredState", ""), 0), STATES.get(task["Status"].get("State", ""), 0)


def _is_running(task: Object) -> bool:
    desired, state = _rank(task)
    return desired <= STATES["running"] and state == STATES["running"]


def _task_line(name: str, task: Object, wanted: int) -> Line | None:
    number, _, total = name.partition("/")
    if total and int(number) > wanted:
        return None
    if error := task["Status"].get("Err", ""):
        error = error.replace("\n", " ")
        return Line(name, error if len(error) <= ERROR_WIDTH else error[: ERROR_WIDTH - 1] + "…")
    desired, state = _rank(task)
    if max(desired, state) > STATES["running"]:
        return None
    return Line(name, f"{task['Status']['State']:<9}", state)
