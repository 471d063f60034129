"""Services: create, ls, ps, inspect, update, scale, rollback, rm, logs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from cli import output, service_spec, values
from cli.client import Engine, EngineError
from cli.commands.node import each
from cli.filters import parse_filters
from cli.pretty import pretty_service
from cli.progress import watch_convergence
from cli.service_spec import Spec
from cli.tasks import print_tasks

_CONDITION = click.Choice(["none", "on-failure", "any"])
_ORDER = click.Choice(["start-first", "stop-first"])


@click.group()
def service() -> None:
    """Manage services."""


def _common_options(command: Any) -> Any:
    """Options that create and update share, each a row of ``service_spec.SETTERS``."""
    options = [
        click.option("--hostname", help="Container hostname"),
        click.option("-u", "--user", help="Username or UID (format: <name|uid>[:<group|gid>])"),
        click.option("-w", "--workdir", help="Working directory inside the container"),
        click.option("--entrypoint", help="Overwrite the default ENTRYPOINT of the image"),
        click.option("-t", "--tty/--no-tty", default=None, help="Allocate a pseudo-TTY"),
        click.option(
            "--read-only/--no-read-only", default=None, help="Mount the container's root filesystem as read only"
        ),
        click.option("--init/--no-init", default=None, help="Use an init inside each service container"),
        click.option("--stop-signal", help="Signal to stop the container"),
        click.option("--stop-grace-period", metavar="DURATION", help="Time to wait before force killing (default 10s)"),
        click.option("--oom-score-adj", type=int, help="Tune host's OOM preferences (-1000 to 1000)"),
        click.option("--health-cmd", help="Command to run to check health"),
        click.option("--health-interval", metavar="DURATION", help="Time between running the check"),
        click.option("--health-timeout", metavar="DURATION", help="Maximum time to allow one check to run"),
        click.option("--health-start-period", metavar="DURATION", help="Start period before counting retries"),
        click.option("--health-start-interval", metavar="DURATION", help="Time between checks during the start period"),
        click.option("--health-retries", type=int, help="Consecutive failures needed to report unhealthy"),
        click.option("--limit-cpu", metavar="DECIMAL", help="Limit CPUs"),
        click.option("--limit-memory", metavar="BYTES", help="Limit memory"),
        click.option("--limit-pids", type=int, help="Limit maximum number of processes (default 0 = unlimited)"),
        click.option("--reserve-cpu", metavar="DECIMAL", help="Reserve CPUs"),
        click.option("--reserve-memory", metavar="BYTES", help="Reserve memory"),
        click.option(
            "--replicas-max-per-node", type=int, help="Maximum number of tasks per node (default 0 = unlimited)"
        ),
        click.option("--restart-condition", type=_CONDITION, help='Restart when condition is met (default "any")'),
        click.option("--restart-delay", metavar="DURATION", help="Delay between restart attempts (default 5s)"),
        click.option("--restart-max-attempts", type=int, help="Maximum number of restarts before giving up"),
        click.option("--restart-window", metavar="DURATION", help="Window used to evaluate the restart policy"),
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
                f"--{kind}-parallelism", type=int, help=f"Maximum number of tasks in a {kind} at once, 0 for all"
            ),
            click.option(f"--{kind}-delay", metavar="DURATION", help=f"Delay between task {kind}s"),
            click.option(
                f"--{kind}-monitor", metavar="DURATION", help=f"Duration after each task {kind} to monitor for failure"
            ),
            click.option(f"--{kind}-failure-action", type=click.Choice(actions), help=f"Action on {kind} failure"),
            click.option(f"--{kind}-max-failure-ratio", type=float, help=f"Failure rate to tolerate during a {kind}"),
            click.option(f"--{kind}-order", type=_ORDER, help=f"{kind.capitalize()} order"),
        ]
    for option in reversed(options):
        command = option(command)
    return command


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
}


def _list_options(suffixes: Sequence[str]) -> Callable[[Any], Any]:
    """``--env`` and so on for create (suffix ""), ``--env-add`` and ``--env-rm`` for update."""

    def decorate(command: Any) -> Any:
        for stem, (letter, text) in reversed(_LIST_HELP.items()):
            for suffix in suffixes:
                name = f"--{stem.replace('_', '-')}{suffix}"
                if stem in ("cap_add", "cap_drop") and suffix == "-add":
                    name = f"--{stem.replace('_', '-')}"
                elif stem in ("cap_add", "cap_drop", "log_opt") and suffix:
                    continue
                names = [name, letter] if letter and not suffix else [name]
                destination = f"{stem}{'_rm' if suffix == '-rm' else ''}"
                command = click.option(*names, destination, multiple=True, help=text)(command)
        return command

    return decorate


def _entries(engine: Engine, stem: str, texts: Sequence[str]) -> list[Any]:
    """The API's entries of what was written for a list flag."""
    match stem:
        case "mount":
            return [values.mount(text) for text in texts]
        case "publish":
            return [port for text in texts for port in values.port(text)]
        case "host":
            return [service_spec.host_entry(text) for text in texts]
        case "ulimit":
            return [values.ulimit(text) for text in texts]
        case "network":
            return [{"Target": text} for text in texts]
        case "secret" | "config":
            return [_file_entry(engine, stem, text) for text in texts]
        case _:
            return list(texts)


