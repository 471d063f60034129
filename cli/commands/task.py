"""Tasks: inspect, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cli import output
from cli.client import EngineClient
from cli.commands.groups import Group
from cli.filters import parse_filters
from cli.tasks import print_tasks


@click.group(cls=Group)
def task() -> None:
    """Manage tasks."""


@task.command()
@click.option("-f", "--filter", "filters", multiple=True, help="Filter output based on conditions provided")
@click.option("--format", "form", default="", help="Pretty-print tasks using a Go template")
@click.option("--no-trunc", is_flag=True, help="Do not truncate output")
@click.option("-q", "--quiet", is_flag=True, help="Only display task IDs")
@click.pass_obj
def ls(engine: EngineClient, filters: Sequence[str], form: str, no_trunc: bool, quiet: bool) -> None:
    """List every task of the swarm."""
    print_tasks(engine, engine.list("/tasks", parse_filters(filters)), form=form, no_trunc=no_trunc, quiet=quiet)


@task.command()
@click.argument("ids", nargs=-1, required=True, metavar="TASK...")
@click.option("-f", "--format", "form", default="", help="Format output using a custom template")
@click.pass_obj
def inspect(engine: EngineClient, ids: Sequence[str], form: str) -> None:
    """Display detailed information on one or more tasks."""
    output.inspect(ids, lambda task_id: engine.get(f"/tasks/{task_id}"), form)
