"""Nodes: ls, inspect, ps, update, promote, demote, rm."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from cli import output
from cli.client import Engine
from cli.filters import parse_filters
from cli.tasks import print_tasks
from cli.values import key_values


@click.group()
def node() -> None:
    """Manage nodes."""


def resolve(engine: Engine, reference: str) -> str:
    """``self`` is this node; anything else the daemon resolves."""
    if reference != "self":
        return reference
    node_id = engine.get("/info")["Swarm"]["NodeID"]
    if not node_id:
        engine.get("/nodes")  # The daemon's own words for "not a swarm manager".
    return str(node_id)


def manager_word(found: dict[str, Any]) -> str:
    status = found.get("ManagerStatus")
    if not status:
        return ""
    return "Leader" if status.get("Leader") else str(status.get("Reachability", "")).capitalize()


COLUMNS = {
    "ID": "ID",
    "Hostname": "HOSTNAME",
    "Status": "STATUS",
    "Availability": "AVAILABILITY",
    "ManagerStatus": "MANAGER STATUS",
    "EngineVersion": "ENGINE VERSION",
}


@node.command()
@click.option("-f", "--filter", "filters", multiple=True, help="Filter output based on conditions provided")
@click.option("--format", "form", default="", help="Format output using a custom template")
@click.option("-q", "--quiet", is_flag=True, help="Only display IDs")
@click.pass_obj
def ls(engine: Engine, filters: Sequence[str], form: str, quiet: bool) -> None:
    """List nodes in the swarm."""
    found = engine.list("/nodes", parse_filters(filters))
    me = engine.get("/info")["Swarm"]["NodeID"]
    rows = [
        {
            "ID": entry["ID"] + (" *" if entry["ID"] == me and not quiet and form in ("", "table") else ""),
            "Self": str(entry["ID"] == me).lower(),
            "Hostname": entry["Description"].get("Hostname", ""),
            "Status": entry["Status"].get("State", "").capitalize(),
            "Availability": entry["Spec"].get("Availability", "").capitalize(),
            "ManagerStatus": manager_word(entry),
            "EngineVersion": entry["Description"].get("Engine", {}).get("EngineVersion", ""),
        }
        for entry in sorted(found, key=lambda entry: entry["Description"].get("Hostname", ""))
    ]
    output.listing(rows, COLUMNS, form=form, quiet=quiet)


@node.command()
@click.argument("nodes", nargs=-1, required=True, metavar="self|NODE...")
@click.option("-f", "--format", "form", default="", help="Format output using a custom template")
@click.option("--pretty", is_flag=True, help="Print the information in a human friendly format")
@click.pass_obj
def inspect(engine: Engine, nodes: Sequence[str], form: str, pretty: bool) -> None:
    """Display detailed information on one or more nodes."""
    found = [engine.get(f"/nodes/{resolve(engine, name)}") for name in nodes]
    output.inspect(found, form, _pretty if pretty else None)


def _pretty(found: dict[str, Any]) -> str:
    described, resources = found["Description"], found["Description"].get("Resources", {})
    lines = [f"ID:\t\t\t{found['ID']}"]
    if found["Spec"].get("Labels"):
        lines += ["Labels:", *(f" - {k}={v}" for k, v in sorted(found["Spec"]["Labels"].items()))]
    lines += [
        f"Hostname:              \t{described.get('Hostname', '')}",
        f"Joined at:             \t{found['CreatedAt']}",
        "Status:",
        f" State:\t\t\t{found['Status'].get('State', '').capitalize()}",
        f" Availability:         \t{found['Spec'].get('Availability', '').capitalize()}",
        f" Address:\t\t{found['Status'].get('Addr', '')}",
    ]
    if manager := found.get("ManagerStatus"):
        lines += [
            "Manager Status:",
            f" Address:\t\t{manager.get('Addr', '')}",
            f" Raft Status:\t\t{manager.get('Reachability', '').capitalize()}",
            f" Leader:\t\t{'Yes' if manager.get('Leader') else 'No'}",
        ]
    platform = described.get("Platform", {})
    lines += [
        "Platform:",
        f" Operating System:\t{platform.get('OS', '')}",
        f" Architecture:\t\t{platform.get('Architecture', '')}",
        "Resources:",
        f" CPUs:\t\t\t{resources.get('NanoCPUs', 0) / 1e9:g}",
        f" Memory:\t\t{output.binary_size(resources.get('MemoryBytes', 0))}",
        f"Engine Version:\t\t{described.get('Engine', {}).get('EngineVersion', '')}",
    ]
    return "\n".join(lines)


@node.command()
@click.argument("nodes", nargs=-1, metavar="[NODE...]")
@click.option("-f", "--filter", "filters", multiple=True, help="Filter output based on conditions provided")
@click.option("--format", "form", default="", help="Pretty-print tasks using a Go template")
@click.option("--no-resolve", is_flag=True, help="Do not map IDs to Names")
@click.option("--no-trunc", is_flag=True, help="Do not truncate output")
@click.option("-q", "--quiet", is_flag=True, help="Only display task IDs")
@click.pass_obj
def ps(engine: Engine, /, nodes: Sequence[str], filters: Sequence[str], **options: Any) -> None:
    """List tasks running on one or more nodes, defaults to current node."""
    wanted = parse_filters(filters)
    wanted["node"] = [engine.get(f"/nodes/{resolve(engine, name)}")["ID"] for name in nodes or ("self",)]
    print_tasks(engine, engine.list("/tasks", wanted), **options)


def _change(engine: Engine, reference: str, change: Callable[[dict[str, Any]], None]) -> None:
    found = engine.get(f"/nodes/{resolve(engine, reference)}")
    change(found["Spec"])
    engine.post(f"/nodes/{found['ID']}/update", found["Spec"], version=found["Version"]["Index"])


@node.command()
@click.argument("reference", metavar="NODE")
@click.option("--availability", type=click.Choice(["active", "pause", "drain"]), help="Availability of the node")
@click.option("--role", type=click.Choice(["worker", "manager"]), help="Role of the node")
@click.option("--label-add", multiple=True, metavar="KEY=VALUE", help="Add or update a node label")
@click.option("--label-rm", multiple=True, metavar="KEY", help="Remove a node label if exists")
@click.pass_obj
def update(
    engine: Engine,
    reference: str,
    availability: str | None,
    role: str | None,
    label_add: Sequence[str],
    label_rm: Sequence[str],
) -> None:
    """Update a node."""

    def change(spec: dict[str, Any]) -> None:
        if availability:
            spec["Availability"] = availability
        if role:
            spec["Role"] = role
        labels = spec.get("Labels") or {}
        labels.update(key_values(label_add))
        for key in label_rm:
            if key not in labels:
                raise click.ClickException(f"key {key} doesn't exist in node's labels")
            del labels[key]
        spec["Labels"] = labels

    _change(engine, reference, change)
    output.write(reference)


def _set_role(engine: Engine, nodes: Sequence[str], role: str, done: str) -> None:
    for reference in nodes:
        if engine.get(f"/nodes/{resolve(engine, reference)}")["Spec"]["Role"] == role:
            output.write(f"Node {reference} is already a {role}.")
            continue
        _change(engine, reference, lambda spec: spec.update(Role=role))
        output.write(done.format(reference))


@node.command()
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@click.pass_obj
def promote(engine: Engine, nodes: Sequence[str]) -> None:
    """Promote one or more nodes to manager in the swarm."""
    _set_role(engine, nodes, "manager", "Node {} promoted to a manager in the swarm.")


@node.command()
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@click.pass_obj
def demote(engine: Engine, nodes: Sequence[str]) -> None:
    """Demote one or more nodes from manager in the swarm."""
    _set_role(engine, nodes, "worker", "Manager {} demoted in the swarm.")


@node.command()
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@click.option("-f", "--force", is_flag=True, help="Force remove a node from the swarm")
@click.pass_obj
def rm(engine: Engine, nodes: Sequence[str], force: bool) -> None:
    """Remove one or more nodes from the swarm."""
    each(nodes, lambda name: engine.delete(f"/nodes/{resolve(engine, name)}", force=force))


def each(names: Sequence[str], act: Callable[[str], object]) -> None:
    """Do it for every name: done ones to stdout, refusals to stderr, exit 1 when there was any."""
    from cli.client import EngineError

    failed = False
    for name in names:
        try:
            act(name)
        except EngineError as error:
            sys.stderr.write(f"{error}\n")
            failed = True
        else:
            output.write(name)
    if failed:
        raise click.exceptions.Exit(1)
