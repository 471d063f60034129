"""Tables of tasks, shared by ``node ps``, ``service ps`` and ``stack ps``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from cli import output
from cli.client import Engine, EngineError

COLUMNS = {
    "ID": "ID",
    "Name": "NAME",
    "Image": "IMAGE",
    "Node": "NODE",
    "DesiredState": "DESIRED STATE",
    "CurrentState": "CURRENT STATE",
    "Error": "ERROR",
    "Ports": "PORTS",
}
_ERROR_WIDTH = 30


def print_tasks(
    engine: Engine,
    tasks: Sequence[Mapping[str, Any]],
    *,
    form: str = "",
    no_resolve: bool = False,
    no_trunc: bool = False,
    quiet: bool = False,
) -> None:
    """Newest first within a slot, older ones of it indented by `` \\_ ``."""
    if quiet:
        for task in _ordered(tasks):
            output.write(output.short(task["ID"], no_trunc=no_trunc))
        return
    names = _Names(engine, resolve=not no_resolve)
    rows: list[dict[str, str]] = []
    previous = ""
    for task in _ordered(tasks):
        name = names.task(task)
        indented = f" \\_ {name}" if name == previous and form in ("", "table") else name
        previous = name
        rows.append(_row(task, indented, names, no_trunc))
    output.listing(rows, COLUMNS, form=form)


def _ordered(tasks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    newest_first = sorted(tasks, key=lambda task: str(task["CreatedAt"]), reverse=True)
    return sorted(
        newest_first,
        key=lambda task: (
            task.get("ServiceID", ""),
            task.get("Slot", 0),
            task.get("NodeID", "") if not task.get("Slot") else "",
        ),
    )


def _row(task: Mapping[str, Any], name: str, names: _Names, no_trunc: bool) -> dict[str, str]:
    status = task["Status"]
    image = task["Spec"].get("ContainerSpec", {}).get("Image", "")
    error = status.get("Err", "")
    if error:
        if not no_trunc and len(error) > _ERROR_WIDTH:
            error = error[: _ERROR_WIDTH - 1] + "…"
        error = f'"{error}"'
    since = output.age(status.get("Timestamp", ""))
    return {
        "ID": output.short(task["ID"], no_trunc=no_trunc),
        "Name": name,
        "Image": image if no_trunc else image.partition("@")[0],
        "Node": names.node(task.get("NodeID", "")),
        "DesiredState": task.get("DesiredState", "").capitalize(),
        "CurrentState": f"{status['State'].capitalize()} {since.lower()} ago"
        if since
        else status["State"].capitalize(),
        "Error": error,
        "Ports": ",".join(_port(port) for port in status.get("PortStatus", {}).get("Ports") or ()),
    }


def _port(port: Mapping[str, Any]) -> str:
    return f"*:{port.get('PublishedPort', 0)}->{port['TargetPort']}/{port['Protocol']}"


class _Names:
    """Names of services and nodes, asked for once each."""

    def __init__(self, engine: Engine, *, resolve: bool) -> None:
        self._engine, self._resolve = engine, resolve
        self._known: dict[str, str] = {}

    def task(self, task: Mapping[str, Any]) -> str:
        service = task.get("ServiceID", "")
        return f"{self._name('/services', service)}.{task.get('Slot') or task.get('NodeID', '')}"

    def node(self, node_id: str) -> str:
        return self._name("/nodes", node_id)

    def _name(self, kind: str, object_id: str) -> str:
        if not self._resolve or not object_id:
            return object_id
        if object_id not in self._known:
            try:
                found = self._engine.get(f"{kind}/{object_id}")
                self._known[object_id] = (
                    found["Spec"].get("Name") or found.get("Description", {}).get("Hostname") or object_id
                )
            except EngineError:
                self._known[object_id] = object_id
        return self._known[object_id]


def nothing_found(what: str) -> click.ClickException:
    return click.ClickException(f"nothing found in {what}")
