"""Nodes: ls, inspect, ps, update, promote, demote, rm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any  # Any: values of the API's JSON, and of click's options

import click

from cli import output
from cli.client import EngineClient, RefusedError
from cli.commands.groups import Group, each
from cli.commands.options import (
    FILTERS,
    FORMAT,
    FORMAT_OF_LIST,
    FORMAT_OF_TASKS,
    NO_RESOLVE,
    NO_TRUNC,
    ONLY_IDS,
    ONLY_TASK_IDS,
    PRETTY,
)
from cli.filters import parse_filters
from cli.tasks import print_tasks
from cli.values import key_values


@click.group(cls=Group)
def node() -> None:
    """Manage nodes."""


def resolve(engine: EngineClient, reference: str) -> str:
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
@FILTERS
@FORMAT_OF_LIST
@ONLY_IDS
@click.pass_obj
def ls(engine: EngineClient, filters: Sequence[str], form: str, quiet: bool) -> None:
    """List nodes in the swarm."""
    found = engine.list("/nodes", parse_filters(filters))
    swarm = engine.get("/info")["Swarm"] if found else {}
    plain = form in ("", "table") and not quiet
    rows = [
        {
            "ID": entry["ID"] + (f" {'*' if entry['ID'] == swarm['NodeID'] else ' '}" if plain else ""),
            "Self": entry["ID"] == swarm["NodeID"],
            "Hostname": entry["Description"].get("Hostname", ""),
            "Status": entry["Status"].get("State", "").capitalize(),
            "Availability": entry["Spec"].get("Availability", "").capitalize(),
            "ManagerStatus": manager_word(entry),
            "EngineVersion": entry["Description"].get("Engine", {}).get("EngineVersion", ""),
            "TLSStatus": _tls_status(entry["Description"].get("TLSInfo"), (swarm.get("Cluster") or {}).get("TLSInfo")),
        }
        for entry in sorted(found, key=lambda entry: output.natural(entry["Description"].get("Hostname", "")))
    ]
    output.listing(rows, COLUMNS, form=form, quiet=quiet, headings={"Self": "", "TLSStatus": "TLS STATUS"})


def _tls_status(node: dict[str, Any] | None, cluster: dict[str, Any] | None) -> str:
    """Whether a node trusts the cluster's newest root already."""
    if not node or not cluster:
        return "Unknown"
    return "Ready" if node == cluster else "Needs Rotation"


@node.command()
@click.argument("nodes", nargs=-1, required=True, metavar="self|NODE...")
@FORMAT
@PRETTY
@click.pass_obj
def inspect(engine: EngineClient, nodes: Sequence[str], form: str, pretty: bool) -> None:
    """Display detailed information on one or more nodes."""
    output.inspect(nodes, lambda name: engine.get(f"/nodes/{resolve(engine, name)}"), form, _pretty if pretty else None)


def _pretty(found: dict[str, Any]) -> str:
    described, spec, status = found["Description"], found["Spec"], found["Status"]
    platform, resources, engine = (described.get(key) or {} for key in ("Platform", "Resources", "Engine"))
    lines = [f"ID:\t\t\t{found['ID']}"]
    if spec.get("Name"):
        lines.append(f"Name:\t\t\t{spec['Name']}")
    lines += labels("Labels", spec.get("Labels"))
    lines += [
        f"Hostname:              \t{described.get('Hostname', '')}",
        f"Joined at:             \t{output.go_time(found['CreatedAt'])}",
        "Status:",
        f" State:\t\t\t{status.get('State', '').capitalize()}",
    ]
    if status.get("Message"):
        lines.append(f" Message:              \t{status['Message'].capitalize()}")
    lines.append(f" Availability:         \t{spec.get('Availability', '').capitalize()}")
    if status.get("Addr"):
        lines.append(f" Address:\t\t{status['Addr']}")
    if manager := found.get("ManagerStatus"):
        lines += [
            "Manager Status:",
            f" Address:\t\t{manager.get('Addr', '')}",
            f" Raft Status:\t\t{manager.get('Reachability', '').capitalize()}",
            f" Leader:\t\t{'Yes' if manager.get('Leader') else 'No'}",
        ]
    lines += [
        "Platform:",
        f" Operating System:\t{platform.get('OS', '')}",
        f" Architecture:\t\t{platform.get('Architecture', '')}",
        "Resources:",
        f" CPUs:\t\t\t{resources.get('NanoCPUs', 0) // 10**9}",
        f" Memory:\t\t{output.binary_size(resources.get('MemoryBytes', 0))}",
    ]
    lines += _plugins(engine.get("Plugins") or ())
    lines.append(f"Engine Version:\t\t{engine.get('EngineVersion', '')}")
    lines += labels("Engine Labels", engine.get("Labels"))
    if (tls := described.get("TLSInfo")) and any(tls.values()):
        lines += [
            "TLS Info:",
            " TrustRoot:",
            tls.get("TrustRoot", ""),
            f" Issuer Subject:\t{tls.get('CertIssuerSubject', '')}",
            f" Issuer Public Key:\t{tls.get('CertIssuerPublicKey', '')}",
        ]
    return "\n".join(lines)


