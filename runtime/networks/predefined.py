"""The networks that every host has: "bridge", "host" and "none"."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path

from runtime.kernel.network import KernelNetwork
from runtime.networks import options
from runtime.networks.bridge import BridgeDriver
from runtime.networks.driver import Driver, Network, Pool
from runtime.networks.macvlan import MacvlanDriver
from runtime.networks.plain import PlainDriver
from runtime.networks.pools import DEFAULT_POOLS, DefaultPool

NAMES = frozenset(("bridge", "host", "none"))
NAMELESS = NAMES | {"docker_gwbridge"}
"""Networks on which nobody has names: of those that lead out for others as well, which their containers did not ask for."""


def drivers(
    kernel: KernelNetwork, run: Path, *, engine: str = "swarm0", defaults: Sequence[DefaultPool] = DEFAULT_POOLS
) -> list[Driver]:
    """Those of a host by itself. ``run`` is a folder for what need not outlive a reboot; see ``BridgeDriver``."""
    return [
        BridgeDriver(kernel, run, engine=engine, defaults=defaults),
        MacvlanDriver("macvlan", kernel, defaults),
        MacvlanDriver("ipvlan", kernel, defaults),
        PlainDriver("host"),
        PlainDriver("null"),
    ]


def networks(*, bridge: str, subnet: str) -> list[Network]:
    """Without ID and time. ``bridge`` is the device of the default bridge, ``subnet`` what it would like to have."""
    wanted = ipaddress.IPv4Network(subnet)
    given = {
        "com.docker.network.bridge.default_bridge": "true",
        "com.docker.network.bridge.enable_icc": "true",
        "com.docker.network.bridge.enable_ip_masquerade": "true",
        "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
        options.DEVICE: bridge,
        options.MTU: str(options.DEFAULT_MTU),
    }
    pool = Pool(Subnet=str(wanted), Gateway=str(wanted.network_address + 1))
    return [
        Network(ID="", Name="bridge", Driver="bridge", Created="", Options=given, Pools=[pool]),
        Network(ID="", Name="host", Driver="host", Created="", Settled=True),
        Network(ID="", Name="none", Driver="null", Created="", Settled=True),
    ]
