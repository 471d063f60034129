"""Groups of commands that know Docker's second names (``ls`` is ``list`` too), and the loop of ``rm`` commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import click

from cli import output
from cli.client import RefusedError

ALIASES = {"list": "ls", "remove": "rm", "up": "deploy", "down": "rm"}


class Command(click.Command):
    """Takes ``--flag=false`` for flags, as Go's flag parser does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, plain_flags(self, ctx, args))


class FlagValueError(click.ClickException):
    """What a flag was given cannot be read; Docker's exit status for it is 125."""

    exit_code = 125


def plain_flags(command: click.Command, ctx: click.Context, args: Sequence[str]) -> list[str]:
    """Arguments in which ``--x=true`` is ``--x``, and ``--x=false`` is ``--no-x`` or nothing.

    Raises:
        click.BadParameter: the value is no boolean.
    """
    options = [param for param in command.get_params(ctx) if isinstance(param, click.Option)]
    flags = {name: option for option in options if option.is_flag for name in option.opts}
    valued = {name for option in options if not option.is_flag for name in option.opts}
    made: list[str] = []
    left = list(args)
    while left:
        arg = left.pop(0)
        name, separator, value = arg.partition("=")
        if arg == "--" or (not arg.startswith("-") and not ctx.allow_interspersed_args):
            return [*made, arg, *left]
        if separator and name in flags:
            option = flags[name]
            made += [name] if _truth(ctx, option, value) else option.secondary_opts[:1]
        else:
            made.append(arg)
            if arg in valued and left:
                made.append(left.pop(0))
    return made


def _truth(ctx: click.Context, option: click.Option, value: str) -> bool:
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if value in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise click.BadParameter(f"{value!r} is not true or false", ctx, option)


class Group(click.Group):
    """``list`` finds ``ls`` and so on, where the group has the one and not the other."""

    command_class = Command

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, ALIASES.get(cmd_name, ""))


def each(names: Sequence[str], act: Callable[[str], object]) -> None:
    """Do it for every name: done ones to stdout, refusals to stderr, exit status 1 when there was any."""
    failed = False
    for name in names:
        try:
            act(name)
        except RefusedError as error:
            sys.stderr.write(f"{error}\n")
            failed = True
        else:
            output.write(name)
    if failed:
        raise click.exceptions.Exit(1)
