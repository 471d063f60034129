"""The command line of ``swarmd``. Quick to import: bad options are told before anything else happens."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from base.version import VERSION

DEFAULT_STATE = "/var/lib/swarm"
DEFAULT_RUN = "/run/swarm"
DEFAULT_HOST = "unix:///run/swarm/engine.sock"


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of swarmd."""
    parser = argparse.ArgumentParser(prog="swarmd", description="The container engine and cluster node of this host.")
    parser.add_argument("--state", default=DEFAULT_STATE, metavar="DIR", help=f"state folder (default {DEFAULT_STATE})")
    parser.add_argument("--run", default=DEFAULT_RUN, metavar="DIR", help=f"runtime folder (default {DEFAULT_RUN})")
    parser.add_argument(
        *("--host", "-H"),
        action="append",
        metavar="URL",
        help=f"where to serve the Engine API, may be repeated (default {DEFAULT_HOST})",
    )
    parser.add_argument(
        "--cgroup-parent", metavar="PATH", help="cgroup for the containers (default: from the state folder)"
    )
    parser.add_argument(
        "--bridge", default="swarm0", metavar="NAME", help="device of the default bridge (default swarm0)"
    )
    parser.add_argument("--bridge-subnet", default="172.17.0.0/16", metavar="CIDR", help="subnet of the default bridge")
    parser.add_argument(
        *("--default-address-pool",),
        action="append",
        default=[],
        metavar="base=CIDR,size=LENGTH",
        help="where the subnets of networks come from, may be repeated (default as dockerd's)",
    )
    parser.add_argument(
        *("--insecure-registry",),
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="registry to speak plain HTTP with",
    )
    parser.add_argument("--registry-mirror", action="append", default=[], metavar="URL", help="mirror of docker.io")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="engine label of this host")
    parser.add_argument(
        *("--log-level",), default="info", choices=["debug", "info", "warning", "error"], help="(default info)"
    )
    parser.add_argument("--version", action="version", version=f"swarmd {VERSION}")
    return parser.parse_args(arguments)
