"""Options that several commands have, with the words that all of them say."""

from __future__ import annotations

import click

FILTERS = click.option("-f", "--filter", "filters", multiple=True, help="Filter output based on conditions provided")
# Commands that filter have -f for that; the others have it for the format.
FORMAT_OF_LIST = click.option("--format", "form", default="", help="Format output using a custom template")
FORMAT = click.option("-f", "--format", "form", default="", help="Format output using a custom template")
FORMAT_OF_TASKS = click.option("--format", "form", default="", help="Pretty-print tasks using a Go template")
PRETTY = click.option("--pretty", is_flag=True, help="Print the information in a human friendly format")
NO_TRUNC = click.option("--no-trunc", is_flag=True, help="Do not truncate output")
NO_RESOLVE = click.option("--no-resolve", is_flag=True, help="Do not map IDs to Names")
ONLY_IDS = click.option("-q", "--quiet", is_flag=True, help="Only display IDs")
ONLY_TASK_IDS = click.option("-q", "--quiet", is_flag=True, help="Only display task IDs")
COMPOSE_FILES = click.option(
    "-c",
    "--compose-file",
    "files",
    multiple=True,
    required=True,
    help='Path to a Compose file, or "-" to read from stdin',
)
