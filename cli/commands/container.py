"""Containers of the local engine: ls, inspect, logs, kill, stop, rm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from cli import output
from cli.client import Engine
from cli.commands.node import each
from cli.filters import parse_filters

COLUMNS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "RunningFor": "CREATED",
    "Status": "STATUS",
    "Ports": "PORTS",
    "Names": "NAMES",
}


@click.group()
def container() -> None:
    """Manage containers."""


@container.command()
@click.option("-a", "--all", "every", is_flag=True, help="Show all containers (default shows just running)")
@click.option("-f", "--filter", "filters", multiple=True, help="Filter output based on conditions provided")
@click.option("--format", "form", default="", help="Format output using a custom template")
@click.option("--no-trunc", is_flag=True, help="Don't truncate output")
@click.option("-q", "--quiet", is_flag=True, help="Only display container IDs")
@click.pass_obj
def ls(engine: Engine, every: bool, filters: Sequence[str], form: str, no_trunc: bool, quiet: bool) -> None:
    """List containers."""
    found = engine.list("/containers/json", parse_filters(filters), all=every)
    output.listing([_row(entry, no_trunc) for entry in found], COLUMNS, form=form, quiet=quiet)


def _row(entry: dict[str, Any], no_trunc: bool) -> dict[str, str]:
    from time import time

    command = entry["Command"]
    if not no_trunc and len(command) > 20:
        command = command[:19] + "…"
    return {
        "ID": output.short(entry["Id"], no_trunc=no_trunc),
        "Image": entry["Image"],
        "Command": f'"{command}"',
        "RunningFor": f"{output.human_duration(max(0.0, time() - entry['Created']))} ago",
        "Status": entry["Status"],
        "State": entry["State"],
        "Ports": ", ".join(_port(port) for port in entry.get("Ports") or ()),
        "Names": ",".join(name.removeprefix("/") for name in entry["Names"]),
    }


def _port(port: dict[str, Any]) -> str:
    inside = f"{port['PrivatePort']}/{port['Type']}"
    return f"{port.get('IP', '')}:{port['PublicPort']}->{inside}" if port.get("PublicPort") else inside


@container.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@click.option("-f", "--format", "form", default="", help="Format output using a custom template")
@click.pass_obj
def inspect(engine: Engine, names: Sequence[str], form: str) -> None:
    """Display detailed information on one or more containers."""
    output.inspect([engine.get(f"/containers/{name}/json") for name in names], form)


@container.command()
@click.argument("name", metavar="CONTAINER")
@click.option("-f", "--follow", is_flag=True, help="Follow log output")
@click.option("-n", "--tail", default="all", help="Number of lines to show from the end of the logs")
@click.option("--since", default="", help="Show logs since timestamp or relative (e.g. 42m)")
@click.option("-t", "--timestamps", is_flag=True, help="Show timestamps")
@click.pass_obj
def logs(engine: Engine, /, name: str, **options: Any) -> None:
    """Fetch the logs of a container."""
    from cli.logs import print_container_logs

    print_container_logs(engine, name, **options)


@container.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@click.option("-s", "--signal", default="KILL", help="Signal to send to the container")
@click.pass_obj
def kill(engine: Engine, names: Sequence[str], signal: str) -> None:
    """Kill one or more running containers."""
    each(names, lambda name: engine.post(f"/containers/{name}/kill", signal=signal))


@container.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@click.option("-t", "--timeout", type=int, help="Seconds to wait before killing the container")
@click.pass_obj
def stop(engine: Engine, names: Sequence[str], timeout: int | None) -> None:
    """Stop one or more running containers."""
    each(names, lambda name: engine.post(f"/containers/{name}/stop", t=timeout))


@container.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@click.option("-f", "--force", is_flag=True, help="Force the removal of a running container")
@click.option("-v", "--volumes", is_flag=True, help="Remove anonymous volumes associated with the container")
@click.pass_obj
def rm(engine: Engine, names: Sequence[str], force: bool, volumes: bool) -> None:
    """Remove one or more containers."""
    each(names, lambda name: engine.delete(f"/containers/{name}", force=force, v=volumes))