def labels(heading: str, found: dict[str, str] | None) -> list[str]:
    """Lines of a pretty form."""
    if not found:
        return []
    return [f"{heading}:", *(f" - {key}{f'={value}' if value else ''}" for key, value in sorted(found.items()))]


def _plugins(found: Sequence[dict[str, str]]) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for plugin in found:
        kinds.setdefault(plugin["Type"], []).append(plugin["Name"])
    lines = [f" {kind}:\t\t{', '.join(names)}" for kind, names in sorted(kinds.items())]
    return ["Plugins:", *lines] if lines else []


@node.command()
@click.argument("nodes", nargs=-1, metavar="[NODE...]")
@FILTERS
@FORMAT_OF_TASKS
@NO_RESOLVE
@NO_TRUNC
@ONLY_TASK_IDS
@click.pass_obj
def ps(engine: EngineClient, /, nodes: Sequence[str], filters: Sequence[str], **options: Any) -> None:
    """List tasks running on one or more nodes, defaults to current node."""
    wanted = parse_filters(filters)
    found, refusals = [], []
    for name in nodes or ("self",):
        try:
            found.append(engine.get(f"/nodes/{resolve(engine, name)}")["ID"])
        except RefusedError as error:
            refusals.append(str(error))
    if found:
        print_tasks(engine, engine.list("/tasks", {**wanted, "node": found}), **options)
    if refusals:
        raise click.ClickException("\n".join(refusals))


def _change(engine: EngineClient, reference: str, change: Callable[[dict[str, Any]], None]) -> None:
    found = engine.get(f"/nodes/{resolve(engine, reference)}")
    change(found["Spec"])
    _update(engine, found, found["Spec"])


def _update(engine: EngineClient, found: dict[str, Any], spec: dict[str, Any]) -> None:
    engine.post(f"/nodes/{found['ID']}/update", spec, version=found["Version"]["Index"])


@node.command()
@click.argument("reference", metavar="NODE")
@click.option("--availability", type=click.Choice(["active", "pause", "drain"]), help="Availability of the node")
@click.option("--role", type=click.Choice(["worker", "manager"]), help="Role of the node")
@click.option("--label-add", multiple=True, metavar="KEY=VALUE", help="Add or update a node label")
@click.option("--label-rm", multiple=True, metavar="KEY", help="Remove a node label if exists")
@click.pass_obj
def update(
    engine: EngineClient,
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


def _set_role(engine: EngineClient, nodes: Sequence[str], role: str, done: str) -> None:
    for reference in nodes:
        found = engine.get(f"/nodes/{resolve(engine, reference)}")
        if found["Spec"]["Role"] == role:
            output.write(f"Node {found['ID']} is already a {role}.")
            continue
        _update(engine, found, {**found["Spec"], "Role": role})
        output.write(done.format(reference))


@node.command()
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@click.pass_obj
def promote(engine: EngineClient, nodes: Sequence[str]) -> None:
    """Promote one or more nodes to manager in the swarm."""
    _set_role(engine, nodes, "manager", "Node {} promoted to a manager in the swarm.")


@node.command()
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@click.pass_obj
def demote(engine: EngineClient, nodes: Sequence[str]) -> None:
    """Demote one or more nodes from manager in the swarm."""
    _set_role(engine, nodes, "worker", "Manager {} demoted in the swarm.")


@node.command()
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@click.option("-f", "--force", is_flag=True, help="Force remove a node from the swarm")
@click.pass_obj
def rm(engine: EngineClient, nodes: Sequence[str], force: bool) -> None:
    """Remove one or more nodes from the swarm."""
    each(nodes, lambda name: engine.delete(f"/nodes/{resolve(engine, name)}", force=force))
