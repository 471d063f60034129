"""Options that several commands have, with the words that all of them say, and the types of options with values."""

from __future__ import annotations

from collections.abc import Callable

import click

from cli import values
from cli.commands.groups import FlagValueError
from cli.filters import name_and_value


class Parsed(click.ParamType[object]):
    """The value of a flag, read by a function before anything is asked of the daemon.

    What the function refuses with a ValueError is told in Docker's form, with the flag; exit status 125.

    Attributes:
        name: the placeholder in the help.
    """

    def __init__(self, parse: Callable[[str], object], name: str = "text") -> None:
        self.name, self._parse = name, parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            flag = ", ".join(sorted(param.opts, key=len)) if param is not None else ""
            raise FlagValueError(f'invalid argument "{value}" for "{flag}" flag: {error}') from error


def checked(parse: Callable[[str], object], name: str = "text") -> Parsed:
    """A value that is read to see that it can be, and stays the text it is."""

    def kept(text: str) -> str:
        parse(text)
        return text

    return Parsed(kept, name)


DURATION = Parsed(values.duration_ns, "duration")
BYTES = Parsed(values.size_bytes, "bytes")
CPUS = Parsed(values.nano_cpus, "decimal")
INTEGER = Parsed(values.integer, "integer")
COUNT = Parsed(values.count, "integer")
FLOAT = Parsed(values.decimal, "float")
WORDS = Parsed(values.words)

FILTERS = click.option(
    "-f",
    "--filter",
    "filters",
    multiple=True,
    type=checked(name_and_value),
    help="Filter output based on conditions provided",
)
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
