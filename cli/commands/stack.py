"""Stacks: deploy, ls, ps, services, rm, config."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cli import output
from cli.client import EngineClient, RefusedError
from cli.commands.groups import Group
from cli.commands.service import COLUMNS as SERVICE_COLUMNS
from cli.commands.service import service_rows
from cli.composefile.source import FILE_BYTES_MAX, ManifestError, Source, merge, parse
from cli.convergence import STATES
from cli.filters import parse_filters
from cli.progress import POLL_S, watch_convergence
from cli.stack.convert import NAMESPACE_LABEL, convert
from cli.stack.deploy import deploy as bring_about
from cli.stack.deploy import of_stack
from cli.tasks import print_tasks


@click.group(cls=Group)
def stack() -> None:
    """Manage stacks."""


def check_name(name: str) -> None:
    """Raises: click.ClickException: nothing is left of the name without quotes and white space."""
    if not name.strip(" \t\r\n\"'"):
        raise click.ClickException(f'invalid stack name: "{name}"')


def load(files: Sequence[str], *, interpolate: bool = True) -> Source:
    """Read and merge stack files; ``-`` is stdin. Raises: click.ClickException with file and line."""
    variables = os.environ if interpolate else None
    try:
        sources = [parse(_text(name), name, Path() if name == "-" else Path(name).parent, variables) for name in files]
    except ManifestError as error:
        raise click.ClickException(str(error)) from error
    return functools.reduce(merge, sources)


def _text(name: str) -> str:
    try:
        with sys.stdin.buffer if name == "-" else open(name, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise click.ClickException(f"{name}: larger than {FILE_BYTES_MAX} bytes, which no stack file is")
        return data.decode()
    except OSError as error:
        raise click.ClickException(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{name}: is no UTF-8 text (byte {error.start})") from error


@stack.command()
@click.argument("name", metavar="STACK")
@click.option(
    "-c",
    "--compose-file",
    "files",
    multiple=True,
    required=True,
    help='Path to a Compose file, or "-" to read from stdin',
)
@click.option(
    "--resolve-image",
    type=click.Choice(["always", "changed", "never"]),
    default="always",
    help="Query the registry to resolve image digest and supported platforms",
)
@click.option("--with-registry-auth", is_flag=True, help="Send registry authentication details to Swarm agents")
@click.option("--prune", is_flag=True, help="Prune services that are no longer referenced")
@click.option(
    "-d",
    "--detach/--no-detach",
    default=True,
    help="Exit immediately instead of waiting for the stack services to converge",
)
@click.option("-q", "--quiet", is_flag=True, help="Suppress progress output")
@click.pass_obj
def deploy(
    engine: EngineClient,
    /,
    name: str,
    files: Sequence[str],
    detach: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Deploy a new stack or update an existing stack."""
    check_name(name)
    source = load(files)
    try:
        wanted = convert(source, name, os.environ)
    except ManifestError as error:
        raise click.ClickException(str(error)) from error
    for warning in wanted.warnings:
        sys.stderr.write(f"{warning}\n")
    ids = bring_about(engine, wanted, say=(lambda text: None) if quiet else output.write, **options)
    if not detach:
        for service_id in ids:
            watch_convergence(engine, service_id, quiet=quiet)


@stack.command("config")
@click.option(
    "-c",
    "--compose-file",
    "files",
    multiple=True,
    required=True,
    help='Path to a Compose file, or "-" to read from stdin',
)
@click.option("--skip-interpolation", is_flag=True, help="Skip interpolation and output only merged config")
def show_config(files: Sequence[str], skip_interpolation: bool) -> None:
    """Output the final config file, after doing merges and interpolations."""
    import yaml

    output.write(yaml.safe_dump(load(files, interpolate=not skip_interpolation).value, sort_keys=False))


