"""The ``swarm`` command. Sub-commands are imported when used, so that each starts in a few dozen milliseconds."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from base.printable import text_of_lines
from cli.client import EngineClient, RefusedError, UnreachableError

_COMMANDS = {
    # name: (module, attribute, one line)
    "init": ("swarm", "init", "Initialize a swarm"),
    "join": ("swarm", "join", "Join a swarm as a node and/or manager"),
    "join-token": ("swarm", "join_token", "Manage join tokens"),
    "unlock": ("swarm", "unlock", "Unlock swarm"),
    "unlock-key": ("swarm", "unlock_key", "Manage the unlock key"),
    "leave": ("swarm", "leave", "Leave the swarm"),
    "update": ("swarm", "update", "Update the swarm"),
    "inspect": ("swarm", "inspect", "Display detailed information on the swarm"),
    "node": ("node", "node", "Manage nodes"),
    "service": ("service", "service", "Manage services"),
    "stack": ("stack", "stack", "Manage stacks"),
    "task": ("task", "task", "Manage tasks"),
    "network": ("network", "network", "Manage networks"),
    "config": ("payload", "config", "Manage configs"),
    "secret": ("payload", "secret", "Manage secrets"),
    "image": ("image", "image", "Manage images"),
    "container": ("container", "container", "Manage containers"),
    "run": ("run", "run", "Create and run a new container from an image"),
    "images": ("image", "ls", "List images"),
    "pull": ("image", "pull", "Download an image from a registry"),
    "load": ("image", "load", "Load an image from a tar archive"),
    "ps": ("container", "ls", "List containers"),
    "logs": ("container", "logs", "Fetch the logs of a container"),
    "kill": ("container", "kill", "Kill one or more running containers"),
    "info": ("system", "info", "Display system-wide information"),
    "version": ("system", "version", "Show the version information"),
}


class LazyGroup(click.Group):
    """A group whose commands are modules that are imported when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"cli.commands.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands from the table alone, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.option("-H", "--host", default="", metavar="URL", help="Daemon to talk to (default: $SWARM_HOST, $DOCKER_HOST)")
@click.version_option(package_name="swarm-orchestrator", prog_name="swarm")
@click.pass_context
def top(ctx: click.Context, host: str) -> None:
    """Run and manage a cluster of container hosts."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    else:
        ctx.obj = EngineClient(host)


def main() -> None:
    """Entry point: errors go to stderr in one line, with Docker's exit codes."""
    try:
        status = top(prog_name="swarm", standalone_mode=False)  # click gives what Exit was raised with
        sys.stdout.flush()
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stdout.write(f"{error.format_message()}\n")
    except click.UsageError as error:
        sys.stderr.write(f"{_usage(error)}\n")
        # Docker: 125 for a flag it does not know or cannot read, 1 for a command or argument.
        wrong_flag = isinstance(error, click.NoSuchOption | click.BadOptionUsage) or (
            isinstance(error, click.BadParameter) and isinstance(error.param, click.Option)
        )
        sys.exit(125 if wrong_flag else 1)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (RefusedError, UnreachableError, ValueError) as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader went away, as head does. What is left in the buffer must not fail a second time at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)


def _fail(message: str, code: int = 1) -> NoReturn:
    sys.stderr.write(f"{text_of_lines(message)}\n")
    sys.exit(code)


def _usage(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx is not None else "swarm"
    return f"{path}: {error.format_message()}\n\nRun '{path} --help' for more information"
