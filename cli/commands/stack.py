"""Stacks: deploy, ls, ps, services, rm, config."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any  # Any: values of the API's JSON, and of click's options

import click

from cli import output
from cli.client import EngineClient
from cli.commands.groups import Group
from cli.commands.options import COMPOSE_FILES, FILTERS, FORMAT_OF_LIST, NO_RESOLVE, NO_TRUNC, ONLY_IDS, ONLY_TASK_IDS
from cli.commands.service import COLUMNS as SERVICE_COLUMNS
from cli.commands.service import service_rows
from cli.composefile.files import load
from cli.composefile.normal import normal
from cli.composefile.reader import read
from cli.composefile.source import ManifestError, Source
from cli.composefile.yaml_text import yaml_text
from cli.filters import parse_filters
from cli.progress import watch_convergence
from cli.stack.convert import check, convert
from cli.stack.deploy import deploy as bring_about
from cli.stack.names import NAMESPACE_LABEL, Namespace
from cli.stack.remove import remove
from cli.tasks import print_tasks


@click.group(cls=Group)
def stack() -> None:
    """Manage stacks."""


def _source(files: Sequence[str], variables: Mapping[str, str] | None = os.environ) -> Source:
    """The files as one. Raises: click.ClickException with file and line."""
    try:
        return load(files, variables)
    except ManifestError as error:
        raise click.ClickException(str(error)) from error


@stack.command()
@click.argument("name", metavar="STACK")
@COMPOSE_FILES
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
    namespace = Namespace(name)
    source = _source(files)
    try:
        wanted = convert(read(source, os.environ), namespace)
    except ManifestError as error:
        raise click.ClickException(str(error)) from error
    for warning in wanted.warnings:
        sys.stderr.write(f"{warning}\n")
    ids = bring_about(engine, wanted, say=(lambda text: None) if quiet else output.write, **options)
    if not detach:
        for service_id in ids:
            watch_convergence(engine, service_id, quiet=quiet)


@stack.command("config")
@COMPOSE_FILES
@click.option("--skip-interpolation", is_flag=True, help="Skip interpolation and output only merged config")
def show_config(files: Sequence[str], skip_interpolation: bool) -> None:
    """Output the final config file, after doing merges and interpolations."""
    source = _source(files, None if skip_interpolation else os.environ)
    try:
        file = read(source, os.environ)
        check(file)  # a file that cannot be deployed is none to show
        shown = normal(file)
    except ManifestError as error:
        raise click.ClickException(str(error)) from error
    output.write(yaml_text(shown))


@stack.command()
@FORMAT_OF_LIST
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
@FILTERS
@FORMAT_OF_LIST
@NO_RESOLVE
@NO_TRUNC
@ONLY_TASK_IDS
@click.pass_obj
def ps(engine: EngineClient, /, name: str, filters: Sequence[str], **options: Any) -> None:
    """List the tasks in the stack."""
    wanted = {**parse_filters(filters), "label": [Namespace(name).label]}
    tasks = engine.list("/tasks", wanted)
    if not tasks:
        raise click.ClickException(f"nothing found in stack: {name}")
    print_tasks(engine, tasks, **options)


@stack.command()
@click.argument("name", metavar="STACK")
@FILTERS
@FORMAT_OF_LIST
@ONLY_IDS
@click.pass_obj
def services(engine: EngineClient, name: str, filters: Sequence[str], form: str, quiet: bool) -> None:
    """List the services in the stack."""
    namespace = Namespace(name)
    wanted = parse_filters(filters)
    wanted["label"] = [*wanted.get("label", []), namespace.label]
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
    refused = [name for name in names if not remove(engine, Namespace(name), wait=not detach, say=output.write)]
    if refused:
        raise click.ClickException("\n".join(f"failed to remove some resources from stack: {name}" for name in refused))
