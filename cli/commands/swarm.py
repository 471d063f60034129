"""The cluster itself: init, join, tokens, leave, update, inspect."""

from __future__ import annotations

import sys
from typing import Any  # Any: values of the API's JSON, and of click's options

import click

from cli import output
from cli.client import EngineClient, RefusedError
from cli.commands.groups import Command
from cli.commands.options import COUNT, DURATION, FORMAT, INTEGER

DEFAULT_LISTEN = "0.0.0.0:2377"
_AVAILABILITY = click.Choice(["active", "pause", "drain"])


def _spec_options(command: Any) -> Any:
    """Options that set parts of the cluster's spec, for init and update."""
    for option in (
        click.option("--task-history-limit", type=INTEGER, help="Task history retention limit (default 5)"),
        click.option("--dispatcher-heartbeat", type=DURATION, help="Dispatcher heartbeat period (default 5s)"),
        click.option("--cert-expiry", type=DURATION, help="Validity period for node certificates (default 2160h)"),
        click.option(
            "--snapshot-interval", type=COUNT, help="Number of log entries between Raft snapshots (default 10000)"
        ),
        click.option("--max-snapshots", type=COUNT, help="Number of additional Raft snapshots to retain"),
        click.option("--autolock/--no-autolock", default=None, help="Manager autolocking"),
    ):
        command = option(command)
    return command


def _apply_spec(spec: dict[str, Any], options: dict[str, Any]) -> bool:
    """Put the given options into ``spec``; whether any was given."""
    places = {
        "task_history_limit": ("Orchestration", "TaskHistoryRetentionLimit"),
        "dispatcher_heartbeat": ("Dispatcher", "HeartbeatPeriod"),
        "cert_expiry": ("CAConfig", "NodeCertExpiry"),
        "snapshot_interval": ("Raft", "SnapshotInterval"),
        "max_snapshots": ("Raft", "KeepOldSnapshots"),
        "autolock": ("EncryptionConfig", "AutoLockManagers"),
    }
    given = {name: value for name, value in options.items() if name in places and value is not None}
    for name, value in given.items():
        section, key = places[name]
        if spec.get(section) is None:
            spec[section] = {}
        spec[section][key] = value
    return bool(given)


@click.command(cls=Command)
@click.option("--advertise-addr", default="", help="Advertised address (format: <ip|interface>[:port])")
@click.option("--listen-addr", default=DEFAULT_LISTEN, help="Listen address (format: <ip|interface>[:port])")
@click.option("--data-path-addr", default="", help="Address or interface to use for data path traffic")
@click.option("--data-path-port", default=0, help="Port number to use for data path traffic (1024 - 49151)")
@click.option("--default-addr-pool", multiple=True, metavar="CIDR", help="Default address pool in CIDR format")
@click.option("--default-addr-pool-mask-length", default=24, help="Default address pool subnet mask length")
@click.option("--availability", type=_AVAILABILITY, default="active", help="Availability of the node")
@click.option("--force-new-cluster", is_flag=True, help="Force create a new cluster from current state")
@_spec_options
@click.pass_obj
def init(engine: EngineClient, /, **options: Any) -> None:
    """Initialize a swarm."""
    spec: dict[str, Any] = {}
    _apply_spec(spec, options)
    try:
        node_id = engine.post("/swarm/init", _init_request(options, spec))
    except RefusedError as error:
        if "IP address" in error.message and "--advertise-addr" not in error.message:
            raise click.ClickException(f"{error} - specify one with --advertise-addr") from error
        raise
    output.write(f"Swarm initialized: current node ({node_id}) is now a manager.\n\n")
    _print_join_command(engine, "worker", node_id)
    output.write("To add a manager to this swarm, run 'swarm join-token manager' and follow the instructions.")
    if options["autolock"]:
        _print_unlock_key(engine)


def _init_request(options: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "ListenAddr": options["listen_addr"],
        "AdvertiseAddr": options["advertise_addr"],
        "DataPathAddr": options["data_path_addr"],
        "DataPathPort": options["data_path_port"],
        "DefaultAddrPool": [part for text in options["default_addr_pool"] for part in text.split(",")],
        "SubnetSize": options["default_addr_pool_mask_length"],
        "ForceNewCluster": options["force_new_cluster"],
        "AutoLockManagers": bool(options["autolock"]),
        "Availability": options["availability"],
        "Spec": spec,
    }