@stack.command()
@click.option("--format", "form", default="", help="Format output using a custom template")
@click.pass_obj
def ls(engine: EngineClient, form: str) -> None:
    """List stacks."""
    services = engine.list("/services", {"label": [NAMESPACE_LABEL]})
    counts = Counter(service["Spec"]["Labels"][NAMESPACE_LABEL] for service in services)
    rows = [{"Name": name, "Services": str(count)} for name, count in counts.items()]
    rows.sort(key=lambda row: output.natural(row["Name"]))
    output.listing(rows, {"Name": "NAME", "Services": "SERVICES"}, form=form)


@stack.command()
@click.argument("name", metavar="STACK")
@click.option("-f", "--filter", "filters", multiple=True, help="Filter output based on conditions provided")
@click.option("--format", "form", default="", help="Format output using a custom template")
@click.option("--no-resolve", is_flag=True, help="Do not map IDs to Names")
@click.option("--no-trunc", is_flag=True, help="Do not truncate output")
@click.option("-q", "--quiet", is_flag=True, help="Only display task IDs")
@click.pass_obj
def ps(engine: EngineClient, /, name: str, filters: Sequence[str], **options: Any) -> None:
    """List the tasks in the stack."""
    check_name(name)
    wanted = {**parse_filters(filters), "label": [f"{NAMESPACE_LABEL}={name}"]}
    tasks = engine.list("/tasks", wanted)
    if not tasks:
        raise click.ClickException(f"nothing found in stack: {name}")
    print_tasks(engine, tasks, **options)


@stack.command()
@click.argument("name", metavar="STACK")
@click.option("-f", "--filter", "filters", multiple=True, help="Filter output based on conditions provided")
@click.option("--format", "form", default="", help="Format output using a custom template")
@click.option("-q", "--quiet", is_flag=True, help="Only display IDs")
@click.pass_obj
def services(engine: EngineClient, name: str, filters: Sequence[str], form: str, quiet: bool) -> None:
    """List the services in the stack."""
    check_name(name)
    wanted = parse_filters(filters)
    wanted["label"] = [*wanted.get("label", []), f"{NAMESPACE_LABEL}={name}"]
    found = engine.list("/services", wanted, status=True)
    if not found:
        sys.stderr.write(f"Nothing found in stack: {name}\n")
        return
    output.listing(service_rows(found), SERVICE_COLUMNS, form=form, quiet=quiet)


@stack.command()
@click.argument("names", nargs=-1, required=True, metavar="STACK...")
@click.option("-d", "--detach/--no-detach", default=True, type=click.BOOL, help="Do not wait for stack removal")
@click.pass_obj
def rm(engine: EngineClient, names: Sequence[str], detach: bool) -> None:
    """Remove one or more stacks."""
    refusals = []
    for name in names:
        check_name(name)
        found = [(kind, entry) for kind in ("service", "secret", "config") for entry in _parts(engine, kind, name)]
        if not found:
            sys.stderr.write(f"Nothing found in stack: {name}\n")
        if not _remove(engine, found):
            refusals.append(f"failed to remove some resources from stack: {name}")
        elif not detach:
            _wait_for_end(engine, name)
    if refusals:
        raise click.ClickException("\n".join(refusals))


def _parts(engine: EngineClient, kind: str, name: str) -> list[dict[str, Any]]:
    return sorted(of_stack(engine, f"/{kind}s", name), key=lambda entry: str(entry["Spec"]["Name"]))


def _remove(engine: EngineClient, found: Sequence[tuple[str, dict[str, Any]]]) -> bool:
    """Remove one after the other, whatever the daemon says; whether it agreed to all."""
    done = True
    for kind, entry in found:
        output.write(f"Removing {kind} {entry['Spec']['Name']}")
        try:
            engine.delete(f"/{kind}s/{entry['ID']}")
        except RefusedError as error:
            sys.stderr.write(f"Failed to remove {kind} {entry['ID']}: {error}\n")
            done = False
    return done


def _wait_for_end(engine: EngineClient, name: str) -> None:
    """Until no task of the stack is left that has not ended."""
    while any(
        STATES.get(task["Status"]["State"], 0) <= STATES["running"]
        for task in engine.list("/tasks", {"label": [f"{NAMESPACE_LABEL}={name}"]})
    ):
        time.sleep(POLL_S)
