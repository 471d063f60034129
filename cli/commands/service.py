"""Services: create, ls, ps, inspect, update, scale, rollback, rm, logs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # Any: values of the API's JSON, and of click's options

import click

from cli import output, service_spec, values
from cli.client import EngineClient, RefusedError
from cli.commands.groups import FlagValueError, Group, each
from cli.commands.node import resolve
from cli.commands.options import (
    COUNT,
    FILTERS,
    FORMAT,
    FORMAT_OF_LIST,
    FORMAT_OF_TASKS,
    NO_RESOLVE,
    NO_TRUNC,
    ONLY_IDS,
    ONLY_TASK_IDS,
    PRETTY,
    WORDS,
)
from cli.commands.service_options import common_options, list_options
from cli.filters import parse_filters
from cli.images import familiar, name_image, registry_auth
from cli.pretty import pretty_service
from cli.progress import watch_convergence
from cli.service_networks import change_networks, network_names
from cli.service_spec import Spec
from cli.tasks import print_tasks


@click.group(cls=Group)
def service() -> None:
    """Manage services."""


def _entries(engine: EngineClient, stem: str, given: Sequence[Any]) -> list[Any]:
    """The API's entries of what a list flag was given, each read already."""
    match stem:
        case "publish":
            return [port for ports in given for port in ports]
        case "secret" | "config":
            return [_file_entry(engine, stem, reference) for reference in given]
        case "env":
            return values.environment(given, os.environ)
        case _:
            return list(given)


def _file_entry(engine: EngineClient, stem: str, reference: dict[str, Any]) -> dict[str, Any]:
    word = stem.capitalize()
    found = engine.list(f"/{stem}s", {"name": [reference["Source"]]})
    found = found or engine.list(f"/{stem}s", {"id": [reference["Source"]]})
    match = [entry for entry in found if reference["Source"] in (entry["Spec"]["Name"], entry["ID"])]
    if not match:
        raise click.ClickException(f"{stem} not found: {reference['Source']}")
    return {"File": reference["File"], f"{word}ID": match[0]["ID"], f"{word}Name": match[0]["Spec"]["Name"]}


def _apply(engine: EngineClient, spec: Spec, options: dict[str, Any]) -> None:
    """Put the flags into the spec. Raises: FlagValueError."""
    try:
        service_spec.apply_settings(spec, options)
        for stem in service_spec.LISTS:
            service_spec.remove_entries(spec, stem, options.get(f"{stem}_rm") or ())
            service_spec.add_entries(spec, stem, _entries(engine, stem, options.get(stem) or ()))
        change_networks(engine, spec, options.get("network") or (), options.get("network_rm") or ())
        service_spec.settle_capabilities(spec, options.get("cap_add") or (), options.get("cap_drop") or ())
        for stem in service_spec.MAPS:
            service_spec.change_map(spec, stem, options.get(stem) or (), options.get(f"{stem}_rm") or ())
    except ValueError as error:
        raise FlagValueError(str(error)) from error


@service.command(context_settings={"allow_interspersed_args": False})
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--name", default="", help="Service name")
@click.option("--mode", "mode_name", default="replicated", help="Service mode (replicated, global)")
@click.option("--replicas", type=COUNT, help="Number of tasks")
@click.option("--env-file", multiple=True, help="Read in a file of environment variables")
@list_options([""])
@common_options
@click.pass_obj
def create(
    engine: EngineClient,
    /,
    image: str,
    command: Sequence[str],
    name: str,
    mode_name: str,
    replicas: int | None,
    env_file: Sequence[str],
    **options: Any,
) -> None:
    """Create a new service."""
    spec: Spec = {
        "Name": name,
        "Labels": {},
        "TaskTemplate": {"ContainerSpec": {"Image": image}},
        "Mode": service_spec.mode(mode_name, replicas),
    }
    if command:
        spec["TaskTemplate"]["ContainerSpec"]["Args"] = list(command)
    options["env"] = [*_env_files(env_file), *options["env"]]
    _apply(engine, spec, options)
    name_image(engine, spec, resolve=not options["no_resolve_image"])
    made = engine.post("/services/create", spec, headers=registry_auth(image) if options["with_registry_auth"] else {})
    for warning in made.get("Warnings") or ():
        sys.stderr.write(f"{warning}\n")
    output.write(made["ID"])
    if not options["detach"]:
        watch_convergence(engine, made["ID"], quiet=options["quiet"])


