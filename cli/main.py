"""The ``swarm`` command. Sub-commands are imported when used, so that each starts in a few dozen milliseconds."""

from __future__ import annotations

import importlib
import sys

import click

from cli.client import Engine, EngineError, UnreachableError

_COMMANDS = {
    # name: (module, attribute, one line)
    "init": ("swarm", "init", "Initialize a swarm"),
    "join": ("swarm", "join", "Join a swarm as a node and/or manager"),
    "join-token": ("swarm", "join_token", "Manage join tokens"),
    "leave": ("swarm", "leave", "Leave the swarm"),
    "update": ("swarm", "update", "Update the swarm"),
    "inspect": ("swarm", "inspect", "Display detailed information on the swarm"),
    "node": ("node", "node", "Manage nodes"),
    "service": ("service", "service", "Manage services"),
    "stack": ("stack", "stack", "Manage stacks"),
    "task": ("task", "task", "Manage tasks"),
    "config": ("blob", "config", "Manage configs"),
    "secret": ("blob", "secret", "Manage secrets"),
    "image": ("image", "image", "Manage images"),
    "container": ("container", "container", "Manage containers"),
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


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("-H", "--host", default="", metavar="URL", help="Daemon to talk to (default: $SWARM_HOST, $DOCKER_HOST)")
@click.version_option(package_name="swarm-orchestrator", prog_name="swarm")
@click.pass_context
def top(ctx: click.Context, host: str) -> None:
    """Run and manage a cluster of container hosts."""
    ctx.obj = Engine(host)


def main() -> None:
    """Entry point: errors go to stderr in one line, with Docker's exit codes."""
    try:
        top(prog_name="swarm", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        if isinstance(error, click.UsageError):
            error.show()
            sys.exit(125 if error.exit_code == 2 else error.exit_code)
        sys.stderr.write(f"{error.format_message()}\n")
        sys.exit(error.exit_code)
    except (EngineError, UnreachableError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
