"""Flags of ``service create`` and ``service update``: those that both have, and the lists that differ by suffix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any  # Any: a click command before and after a decorator, whose types click keeps to itself

import click

from cli import service_spec, values
from cli.commands.options import BYTES, COUNT, CPUS, DURATION, FLOAT, INTEGER, WORDS, Parsed, checked

CONDITION = click.Choice(["none", "on-failure", "any"])
ORDER = click.Choice(["start-first", "stop-first"])


def common_options(command: Any) -> Any:
    """Options that create and update share, each a row of ``service_spec.SETTERS``."""
    options = [
        click.option("--hostname", help="Container hostname"),
        click.option("-u", "--user", help="Username or UID (format: <name|uid>[:<group|gid>])"),
        click.option("-w", "--workdir", help="Working directory inside the container"),
        click.option("--entrypoint", type=WORDS, help="Overwrite the default ENTRYPOINT of the image"),
        click.option("-t", "--tty/--no-tty", default=None, help="Allocate a pseudo-TTY"),
        click.option(
            "--read-only/--no-read-only", default=None, help="Mount the container's root filesystem as read only"
        ),
        click.option("--init/--no-init", default=None, help="Use an init inside each service container"),
        click.option("--stop-signal", help="Signal to stop the container"),
        click.option("--stop-grace-period", type=DURATION, help="Time to wait before force killing (default 10s)"),
        click.option("--oom-score-adj", type=INTEGER, help="Tune host's OOM preferences (-1000 to 1000)"),
        click.option("--health-cmd", type=Parsed(service_spec.health_test), help="Command to run to check health"),
        click.option("--health-interval", type=DURATION, help="Time between running the check"),
        click.option("--health-timeout", type=DURATION, help="Maximum time to allow one check to run"),
        click.option("--health-start-period", type=DURATION, help="Start period before counting retries"),
        click.option("--health-start-interval", type=DURATION, help="Time between checks during the start period"),
        click.option("--health-retries", type=INTEGER, help="Consecutive failures needed to report unhealthy"),
        click.option("--limit-cpu", type=CPUS, help="Limit CPUs"),
        click.option("--limit-memory", type=BYTES, help="Limit memory"),
        click.option("--limit-pids", type=INTEGER, help="Limit maximum number of processes (default 0 = unlimited)"),
        click.option("--reserve-cpu", type=CPUS, help="Reserve CPUs"),
        click.option("--reserve-memory", type=BYTES, help="Reserve memory"),
        click.option(
            "--replicas-max-per-node", type=COUNT, help="Maximum number of tasks per node (default 0 = unlimited)"
        ),
        click.option("--restart-condition", type=CONDITION, help='Restart when condition is met (default "any")'),
        click.option("--restart-delay", type=DURATION, help="Delay between restart attempts (default 5s)"),
        click.option("--restart-max-attempts", type=COUNT, help="Maximum number of restarts before giving up"),
        click.option("--restart-window", type=DURATION, help="Window used to evaluate the restart policy"),
        click.option("--no-healthcheck", is_flag=True, help="Disable any container-specified HEALTHCHECK"),
        click.option("--isolation", help="Service container isolation mode"),
        click.option(
            "--no-resolve-image",
            is_flag=True,
            help="Do not query the registry to resolve image digest and supported platforms",
        ),
        click.option("--endpoint-mode", type=click.Choice(["vip", "dnsrr"]), help="Endpoint mode"),
        click.option("--log-driver", help="Logging driver for service"),
        click.option(
            "-d", "--detach", is_flag=True, help="Exit immediately instead of waiting for the service to converge"
        ),
        click.option("-q", "--quiet", is_flag=True, help="Suppress progress output"),
        click.option("--with-registry-auth", is_flag=True, help="Send registry authentication details to agents"),
    ]
    for kind, actions in (("update", ["pause", "continue", "rollback"]), ("rollback", ["pause", "continue"])):
        options += [
            click.option(
                f"--{kind}-parallelism", type=COUNT, help=f"Maximum number of tasks in a {kind} at once, 0 for all"
            ),
            click.option(f"--{kind}-delay", type=DURATION, help=f"Delay between task {kind}s"),
            click.option(
                f"--{kind}-monitor", type=DURATION, help=f"Duration after each task {kind} to monitor for failure"
            ),
            click.option(f"--{kind}-failure-action", type=click.Choice(actions), help=f"Action on {kind} failure"),
            click.option(f"--{kind}-max-failure-ratio", type=FLOAT, help=f"Failure rate to tolerate during a {kind}"),
            click.option(f"--{kind}-order", type=ORDER, help=f"{kind.capitalize()} order"),
        ]
    for option in reversed(options):
        command = option(command)
    return command


# How an entry is read; other lists take any text.
_ENTRIES: Mapping[str, Parsed] = {
    "env": checked(values.environment_entry),
    "mount": Parsed(values.mount),
    "publish": Parsed(values.port),
    "secret": Parsed(values.file_reference),
    "config": Parsed(values.file_reference),
    "network": Parsed(values.network),
    "host": Parsed(service_spec.host_entry),
    "dns": Parsed(values.address),
    "dns_search": Parsed(values.search_domain),
    "ulimit": Parsed(values.ulimit),
    "label": checked(values.label),
    "container_label": checked(values.label),
    "placement_pref": Parsed(service_spec.preference),
    "generic_resource": Parsed(service_spec.generic_resource),
}
_REMOVED: Mapping[str, Parsed] = {
    "publish": checked(service_spec.target_port),
    "placement_pref": checked(service_spec.preference),
}

_LIST_HELP = {
    "env": ("-e", "Set environment variables"),
    "constraint": ("", "Placement constraints"),
    "mount": ("", "Attach a filesystem mount to the service"),
    "publish": ("-p", "Publish a port as a node port"),
    "secret": ("", "Specify secrets to expose to the service"),
    "config": ("", "Specify configurations to expose to the service"),
    "network": ("", "Network attachments"),
    "host": ("", "Set one or more custom host-to-IP mappings (host:ip)"),
    "group": ("", "Set one or more supplementary user groups for the container"),
    "dns": ("", "Set custom DNS servers"),
    "dns_search": ("", "Set custom DNS search domains"),
    "dns_option": ("", "Set DNS options"),
    "cap_add": ("", "Add Linux capabilities"),
    "cap_drop": ("", "Drop Linux capabilities"),
    "ulimit": ("", "Ulimit options"),
    "label": ("-l", "Service labels"),
    "container_label": ("", "Container labels"),
    "sysctl": ("", "Sysctl options"),
    "log_opt": ("", "Logging driver options"),
    "placement_pref": ("", "Placement preference (spread=KEY)"),
    "generic_resource": ("", "User defined resources (KIND=NUMBER)"),
}


def list_options(suffixes: Sequence[str]) -> Callable[[Any], Any]:
    """``--env`` and so on for create (suffix ""), ``--env-add`` and ``--env-rm`` for update."""

    def decorate(command: Any) -> Any:
        for stem, (letter, text) in reversed(_LIST_HELP.items()):
            for suffix in suffixes:
                name = f"--{stem.replace('_', '-')}{suffix}"
                if stem in ("cap_add", "cap_drop") and suffix == "-add":
                    name = f"--{stem.replace('_', '-')}"
                elif stem == "log_opt" and suffix == "-add":
                    name = "--log-opt"
                elif stem in ("cap_add", "cap_drop", "log_opt") and suffix == "-rm":
                    continue
                names = [name, letter] if letter and not suffix else [name]
                destination = f"{stem}{'_rm' if suffix == '-rm' else ''}"
                kind = (_REMOVED if suffix == "-rm" else _ENTRIES).get(stem)
                command = click.option(*names, destination, multiple=True, type=kind, help=text)(command)
        return command

    return decorate