def _env_files(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        try:
            found += values.environment_file(Path(name).read_text())
        except (OSError, UnicodeError) as error:
            raise click.ClickException(f"{name}: {getattr(error, 'strerror', None) or 'is no UTF-8 text'}") from error
    return found


@service.command()
@click.argument("name", metavar="SERVICE")
@click.option("--image", help="Service image tag")
@click.option("--args", type=WORDS, help="Service command args")
@click.option("--replicas", type=COUNT, help="Number of tasks")
@click.option("--force", is_flag=True, help="Force update even if no changes require it")
@click.option("--rollback", is_flag=True, help="Rollback to previous specification")
@list_options(["-add", "-rm"])
@common_options
@click.pass_obj
def update(
    engine: EngineClient,
    /,
    name: str,
    image: str | None,
    args: list[str] | None,
    replicas: int | None,
    force: bool,
    rollback: bool,
    **options: Any,
) -> None:
    """Update a service."""
    found = engine.get(f"/services/{name}")
    spec = found["Spec"]
    if rollback and _given(options, image, args, replicas, force):
        raise click.ClickException("other flags may not be combined with --rollback")
    _apply(engine, spec, {**options, "args": args, "image": image})
    name_image(engine, spec, resolve=image is not None and not options["no_resolve_image"])
    if replicas is not None:
        if "Replicated" not in spec["Mode"]:
            raise click.ClickException("replicas can only be used with replicated mode")
        _set_replicas(spec, replicas)
    if force:
        spec["TaskTemplate"]["ForceUpdate"] = spec["TaskTemplate"].get("ForceUpdate", 0) + 1
    _post_update(engine, found, name, options, rollback=rollback)


def _given(options: dict[str, Any], *others: Any) -> bool:
    """Whether any flag was given that changes the service."""
    changing = {key: value for key, value in options.items() if key not in ("detach", "quiet")}
    return any(value not in (None, False, ()) for value in [*changing.values(), *others])


def _post_update(
    engine: EngineClient, found: dict[str, Any], name: str, options: dict[str, Any], *, rollback: bool = False
) -> None:
    image = found["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
    auth = registry_auth(image) if options.get("with_registry_auth") else {}
    answer = engine.post(
        f"/services/{found['ID']}/update",
        found["Spec"],
        headers=auth,
        version=found["Version"]["Index"],
        registryAuthFrom=None if auth else "spec",
        rollback="previous" if rollback else None,
    )
    for warning in (answer or {}).get("Warnings") or ():
        sys.stderr.write(f"{warning}\n")
    output.write(name)
    if not options["detach"]:
        watch_convergence(engine, name, quiet=options["quiet"])


def _set_replicas(spec: Spec, replicas: int) -> None:
    if "Replicated" not in spec["Mode"]:
        raise click.ClickException("scale can only be used with replicated or replicated-job mode")
    spec["Mode"]["Replicated"]["Replicas"] = replicas


@service.command("rollback")
@click.argument("name", metavar="SERVICE")
@click.option("-d", "--detach", is_flag=True, help="Exit immediately instead of waiting for the service to converge")
@click.option("-q", "--quiet", is_flag=True, help="Suppress progress output")
@click.pass_obj
def roll_back(engine: EngineClient, /, name: str, **options: Any) -> None:
    """Revert changes to a service's configuration."""
    _post_update(engine, engine.get(f"/services/{name}"), name, options, rollback=True)


@service.command()
@click.argument("targets", nargs=-1, required=True, metavar="SERVICE=REPLICAS...")
@click.option("-d", "--detach", is_flag=True, help="Exit immediately instead of waiting for the service to converge")
@click.pass_obj
def scale(engine: EngineClient, targets: Sequence[str], detach: bool) -> None:
    """Scale one or multiple replicated services."""
    wanted = [_scale_target(text) for text in targets]
    started, refusals = [], []
    for name, number in wanted:
        try:
            _scale(engine, name, number)
        except (RefusedError, click.ClickException, ValueError) as error:
            refusals.append(f"{name}: {error}")
        else:
            output.write(f"{name} scaled to {int(number)}")
            started.append(name)
    for name in started if not detach else ():
        try:
            watch_convergence(engine, name)
        except (RefusedError, click.ClickException) as error:
            refusals.append(f"{name}: {error}")
    if refusals:
        raise click.ClickException("\n".join(refusals))


def _scale(engine: EngineClient, name: str, number: str) -> None:
    if not re.fullmatch(r"[0-9]{1,18}", number):
        raise ValueError(f'invalid replicas value {number}: strconv.ParseUint: parsing "{number}": invalid syntax')
    found = engine.get(f"/services/{name}")
    _set_replicas(found["Spec"], int(number))
    answer = engine.post(f"/services/{found['ID']}/update", found["Spec"], version=found["Version"]["Index"])
    for warning in (answer or {}).get("Warnings") or ():
        sys.stderr.write(f"{warning}\n")


def _scale_target(text: str) -> tuple[str, str]:
    name, separator, number = text.partition("=")
    if not separator or not name or not number:
        raise click.ClickException(f"invalid scale specifier '{text}': want SERVICE=REPLICAS")
    return name, number


@service.command()
@click.argument("names", nargs=-1, required=True, metavar="SERVICE...")
@click.pass_obj
def rm(engine: EngineClient, names: Sequence[str]) -> None:
    """Remove one or more services."""
    each(names, lambda name: engine.delete(f"/services/{name}"))


COLUMNS = {"ID": "ID", "Name": "NAME", "Mode": "MODE", "Replicas": "REPLICAS", "Image": "IMAGE", "Ports": "PORTS"}


@service.command()
@FILTERS
@FORMAT_OF_LIST
@ONLY_IDS
@click.pass_obj
def ls(engine: EngineClient, filters: Sequence[str], form: str, quiet: bool) -> None:
    """List services."""
    found = engine.list("/services", parse_filters(filters), status=True)
    output.listing(service_rows(found), COLUMNS, form=form, quiet=quiet)


def service_rows(found: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Rows of ``service ls`` and ``stack services``, by name."""
    return [
        {
            "ID": output.short(entry["ID"]),
            "Name": entry["Spec"]["Name"],
            "Mode": _MODES.get(next(iter(entry["Spec"]["Mode"]), ""), ""),
            "Replicas": _replicas(entry),
            "Image": familiar(entry["Spec"]["TaskTemplate"].get("ContainerSpec", {}).get("Image", "")),
            "Ports": published((entry.get("Endpoint") or {}).get("Ports") or ()),
        }
        for entry in sorted(found, key=lambda entry: output.natural(entry["Spec"]["Name"]))
    ]


_MODES = {
    "Replicated": "replicated",
    "Global": "global",
    "ReplicatedJob": "replicated job",
    "GlobalJob": "global job",
}


def _replicas(entry: dict[str, Any]) -> str:
    status, mode = entry.get("ServiceStatus") or {}, entry["Spec"]["Mode"]
    running, desired, ended = (status.get(f"{word}Tasks", 0) for word in ("Running", "Desired", "Completed"))
    text = f"{running}/{desired}"
    if "ReplicatedJob" in mode:
        return f"{text} ({ended}/{mode['ReplicatedJob'].get('TotalCompletions', 0)} completed)"
    if "GlobalJob" in mode:
        return f"{text} ({ended}/{desired + ended} completed)"
    most = (entry["Spec"]["TaskTemplate"].get("Placement") or {}).get("MaxReplicas", 0)
    return f"{text} (max {most} per node)" if most and "Replicated" in mode else text


def published(ports: Sequence[dict[str, Any]]) -> str:
    """Ports of the routing mesh as ``service ls`` shows them: runs of ports are joined (``*:80-81->80-81/tcp``)."""
    spans: list[list[int]] = []  # published from, to, target from, to
    protocols: list[str] = []
    for port in sorted(ports, key=lambda one: (one["Protocol"], one.get("PublishedPort", 0))):
        if port.get("PublishMode", "ingress") != "ingress":
            continue
        source, target, protocol = port.get("PublishedPort", 0), port["TargetPort"], port["Protocol"]
        last = spans[-1] if spans else [0, 0, 0, 0]
        goes_on = bool(spans) and protocols[-1] == protocol and source - last[1] <= 1 and 0 <= target - last[3] <= 1
        if goes_on and not (last[2] != last[3] and target <= last[3]):
            last[1], last[3] = source, target
        else:
            spans.append([source, source, target, target])
            protocols.append(protocol)
    return ", ".join(
        f"*:{_span(*span[:2])}->{_span(*span[2:])}/{protocol}"
        for span, protocol in zip(spans, protocols, strict=True)
        if span[0]
    )


def _span(first: int, last: int) -> str:
    return f"{first}-{last}" if last > first else str(first)


@service.command()
@click.argument("names", nargs=-1, required=True, metavar="SERVICE...")
@FILTERS
@FORMAT_OF_TASKS
@NO_RESOLVE
@NO_TRUNC
@ONLY_TASK_IDS
@click.pass_obj
def ps(engine: EngineClient, /, names: Sequence[str], filters: Sequence[str], **options: Any) -> None:
    """List the tasks of one or more services."""
    ids, missing = [], []
    for name in names:
        try:
            ids.append(engine.get(f"/services/{name}")["ID"])
        except RefusedError as error:
            if error.status != 404:
                raise
            missing.append(f"no such service: {name}")
    if ids:
        wanted = parse_filters(filters)
        if "node" in wanted:
            wanted["node"] = [resolve(engine, node) for node in wanted["node"]]
        options["no_trunc"] = options["no_trunc"] or options["quiet"]
        print_tasks(engine, engine.list("/tasks", {**wanted, "service": ids}), **options)
    if missing:
        raise click.ClickException("\n".join(missing))


@service.command()
@click.argument("names", nargs=-1, required=True, metavar="SERVICE...")
@FORMAT
@PRETTY
@click.pass_obj
def inspect(engine: EngineClient, names: Sequence[str], form: str, pretty: bool) -> None:
    """Display detailed information on one or more services."""

    def text(found: dict[str, Any]) -> str:
        return pretty_service(found, network_names(engine, found["Spec"]))

    output.inspect(names, lambda name: _find(engine, name), form, text if pretty else None)


def _find(engine: EngineClient, name: str) -> Any:
    try:
        return engine.get(f"/services/{name}", insertDefaults=True)
    except RefusedError as error:
        if error.status != 404:
            raise
        raise RefusedError(404, f"no such service: {name}") from error


@service.command()
@click.argument("name", metavar="SERVICE|TASK")
@click.option("-f", "--follow", is_flag=True, help="Follow log output")
@click.option("-n", "--tail", default="all", help="Number of lines to show from the end of the logs")
@click.option("--since", default="", help="Show logs since timestamp or relative (e.g. 42m)")
@click.option("-t", "--timestamps", is_flag=True, help="Show timestamps")
@click.option("--raw", is_flag=True, help="Do not neatly format logs")
@click.option("--details", is_flag=True, help="Show extra details provided to logs")
@click.option("--no-resolve", is_flag=True, help="Do not map IDs to Names in output")
@click.option("--no-task-ids", is_flag=True, help="Do not include task IDs in output")
@NO_TRUNC
@click.pass_obj
def logs(engine: EngineClient, /, name: str, **options: Any) -> None:
    """Fetch the logs of a service or task."""
    from cli.logs import print_service_logs

    print_service_logs(engine, name, **options)