def _file_entry(engine: Engine, stem: str, text: str) -> dict[str, Any]:
    reference = values.file_reference(text, default_directory="" if stem == "secret" else "/")
    word = stem.capitalize()
    found = engine.list(f"/{stem}s", {"name": [reference["Source"]]})
    match = [entry for entry in found if reference["Source"] in (entry["Spec"]["Name"], entry["ID"])]
    if not match:
        raise click.ClickException(f"{stem} not found: {reference['Source']}")
    return {"File": reference["File"], f"{word}ID": match[0]["ID"], f"{word}Name": match[0]["Spec"]["Name"]}


def _apply(engine: Engine, spec: Spec, options: dict[str, Any]) -> None:
    service_spec.apply_settings(spec, options)
    for stem in service_spec.LISTS:
        service_spec.remove_entries(spec, stem, options.get(f"{stem}_rm") or ())
        service_spec.add_entries(spec, stem, _entries(engine, stem, options.get(stem) or ()))
    for stem in service_spec.MAPS:
        service_spec.change_map(spec, stem, options.get(stem) or (), options.get(f"{stem}_rm") or ())


@service.command()
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--name", default="", help="Service name")
@click.option("--mode", "mode_name", default="replicated", help="Service mode (replicated, global)")
@click.option("--replicas", type=int, help="Number of tasks")
@click.option("--placement-pref", multiple=True, metavar="spread=KEY", help="Add a placement preference")
@_list_options([""])
@_common_options
@click.pass_obj
def create(
    engine: Engine,
    /,
    image: str,
    command: Sequence[str],
    name: str,
    mode_name: str,
    replicas: int | None,
    **options: Any,
) -> None:
    """Create a new service."""
    spec: Spec = {
        "Name": name,
        "Labels": {},
        "TaskTemplate": {"ContainerSpec": {"Image": image}},
        "Mode": service_spec.mode(mode_name, replicas),
    }
    if command:
        spec["TaskTemplate"]["ContainerSpec"]["Args"] = list(command)
    _apply(engine, spec, options)
    if options["placement_pref"]:
        service_spec.put(spec, ("TaskTemplate", "Placement", "Preferences"), _preferences(options["placement_pref"]))
    made = engine.post("/services/create", spec)
    for warning in made.get("Warnings") or ():
        sys.stderr.write(f"{warning}\n")
    output.write(made["ID"])
    if not options["detach"]:
        watch_convergence(engine, made["ID"], quiet=options["quiet"])


