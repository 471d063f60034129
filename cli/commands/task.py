"""Tasks: inspect, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cli import output
from cli.client import EngineClient
from cli.commands.groups import Group
from cli.commands.options import FILTERS, FORMAT, FORMAT_OF_TASKS, NO_TRUNC, ONLY_TASK_IDS
from cli.filters import parse_filters
from cli.tasks import print_tasks


@click.group(cls=Group)
def task() -> None:
    """Manage tasks."""


@task.command()
@FILTERS
@FORMAT_OF_TASKS
@NO_TRUNC
@ONLY_TASK_IDS
@click.pass_obj
def ls(engine: EngineClient, filters: Sequence[str], form: str, no_trunc: bool, quiet: bool) -> None:
    """List every task of the swarm."""
    print_tasks(engine, engine.list("/tasks", parse_filters(filters)), form=form, no_trunc=no_trunc, quiet=quiet)


@task.command()
@click.argument("ids", nargs=-1, required=True, metavar="TASK...")
@FORMAT
@click.pass_obj
def inspect(engine: EngineClient, ids: Sequence[str], form: str) -> None:
    """Display detailed information on one or more tasks."""
    output.inspect(ids, lambda task_id: engine.get(f"/tasks/{task_id}"), form)
