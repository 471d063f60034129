"""Tables of tasks, shared by ``node ps``, ``service ps`` and ``stack ps``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any  # Any: values of the API's JSON

from cli import output
from cli.client import EngineClient, RefusedError
from cli.images import familiar

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
    engine: EngineClient,
    tasks: Sequence[Mapping[str, Any]],
    *,
    form: str = "",
    no_resolve: bool = False,
    no_trunc: bool = False,
    quiet: bool = False,
) -> None:
    """By service and slot, newest first within a slot, the older ones of it indented by `` \\_ ``."""
    names = _Names(engine, resolve=not no_resolve)
    named = [(names.task(task), task) for task in tasks]
    named.sort(key=lambda pair: str(pair[1]["CreatedAt"]), reverse=True)
    named.sort(key=lambda pair: output.natural(pair[0]))
    rows: list[dict[str, str]] = []
    previous = ""
    for name, task in named:
        indent = " \\_ " if name == previous and (not form or form.startswith("table")) else ""
        previous = name
        rows.append(_row(task, indent + name, names, no_trunc))
    output.listing(rows, COLUMNS, form=form, quiet=quiet)


def _row(task: Mapping[str, Any], name: str, names: _Names, no_trunc: bool) -> dict[str, str]:
    status = task["Status"]
    image = task["Spec"].get("ContainerSpec", {}).get("Image", "")
    error = status.get("Err", "")
    if error:
        error = f'"{error if no_trunc else output.ellipsis(error, _ERROR_WIDTH)}"'
    since = output.age(status.get("Timestamp", ""))
    return {
        "ID": output.short(task["ID"], no_trunc=no_trunc),
        "Name": name,
        "Image": image if no_trunc else familiar(image),
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

    def __init__(self, engine: EngineClient, *, resolve: bool) -> None:
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
            except RefusedError:
                self._known[object_id] = object_id
        return self._known[object_id]
