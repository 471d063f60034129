"""``info`` and ``version``."""

from __future__ import annotations

from typing import Any  # Any: values of the API's JSON

import click

from base.version import VERSION
from cli import output
from cli.client import EngineClient
from cli.commands.options import FORMAT


@click.command()
@FORMAT
@click.pass_obj
def info(engine: EngineClient, form: str) -> None:
    """Display system-wide information."""
    found = engine.get("/info")
    if form:
        output.write(output.apply("{{json .}}" if form == "json" else form, found))
        return
    swarm = found["Swarm"]
    lines = [
        f"Containers: {found['Containers']}",
        f" Running: {found['ContainersRunning']}",
        f" Paused: {found['ContainersPaused']}",
        f" Stopped: {found['ContainersStopped']}",
        f"Images: {found['Images']}",
        f"Server Version: {found['ServerVersion']}",
        f"Storage Driver: {found['Driver']}",
        f"Cgroup Driver: {found.get('CgroupDriver', '')}",
        f"Cgroup Version: {found.get('CgroupVersion', '')}",
        f"Swarm: {swarm['LocalNodeState']}",
        *_swarm_lines(swarm),
        f"Kernel Version: {found['KernelVersion']}",
        f"Operating System: {found['OperatingSystem']}",
        f"Architecture: {found['Architecture']}",
        f"CPUs: {found['NCPU']}",
        f"Total Memory: {output.binary_size(found['MemTotal'])}",
        f"Name: {found['Name']}",
        f"ID: {found['ID']}",
    ]
    output.write("\n".join(lines))
    for warning in found.get("Warnings") or ():
        output.write(warning)


def _swarm_lines(swarm: dict[str, Any]) -> list[str]:
    if swarm["LocalNodeState"] == "inactive":
        return []
    lines = [f" NodeID: {swarm['NodeID']}"]
    if swarm.get("Error"):
        lines.append(f" Error: {swarm['Error']}")
    lines.append(f" Is Manager: {str(swarm['ControlAvailable']).lower()}")
    if swarm["ControlAvailable"]:
        cluster = swarm.get("Cluster") or {}
        lines += [
            f" ClusterID: {cluster.get('ID', '')}",
            f" Managers: {swarm.get('Managers', 0)}",
            f" Nodes: {swarm.get('Nodes', 0)}",
        ]
    lines.append(f" Node Address: {swarm['NodeAddr']}")
    if swarm.get("RemoteManagers"):
        lines += [" Manager Addresses:", *(f"  {peer['Addr']}" for peer in swarm["RemoteManagers"])]
    return lines


@click.command()
@FORMAT
@click.pass_obj
def version(engine: EngineClient, form: str) -> None:
    """Show the version information."""
    server = engine.get("/version")
    both = {"Client": {"Version": VERSION}, "Server": server}
    if form:
        output.write(output.apply("{{json .}}" if form == "json" else form, both))
        return
    output.write(f"Client:\n Version:           {both['Client']['Version']}\n")
    output.write("Server:")
    for key, label in (
        ("Version", "Version"),
        ("ApiVersion", "API version"),
        ("MinAPIVersion", "Minimum API version"),
        ("KernelVersion", "Kernel"),
    ):
        output.write(f" {label + ':':<19}{server.get(key, '')}")
