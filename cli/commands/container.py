"""Containers of the local engine: ls, inspect, logs, kill, stop, rm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from time import localtime, strftime, time
from typing import Any  # Any: values of the API's JSON, and of click's options

import click

from base.durations import human_duration
from cli import output
from cli.client import EngineClient
from cli.commands.groups import Group, each
from cli.commands.options import FILTERS, FORMAT, FORMAT_OF_LIST, INTEGER
from cli.commands.run import run
from cli.filters import parse_filters
from cli.images import familiar

COLUMNS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "RunningFor": "CREATED",
    "Status": "STATUS",
    "Ports": "PORTS",
    "Names": "NAMES",
}


@click.group(cls=Group)
def container() -> None:
    """Manage containers."""


@container.command()
@click.option("-a", "--all", "every", is_flag=True, help="Show all containers (default shows just running)")
@FILTERS
@FORMAT_OF_LIST
@click.option("--no-trunc", is_flag=True, help="Don't truncate output")
@click.option("-q", "--quiet", is_flag=True, help="Only display container IDs")
@click.pass_obj
def ls(engine: EngineClient, every: bool, filters: Sequence[str], form: str, no_trunc: bool, quiet: bool) -> None:
    """List containers."""
    found = engine.list("/containers/json", parse_filters(filters), all=every)
    output.listing([_row(entry, no_trunc) for entry in found], COLUMNS, form=form, quiet=quiet)


def _row(entry: dict[str, Any], no_trunc: bool) -> dict[str, str]:
    command = entry["Command"] if no_trunc else output.ellipsis(entry["Command"], 20)
    image = entry["Image"]
    names = [name.removeprefix("/") for name in entry["Names"]]
    return {
        "ID": output.short(entry["Id"], no_trunc=no_trunc),
        "Image": (image if no_trunc else familiar(image).partition("@")[0]) or "<no image>",
        "Command": json.dumps(command, ensure_ascii=False),
        "CreatedAt": strftime("%Y-%m-%d %H:%M:%S %z %Z", localtime(entry["Created"])),
        "RunningFor": f"{human_duration(max(0.0, time() - entry['Created']))} ago",
        "Status": entry["Status"],
        "State": entry["State"],
        "Ports": ports(entry.get("Ports") or ()),
        "Names": ",".join(names) if no_trunc else next((name for name in names if "/" not in name), ""),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted((entry.get("Labels") or {}).items())),
        "Networks": ",".join((entry.get("NetworkSettings") or {}).get("Networks") or {}),
    }


def ports(found: Sequence[Mapping[str, Any]]) -> str:
    """Ports as ``docker ps`` lists them: runs of ports that keep their number are joined, by address and protocol."""
    runs: dict[tuple[str, str], list[list[int]]] = {}
    moved = []
    for port in sorted(found, key=lambda one: (one["PrivatePort"], one.get("IP", ""), one.get("PublicPort", 0))):
        private, public, kind = port["PrivatePort"], port.get("PublicPort", 0), port["Type"]
        address = port.get("IP", "")
        if address and public != private:
            moved.append(f"{_joined(address, public)}->{private}/{kind}")
            continue
        spans = runs.setdefault((address, kind), [])
        if spans and spans[-1][1] + 1 == private:
            spans[-1][1] = private
        else:
            spans.append([private, private])
    lines = []
    for (address, kind), spans in runs.items():
        for first, last in spans:
            span = str(first) if first == last else f"{first}-{last}"
            lines.append(f"{f'{_joined(address, span)}->' if address else ''}{span}/{kind}")
    return ", ".join(lines + moved)


def _joined(address: str, port: object) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@container.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@FORMAT
@click.pass_obj
def inspect(engine: EngineClient, names: Sequence[str], form: str) -> None:
    """Display detailed information on one or more containers."""
    output.inspect(names, lambda name: engine.get(f"/containers/{name}/json"), form)


@container.command()
@click.argument("name", metavar="CONTAINER")
@click.option("-f", "--follow", is_flag=True, help="Follow log output")
@click.option("-n", "--tail", default="all", help="Number of lines to show from the end of the logs")
@click.option("--since", default="", help="Show logs since timestamp or relative (e.g. 42m)")
@click.option("-t", "--timestamps", is_flag=True, help="Show timestamps")
@click.pass_obj
def logs(engine: EngineClient, /, name: str, **options: Any) -> None:
    """Fetch the logs of a container."""
    from cli.logs import print_container_logs

    print_container_logs(engine, name, **options)


@container.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@click.option("-s", "--signal", default="KILL", help="Signal to send to the container")
@click.pass_obj
def kill(engine: EngineClient, names: Sequence[str], signal: str) -> None:
    """Kill one or more running containers."""
    each(names, lambda name: engine.post(f"/containers/{name}/kill", signal=signal))


@container.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@click.option("-t", "--timeout", type=INTEGER, help="Seconds to wait before killing the container")
@click.pass_obj
def stop(engine: EngineClient, names: Sequence[str], timeout: int | None) -> None:
    """Stop one or more running containers."""
    each(names, lambda name: engine.post(f"/containers/{name}/stop", t=timeout))


@container.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@click.option("-f", "--force", is_flag=True, help="Force the removal of a running container")
@click.option("-v", "--volumes", is_flag=True, help="Remove anonymous volumes associated with the container")
@click.pass_obj
def rm(engine: EngineClient, names: Sequence[str], force: bool, volumes: bool) -> None:
    """Remove one or more containers."""
    each(names, lambda name: engine.delete(f"/containers/{name}", force=force, v=volumes))


container.add_command(run)
