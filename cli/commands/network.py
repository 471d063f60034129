"""``swarm network``: create, ls, inspect, rm, prune, connect, disconnect."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import click

from cli import output, values
from cli.client import EngineClient, RefusedError
from cli.commands.groups import Group
from cli.commands.options import FILTERS, FORMAT, FORMAT_OF_LIST, INTEGER, NO_TRUNC, checked
from cli.filters import name_and_value, parse_filters
from cli.ipam import ipam_config
from cli.values import key_values

COLUMNS = {"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE"}
INGRESS_WARNING = (
    "WARNING! Before removing the routing-mesh network, make sure all the nodes in your swarm run the same docker engine "
    "version. Otherwise, removal may not be effective and functionality of newly create ingress networks will be impaired.\n"
    "Are you sure you want to continue?"
)
PRUNE_WARNING = "WARNING! This will remove all custom networks not used by at least one container.\nAre you sure you want to continue?"
ONLY_IDS = click.option("-q", "--quiet", is_flag=True, help="Only display network IDs")
LABELS = click.option("--label", "labels", multiple=True, type=checked(values.label), help="Set metadata on a network")


@click.group("network", cls=Group, help="Manage networks.")
def network() -> None:
    pass


@network.command(help="Create a network.")
@click.argument("name", metavar="NETWORK")
@click.option("-d", "--driver", default="bridge", help="Driver to manage the Network")
@click.option("-o", "--opt", "options", multiple=True, help="Set driver specific options")
@LABELS
@click.option("--internal", is_flag=True, help="Restrict external access to the network")
@click.option("--ipv4/--no-ipv4", default=None, help="Enable or disable IPv4 address assignment")
@click.option("--ipv6/--no-ipv6", default=None, help="Enable or disable IPv6 address assignment")
@click.option("--attachable", is_flag=True, help="Enable manual container attachment")
@click.option("--ingress", is_flag=True, help="Create swarm routing-mesh network")
@click.option("--scope", default="", help="Control the network's scope")
@click.option("--config-only", is_flag=True, help="Create a configuration only network")
@click.option("--config-from", default="", help="The network from which to copy the configuration")
@click.option("--ipam-driver", default="default", help="IP Address Management Driver")
@click.option("--ipam-opt", "ipam_options", multiple=True, help="Set IPAM driver specific options")
@click.option("--subnet", "subnets", multiple=True, help="Subnet in CIDR format that represents a network segment")
@click.option("--ip-range", "ranges", multiple=True, help="Allocate container ip from a sub-range")
@click.option("--gateway", "gateways", multiple=True, help="IPv4 or IPv6 Gateway for the master subnet")
@click.option("--aux-address", "others", multiple=True, help="Auxiliary IPv4 or IPv6 addresses used by Network driver")
@click.pass_obj
def create(engine: EngineClient, /, name: str, **given: Any) -> None:  # what click read, by the names above
    try:
        config = ipam_config(
            _split(given["subnets"]), _split(given["ranges"]), _split(given["gateways"]), key_values(given["others"])
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    body = {
        "Name": name,
        "Driver": given["driver"],
        "Options": key_values(given["options"]),
        "Labels": key_values(given["labels"]),
        "Internal": given["internal"],
        "Attachable": given["attachable"],
        "Ingress": given["ingress"],
        "Scope": given["scope"],
        "ConfigOnly": given["config_only"],
        "ConfigFrom": {"Network": given["config_from"]} if given["config_from"] else None,
        "IPAM": {"Driver": given["ipam_driver"], "Config": config, "Options": key_values(given["ipam_options"])},
        **{
            key: given[flag]
            for key, flag in (("EnableIPv4", "ipv4"), ("EnableIPv6", "ipv6"))
            if given[flag] is not None
        },
    }
    made = engine.post("/networks/create", body)
    if made.get("Warning"):
        sys.stderr.write(f"WARNING: {made['Warning']}\n")
    output.write(made["Id"])


@network.command(help="List networks.")
@FILTERS
@FORMAT_OF_LIST
@NO_TRUNC
@ONLY_IDS
@click.pass_obj
def ls(engine: EngineClient, filters: Sequence[str], form: str, no_trunc: bool, quiet: bool) -> None:
    found = engine.list("/networks", parse_filters(filters))
    found.sort(key=lambda entry: output.natural(entry["Name"]))
    rows = [
        {
            "ID": output.short(entry["Id"], no_trunc=no_trunc),
            "Name": entry["Name"],
            "Driver": entry["Driver"],
            "Scope": entry["Scope"],
            "IPv4": str(entry.get("EnableIPv4", False)).lower(),
            "IPv6": str(entry.get("EnableIPv6", False)).lower(),
            "Internal": str(entry.get("Internal", False)).lower(),
            "Labels": ",".join(f"{key}={value}" for key, value in sorted((entry.get("Labels") or {}).items())),
            "CreatedAt": output.go_time(entry["Created"]).replace("utc", "UTC"),
        }
        for entry in found
    ]
    headings = {"CreatedAt": "CREATED AT", "IPv4": "IPV4", "IPv6": "IPV6"}
    output.listing(rows, COLUMNS, form=form, quiet=quiet, headings=headings)


@network.command(help="Display detailed information on one or more networks.")
@click.argument("names", nargs=-1, required=True, metavar="NETWORK...")
@FORMAT
@click.option("-v", "--verbose", is_flag=True, help="Verbose output for diagnostics")
@click.pass_obj
def inspect(engine: EngineClient, names: Sequence[str], form: str, verbose: bool) -> None:
    output.inspect(names, lambda name: engine.get(_path(name), verbose=verbose or None), form)


@network.command(help="Remove one or more networks.")
@click.argument("names", nargs=-1, required=True, metavar="NETWORK...")
@click.option("-f", "--force", is_flag=True, help="Do not error if the network does not exist")
@click.pass_obj
def rm(engine: EngineClient, names: Sequence[str], force: bool) -> None:
    failed = False
    for name in names:
        try:
            if _is_ingress(engine, name) and not _confirmed(INGRESS_WARNING):
                continue
            engine.delete(_path(name))
        except RefusedError as error:
            if not (force and error.status == 404):
                sys.stderr.write(f"{error}\n")
                failed = True
        else:
            output.write(name)
    if failed:
        raise click.exceptions.Exit(1)


@network.command(help="Remove all unused networks.")
@click.option("-f", "--force", is_flag=True, help="Do not prompt for confirmation")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    type=checked(name_and_value),
    help='Provide filter values (e.g. "until=<timestamp>")',
)
@click.pass_obj
def prune(engine: EngineClient, force: bool, filters: Sequence[str]) -> None:
    if not force and not _confirmed(PRUNE_WARNING):
        return
    report = engine.post("/networks/prune", filters=json.dumps(parse_filters(filters)) if filters else None)
    if deleted := report.get("NetworksDeleted"):
        output.write("\n".join(["Deleted Networks:", *deleted, "", ""]))


@network.command(help="Connect a container to a network.")
@click.argument("name", metavar="NETWORK")
@click.argument("container")
@click.option("--ip", default="", help="IPv4 address (e.g., 172.30.100.104)")
@click.option("--ip6", default="", help="IPv6 address (e.g., 2001:db8::33)")
@click.option("--alias", "aliases", multiple=True, help="Add network-scoped alias for the container")
@click.option("--link", "links", multiple=True, help="Add link to another container")
@click.option("--link-local-ip", "link_local", multiple=True, help="Add a link-local address for the container")
@click.option("--driver-opt", "options", multiple=True, help="driver options for the network")
@click.option("--gw-priority", default=0, type=INTEGER, help="Highest gw-priority provides the default gateway")
@click.pass_obj
def connect(
    engine: EngineClient, /, name: str, container: str, **given: Any
) -> None:  # what click read, by the names above
    addresses = {"IPv4Address": given["ip"], "IPv6Address": given["ip6"], "LinkLocalIPs": _split(given["link_local"])}
    config = {
        "IPAMConfig": {key: value for key, value in addresses.items() if value},
        "Links": list(given["links"]),
        "Aliases": _split(given["aliases"]),
        "DriverOpts": key_values(given["options"]),
        "GwPriority": given["gw_priority"],
    }
    engine.post(f"{_path(name)}/connect", {"Container": container, "EndpointConfig": config})


@network.command(help="Disconnect a container from a network.")
@click.argument("name", metavar="NETWORK")
@click.argument("container")
@click.option("-f", "--force", is_flag=True, help="Force the container to disconnect from a network")
@click.pass_obj
def disconnect(engine: EngineClient, name: str, container: str, force: bool) -> None:
    engine.post(f"{_path(name)}/disconnect", {"Container": container, "Force": force})


def _path(name: str) -> str:
    return f"/networks/{quote(name, safe='')}"


def _split(texts: Sequence[str]) -> list[str]:
    """Flags that may be repeated, or have several values."""
    return [part for text in texts for part in text.split(",")]


def _is_ingress(engine: EngineClient, name: str) -> bool:
    try:
        return bool(engine.get(_path(name)).get("Ingress"))
    except RefusedError:
        return False


def _confirmed(question: str) -> bool:
    sys.stdout.write(f"{question} [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() == "y"