def _preferences(texts: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for text in texts:
        key, separator, value = text.partition("=")
        if key != "spread" or not separator:
            raise ValueError(f"invalid placement preference {text!r}: want spread=node.labels.KEY")
        found.append({"Spread": {"SpreadDescriptor": value}})
    return found


@service.command()
@click.argument("name", metavar="SERVICE")
@click.option("--image", help="Service image tag")
@click.option("--args", help="Service command args")
@click.option("--replicas", type=int, help="Number of tasks")
@click.option("--force", is_flag=True, help="Force update even if no changes require it")
@click.option("--rollback", is_flag=True, help="Rollback to previous specification")
@_list_options(["-add", "-rm"])
@_common_options
@click.pass_obj
def update(
    engine: Engine, /, name: str, args: str | None, replicas: int | None, force: bool, rollback: bool, **options: Any
) -> None:
    """Update a service."""
    found = engine.get(f"/services/{name}")
    spec = found["Spec"]
    _apply(engine, spec, options)
    if args is not None:
        spec["TaskTemplate"]["ContainerSpec"]["Args"] = args.split()
    if replicas is not None:
        _set_replicas(spec, name, replicas)
    if force:
        spec["TaskTemplate"]["ForceUpdate"] = spec["TaskTemplate"].get("ForceUpdate", 0) + 1
    _post_update(engine, found, name, options, rollback=rollback)


def _post_update(
    engine: Engine, found: dict[str, Any], name: str, options: dict[str, Any], *, rollback: bool = False
) -> None:
    answer = engine.post(
        f"/services/{found['ID']}/update",
        found["Spec"],
        version=found["Version"]["Index"],
        rollback="previous" if rollback else None,
    )
    for warning in (answer or {}).get("Warnings") or ():
        sys.stderr.write(f"{warning}\n")
    output.write(name)
    if not options["detach"]:
        watch_convergence(engine, found["ID"], quiet=options["quiet"])


def _set_replicas(spec: Spec, name: str, replicas: int) -> None:
    if "Replicated" not in spec["Mode"]:
        raise click.ClickException(f"{name}: scale can only be used with replicated or replicated-job mode")
    spec["Mode"]["Replicated"]["Replicas"] = replicas


@service.command("rollback")
@click.argument("name", metavar="SERVICE")
@click.option("-d", "--detach", is_flag=True, help="Exit immediately instead of waiting for the service to converge")
@click.option("-q", "--quiet", is_flag=True, help="Suppress progress output")
@click.pass_obj
def roll_back(engine: Engine, /, name: str, **options: Any) -> None:
    """Revert changes to a service's configuration."""
    _post_update(engine, engine.get(f"/services/{name}"), name, options, rollback=True)


@service.command()
@click.argument("targets", nargs=-1, required=True, metavar="SERVICE=REPLICAS...")
@click.option("-d", "--detach", is_flag=True, help="Exit immediately instead of waiting for the service to converge")
@click.pass_obj
def scale(engine: Engine, targets: Sequence[str], detach: bool) -> None:
    """Scale one or multiple replicated services."""
    wanted = [_scale_target(text) for text in targets]
    started, failed = [], False
    for name, replicas in wanted:
        try:
            found = engine.get(f"/services/{name}")
            _set_replicas(found["Spec"], name, replicas)
            engine.post(f"/services/{found['ID']}/update", found["Spec"], version=found["Version"]["Index"])
        except (EngineError, click.ClickException) as error:
            sys.stderr.write(f"{error}\n")
            failed = True
        else:
            output.write(f"{name} scaled to {replicas}")
            started.append(found["ID"])
    if not detach:
        for service_id in started:
            watch_convergence(engine, service_id)
    if failed:
        raise click.exceptions.Exit(1)


def _scale_target(text: str) -> tuple[str, int]:
    name, separator, number = text.partition("=")
    if not separator:
        raise ValueError(f"invalid scale specifier {text!r}: want SERVICE=REPLICAS")
    if not number.isdecimal():
        raise ValueError(f"{name}: invalid replicas value {number}")
    return name, int(number)


@service.command()
@click.argument("names", nargs=-1, required=True, metavar="SERVICE...")
@click.pass_obj
def rm(engine: Engine, names: Sequence[str]) -> None:
    """Remove one or more services."""
    each(names, lambda name: engine.delete(f"/services/{name}"))


COLUMNS = {"ID": "ID", "Name": "NAME", "Mode": "MODE", "Replicas": "REPLICAS", "Image": "IMAGE", "Ports": "PORTS"}


@service.command()
@click.option("-f", "--filter", "filters", multiple=True, help="Filter output based on conditions provided")
@click.option("--format", "form", default="", help="Format output using a custom template")
@click.option("-q", "--quiet", is_flag=True, help="Only display IDs")
@click.pass_obj
def ls(engine: Engine, filters: Sequence[str], form: str, quiet: bool) -> None:
    """List services."""
    found = engine.list("/services", parse_filters(filters), status=True)
    output.listing(service_rows(found), COLUMNS, form=form, quiet=quiet)


def service_rows(found: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Rows of ``service ls`` and ``stack services``, by name."""
    return [
        {
            "ID": output.short(entry["ID"]),
            "Name": entry["Spec"]["Name"],
            "Mode": next(iter(entry["Spec"]["Mode"]), "").lower(),
            "Replicas": _replicas(entry),
            "Image": entry["Spec"]["TaskTemplate"].get("ContainerSpec", {}).get("Image", "").partition("@")[0],
            "Ports": ",".join(_port(port) for port in entry.get("Endpoint", {}).get("Ports") or ()),
        }
        for entry in sorted(found, key=lambda entry: entry["Spec"]["Name"])
    ]


def _replicas(entry: dict[str, Any]) -> str:
    status = entry.get("ServiceStatus") or {}
    text = f"{status.get('RunningTasks', 0)}/{status.get('DesiredTasks', 0)}"
    most = (entry["Spec"]["TaskTemplate"].get("Placement") or {}).get("MaxReplicas", 0)
    return f"{text} (max {most} per node)" if most else text


def _port(port: dict[str, Any]) -> str:
    return f"*:{port.get('PublishedPort', 0)}->{port['TargetPort']}/{port['Protocol']}"


@service.command()
@click.argument("names", nargs=-1, required=True, metavar="SERVICE...")
@click.option("-f", "--filter", "filters", multiple=True, help="Filter output based on conditions provided")
@click.option("--format", "form", default="", help="Pretty-print tasks using a Go template")
@click.option("--no-resolve", is_flag=True, help="Do not map IDs to Names")
@click.option("--no-trunc", is_flag=True, help="Do not truncate output")
@click.option("-q", "--quiet", is_flag=True, help="Only display task IDs")
@click.pass_obj
def ps(engine: Engine, /, names: Sequence[str], filters: Sequence[str], **options: Any) -> None:
    """List the tasks of one or more services."""
    ids, missing = [], []
    for name in names:
        try:
            ids.append(engine.get(f"/services/{name}")["ID"])
        except EngineError as error:
            if error.status != 404:
                raise
            missing.append(f"no such service: {name}")
    if ids:
        wanted = parse_filters(filters)
        print_tasks(engine, engine.list("/tasks", {**wanted, "service": ids}), **options)
    if missing:
        raise click.ClickException("\n".join(missing))


@service.command()
@click.argument("names", nargs=-1, required=True, metavar="SERVICE...")
@click.option("-f", "--format", "form", default="", help="Format output using a custom template")
@click.option("--pretty", is_flag=True, help="Print the information in a human friendly format")
@click.pass_obj
def inspect(engine: Engine, names: Sequence[str], form: str, pretty: bool) -> None:
    """Display detailed information on one or more services."""
    found = [engine.get(f"/services/{name}", insertDefaults=True) for name in names]
    output.inspect(found, form, pretty_service if pretty else None)


@service.command()
@click.argument("name", metavar="SERVICE|TASK")
@click.option("-f", "--follow", is_flag=True, help="Follow log output")
@click.option("-n", "--tail", default="all", help="Number of lines to show from the end of the logs")
@click.option("--since", default="", help="Show logs since timestamp or relative (e.g. 42m)")
@click.option("-t", "--timestamps", is_flag=True, help="Show timestamps")
@click.option("--raw", is_flag=True, help="Do not neatly format logs")
@click.pass_obj
def logs(engine: Engine, /, name: str, raw: bool, **options: Any) -> None:
    """Fetch the logs of a service or task."""
    from cli.logs import print_service_logs

    print_service_logs(engine, name, raw=raw, **options)
