"""``run``: create and start a container of the local engine, and show what it prints."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any  # Any: values of the API's JSON, and of click's options

import click

from cli import output, values
from cli.client import EngineClient, RefusedError
from cli.commands.groups import Command, FlagValueError
from cli.commands.image import pull_image
from cli.commands.options import BYTES, CPUS, Parsed, checked
from cli.images import with_tag
from cli.logs import copy_frames

_RESTART = re.compile(r"(no|always|unless-stopped|on-failure)(?::([0-9]{1,9}))?")
# Docker's exit statuses of run: the daemon refused, the command cannot be run, the command is not there.
REFUSED, NOT_RUNNABLE, NOT_FOUND = 125, 126, 127


def _bind(text: str) -> str:
    """``SOURCE:TARGET[:MODE]``, a relative source made absolute."""
    source, separator, rest = text.partition(":")
    if not separator:
        raise ValueError("want SOURCE:TARGET[:MODE]")
    if source.startswith((".", "~")):
        source = os.path.abspath(os.path.expanduser(source))
    return f"{source}:{rest}"


def _port_bindings(text: str) -> list[tuple[str, dict[str, str]]]:
    """Port and binding, each, of ``[IP:][PUBLISHED:]TARGET[/PROTOCOL]``."""
    address, separator, rest = text.rpartition(":")
    host, inner, published = address.rpartition(":")
    short = f"{published}:{rest}" if separator and published else rest
    return [
        (
            f"{port['TargetPort']}/{port['Protocol']}",
            {"HostIp": host.strip("[]") if inner else "", "HostPort": str(port.get("PublishedPort", ""))},
        )
        for port in values.port(short)
    ]


@click.command(cls=Command, context_settings={"allow_interspersed_args": False})
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("-d", "--detach", is_flag=True, help="Run container in background and print container ID")
@click.option("--rm", "remove", is_flag=True, help="Automatically remove the container when it exits")
@click.option("--name", default="", help="Assign a name to the container")
@click.option("-e", "--env", multiple=True, type=checked(values.environment_entry), help="Set environment variables")
@click.option("-v", "--volume", multiple=True, type=Parsed(_bind), help="Bind mount a volume (SOURCE:TARGET[:MODE])")
@click.option(
    "-p", "--publish", multiple=True, type=Parsed(_port_bindings), help="Publish a container's port(s) to the host"
)
@click.option("-m", "--memory", type=BYTES, help="Memory limit")
@click.option("--cpus", type=CPUS, help="Number of CPUs")
@click.option("--network", default="", help="Connect a container to a network")
@click.option("--restart", default="no", help="Restart policy to apply when a container exits")
@click.option("-l", "--label", multiple=True, type=checked(values.label), help="Set meta data on a container")
@click.option("-w", "--workdir", default="", help="Working directory inside the container")
@click.option("-u", "--user", default="", help="Username or UID (format: <name|uid>[:<group|gid>])")
@click.option("--entrypoint", default="", help="Overwrite the default ENTRYPOINT of the image")
@click.option("--platform", default="", help="Set platform if server is multi-platform capable")
@click.pass_obj
def run(
    engine: EngineClient,
    /,
    image: str,
    command: Sequence[str],
    detach: bool,
    name: str,
    platform: str,
    **options: Any,
) -> None:
    """Create and run a new container from an image."""
    try:
        body = container_body(image, command, options)
    except ValueError as error:
        raise FlagValueError(str(error)) from error
    try:
        container_id = _create(engine, body, name, platform)
        waiting = attached = None
        if not detach:
            # Both before the start, so that no exit is too quick for them.
            condition = "removed" if options["remove"] else "next-exit"
            streams = {"stream": True, "stdout": True, "stderr": True}
            attached = engine.request("POST", f"/containers/{container_id}/attach", params=streams)
            waiting = engine.request("POST", f"/containers/{container_id}/wait", params={"condition": condition})
        engine.post(f"/containers/{container_id}/start")
    except RefusedError as error:
        sys.stderr.write(f"swarm: {error}\n\nRun 'swarm run --help' for more information\n")
        raise click.exceptions.Exit(_status_of(error)) from error
    if waiting is None or attached is None:
        output.write(container_id)
        return
    with attached, waiting:
        copy_frames(attached)
        ended = engine.decode(waiting)
    if message := (ended.get("Error") or {}).get("Message"):
        raise click.ClickException(f"Error waiting for container: {message}")
    raise click.exceptions.Exit(ended["StatusCode"])


def _create(engine: EngineClient, body: dict[str, Any], name: str, platform: str) -> str:
    """The ID of the new container; the image is pulled when it is not there."""
    query: dict[str, Any] = {"name": name or None, "platform": platform or None}
    try:
        made = engine.post("/containers/create", body, **query)
    except RefusedError as error:
        if error.status != 404 or "image" not in error.message.lower():
            raise
        sys.stderr.write(f"Unable to find image '{with_tag(body['Image'])}' locally\n")
        pull_image(engine, body["Image"], platform, out=sys.stderr)
        made = engine.post("/containers/create", body, **query)
    for warning in made.get("Warnings") or ():
        sys.stderr.write(f"WARNING: {warning}\n")
    return str(made["Id"])


def _status_of(error: RefusedError) -> int:
    text = error.message.lower()
    if "executable file not found" in text or "no such file or directory" in text:
        return NOT_FOUND
    return NOT_RUNNABLE if "permission denied" in text or "is a directory" in text else REFUSED


def container_body(image: str, command: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """The body of a create request. Raises: ValueError with the flag that is wrong."""
    ports, exposed = _ports(options["publish"])
    host: dict[str, Any] = {
        "AutoRemove": options["remove"],
        "Binds": list(options["volume"]),
        "PortBindings": ports,
        "RestartPolicy": _restart(options["restart"], options["remove"]),
    }
    if options["network"]:
        host["NetworkMode"] = options["network"]
    if options["memory"]:
        host["Memory"] = options["memory"]
    if options["cpus"]:
        host["NanoCpus"] = options["cpus"]
    body: dict[str, Any] = {
        "Image": image,
        "Cmd": list(command) or None,
        "Env": values.environment(options["env"], os.environ),
        "Labels": values.key_values(options["label"]),
        "ExposedPorts": exposed,
        "WorkingDir": options["workdir"],
        "User": options["user"],
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": host,
    }
    if options["entrypoint"]:
        body["Entrypoint"] = [options["entrypoint"]]
    return body


def _ports(given: Sequence[Sequence[tuple[str, dict[str, str]]]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """PortBindings and ExposedPorts."""
    bindings: dict[str, Any] = {}
    for key, binding in (one for several in given for one in several):
        bindings.setdefault(key, []).append(binding)
    return bindings, {key: {} for key in bindings}


def _restart(text: str, remove: bool) -> dict[str, Any]:
    match = _RESTART.fullmatch(text)
    if match is None or (match[2] and match[1] != "on-failure"):
        raise ValueError(f'invalid restart policy "{text}": want no, always, unless-stopped or on-failure[:N]')
    if remove and match[1] != "no":
        raise ValueError("conflicting options: cannot specify both --restart and --rm")
    return {"Name": match[1], "MaximumRetryCount": int(match[2] or 0)}
