"""The cluster itself: init, join, tokens, leave, update, inspect."""

from __future__ import annotations

from typing import Any

import click

from cli import output
from cli.client import Engine
from cli.values import duration_ns

DEFAULT_LISTEN = "0.0.0.0:2377"
_AVAILABILITY = click.Choice(["active", "pause", "drain"])


def _spec_options(command: Any) -> Any:
    """Options that set parts of the cluster's spec, for init and update."""
    for option in (
        click.option("--task-history-limit", type=int, help="Task history retention limit (default 5)"),
        click.option("--dispatcher-heartbeat", metavar="DURATION", help="Dispatcher heartbeat period (default 5s)"),
        click.option("--cert-expiry", metavar="DURATION", help="Validity period for node certificates (default 2160h)"),
        click.option(
            "--snapshot-interval", type=int, help="Number of log entries between Raft snapshots (default 10000)"
        ),
        click.option("--max-snapshots", type=int, help="Number of additional Raft snapshots to retain"),
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
        spec.setdefault(section, {})[key] = duration_ns(value) if isinstance(value, str) else value
    return bool(given)


@click.command()
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
def init(engine: Engine, /, **options: Any) -> None:
    """Initialize a swarm."""
    spec: dict[str, Any] = {}
    _apply_spec(spec, options)
    node_id = engine.post(
        "/swarm/init",
        {
            "ListenAddr": options["listen_addr"],
            "AdvertiseAddr": options["advertise_addr"],
            "DataPathAddr": options["data_path_addr"],
            "DataPathPort": options["data_path_port"],
            "DefaultAddrPool": list(options["default_addr_pool"]),
            "SubnetSize": options["default_addr_pool_mask_length"],
            "ForceNewCluster": options["force_new_cluster"],
            "AutoLockManagers": bool(options["autolock"]),
            "Availability": options["availability"],
            "Spec": spec,
        },
    )
    output.write(f"Swarm initialized: current node ({node_id}) is now a manager.\n")
    _print_join_command(engine, "worker", node_id)
    output.write("To add a manager to this swarm, run 'swarm join-token manager' and follow the instructions.\n")


@click.command()
@click.argument("address", metavar="HOST:PORT")
@click.option("--token", required=True, help="Token for entry into the swarm")
@click.option("--advertise-addr", default="", help="Advertised address (format: <ip|interface>[:port])")
@click.option("--listen-addr", default=DEFAULT_LISTEN, help="Listen address (format: <ip|interface>[:port])")
@click.option("--data-path-addr", default="", help="Address or interface to use for data path traffic")
@click.option("--availability", type=_AVAILABILITY, default="active", help="Availability of the node")
@click.pass_obj
def join(engine: Engine, /, address: str, token: str, **options: Any) -> None:
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


@click.command("join-token")
@click.argument("role", type=click.Choice(["worker", "manager"]))
@click.option("--rotate", is_flag=True, help="Rotate join token")
@click.option("-q", "--quiet", is_flag=True, help="Only display token")
@click.pass_obj
def join_token(engine: Engine, role: str, rotate: bool, quiet: bool) -> None:
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
            output.write(f"Successfully rotated {role} join token.\n")
    if quiet:
        output.write(engine.get("/swarm")["JoinTokens"][role.capitalize()])
    else:
        _print_join_command(engine, role, engine.get("/info")["Swarm"]["NodeID"])


def _print_join_command(engine: Engine, role: str, node_id: str) -> None:
    token = engine.get("/swarm")["JoinTokens"][role.capitalize()]
    address = engine.get(f"/nodes/{node_id}").get("ManagerStatus", {}).get("Addr", "")
    output.write(f"To add a {role} to this swarm, run the following command:\n")
    output.write(f"    swarm join --token {token} {address}\n")


@click.command()
@click.option("-f", "--force", is_flag=True, help="Force this node to leave the swarm, ignoring warnings")
@click.pass_obj
def leave(engine: Engine, force: bool) -> None:
    """Leave the swarm."""
    engine.post("/swarm/leave", force=force)
    output.write("Node left the swarm.")


@click.command()
@_spec_options
@click.pass_obj
def update(engine: Engine, /, **options: Any) -> None:
    """Update the swarm."""
    cluster = engine.get("/swarm")
    if not _apply_spec(cluster["Spec"], options):
        raise click.UsageError("nothing to update: give at least one option")
    engine.post("/swarm/update", cluster["Spec"], version=cluster["Version"]["Index"])
    output.write("Swarm updated.")


@click.command()
@click.option("-f", "--format", "form", default="", help="Format output using a custom template")
@click.pass_obj
def inspect(engine: Engine, form: str) -> None:
    """Display detailed information on the swarm."""
    output.inspect([engine.get("/swarm")], form)