@click.command(cls=Command)
@click.argument("address", metavar="HOST:PORT")
@click.option("--token", required=True, help="Token for entry into the swarm")
@click.option("--advertise-addr", default="", help="Advertised address (format: <ip|interface>[:port])")
@click.option("--listen-addr", default=DEFAULT_LISTEN, help="Listen address (format: <ip|interface>[:port])")
@click.option("--data-path-addr", default="", help="Address or interface to use for data path traffic")
@click.option("--availability", type=_AVAILABILITY, default="active", help="Availability of the node")
@click.pass_obj
def join(engine: EngineClient, /, address: str, token: str, **options: Any) -> None:
    """Join a swarm as a node and/or manager; the token decides which."""
    engine.post(
        "/swarm/join",
        {
            "RemoteAddrs": [address],
            "JoinToken": token,
            "ListenAddr": options["listen_addr"],
            "AdvertiseAddr": options["advertise_addr"],
            "DataPathAddr": options["data_path_addr"],
            "Availability": options["availability"],
        },
    )
    manager = engine.get("/info")["Swarm"]["ControlAvailable"]
    output.write(f"This node joined a swarm as a {'manager' if manager else 'worker'}.")


@click.command("join-token", cls=Command)
@click.argument("role", type=click.Choice(["worker", "manager"]))
@click.option("--rotate", is_flag=True, help="Rotate join token")
@click.option("-q", "--quiet", is_flag=True, help="Only display token")
@click.pass_obj
def join_token(engine: EngineClient, role: str, rotate: bool, quiet: bool) -> None:
    """Print the command that joins a node to this swarm."""
    if rotate:
        cluster = engine.get("/swarm")
        engine.post(
            "/swarm/update",
            cluster["Spec"],
            version=cluster["Version"]["Index"],
            rotateWorkerToken=role == "worker",
            rotateManagerToken=role == "manager",
        )
        if not quiet:
            output.write(f"Successfully rotated {role} join token.\n\n")
    if quiet:
        output.write(engine.get("/swarm")["JoinTokens"][role.capitalize()])
    else:
        _print_join_command(engine, role, engine.get("/info")["Swarm"]["NodeID"])


def _print_join_command(engine: EngineClient, role: str, node_id: str) -> None:
    manager = engine.get(f"/nodes/{node_id}").get("ManagerStatus")
    token = engine.get("/swarm")["JoinTokens"][role.capitalize()]
    if manager:
        output.write(f"To add a {role} to this swarm, run the following command:\n\n")
        output.write(f"    swarm join --token {token} {manager.get('Addr', '')}\n\n")


def _print_unlock_key(engine: EngineClient, *, needed: bool = False) -> None:
    key = engine.get("/swarm/unlockkey")["UnlockKey"]
    if not key and needed:
        raise click.ClickException("no unlock key is set")
    if key:
        output.write(
            "To unlock a swarm manager after it restarts, run the `swarm unlock`\n"
            f"command and provide the following key:\n\n    {key}\n\n"
            "Remember to store this key in a password manager, since without it you\n"
            "will not be able to restart the manager."
        )


@click.command("unlock-key", cls=Command)
@click.option("--rotate", is_flag=True, help="Rotate unlock key")
@click.option("-q", "--quiet", is_flag=True, help="Only display token")
@click.pass_obj
def unlock_key(engine: EngineClient, rotate: bool, quiet: bool) -> None:
    """Manage the unlock key."""
    if rotate:
        cluster = engine.get("/swarm")
        if not (cluster["Spec"].get("EncryptionConfig") or {}).get("AutoLockManagers"):
            raise click.ClickException("cannot rotate because autolock is not turned on")
        version = cluster["Version"]["Index"]
        engine.post("/swarm/update", cluster["Spec"], version=version, rotateManagerUnlockKey=True)
        if not quiet:
            output.write("Successfully rotated manager unlock key.")
    if not quiet:
        _print_unlock_key(engine, needed=True)
    elif key := engine.get("/swarm/unlockkey")["UnlockKey"]:
        output.write(key)
    else:
        raise click.ClickException("no unlock key is set")


@click.command(cls=Command)
@click.pass_obj
def unlock(engine: EngineClient) -> None:
    """Unlock swarm."""
    key = click.prompt("Enter unlock key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    engine.post("/swarm/unlock", {"UnlockKey": key.strip()})


@click.command(cls=Command)
@click.option("-f", "--force", is_flag=True, help="Force this node to leave the swarm, ignoring warnings")
@click.pass_obj
def leave(engine: EngineClient, force: bool) -> None:
    """Leave the swarm."""
    engine.post("/swarm/leave", force=force)
    output.write("Node left the swarm.")


@click.command(cls=Command)
@_spec_options
@click.pass_obj
def update(engine: EngineClient, /, **options: Any) -> None:
    """Update the swarm."""
    cluster = engine.get("/swarm")
    locked = (cluster["Spec"].get("EncryptionConfig") or {}).get("AutoLockManagers", False)
    if not _apply_spec(cluster["Spec"], options):
        raise click.UsageError("nothing to update: give at least one option")
    engine.post("/swarm/update", cluster["Spec"], version=cluster["Version"]["Index"])
    output.write("Swarm updated.")
    if options["autolock"] and not locked:
        _print_unlock_key(engine)


@click.command(cls=Command)
@FORMAT
@click.pass_obj
def inspect(engine: EngineClient, form: str) -> None:
    """Display detailed information on the swarm."""
    output.inspect(["swarm"], lambda _: engine.get("/swarm"), form)
