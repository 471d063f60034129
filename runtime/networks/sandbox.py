"""What is decided about a container's networks taken together: pure."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Collection, Iterator, Mapping

from runtime.errors import InvalidParameterError
from runtime.kernel.network import IPAddress, IPInterface
from runtime.types import EndpointSettings

IFNAME_OPTION = "com.docker.network.endpoint.ifname"
SYSCTLS_OPTION = "com.docker.network.endpoint.sysctls"
INTERFACE_NAME_MAX = 15
"""Bytes of a device's name that the kernel takes (IFNAMSIZ, with the zero at its end)."""


def gateway_networks(
    wanted: Mapping[str, EndpointSettings], families: Mapping[str, Collection[int]]
) -> tuple[str, ...]:
    """The networks to get the default routes; the first of them gets the published ports. () when none has a way out.

    ``families`` are the address families (4, 6) in which each network leads out. The highest ``GwPriority`` comes first,
    among equals those with both families, then the first by name; the first with both has both routes, else there is one
    network for each (moby daemon/libnetwork, ``Endpoint.Less`` and ``selectGatewayEndpoint``).
    """
    out = [name for name in wanted if families.get(name)]
    ranked = sorted(out, key=lambda name: (-wanted[name].GwPriority, -len(families[name]), name))
    both = next((name for name in ranked if {4, 6} <= set(families[name])), None)
    if both is not None:
        return (both,)
    single = (next((name for name in ranked if family in families[name]), None) for family in (4, 6))
    return tuple(name for name in single if name is not None)


def interface_names(wanted: Mapping[str, EndpointSettings], taken: Collection[str] = ()) -> dict[str, str]:
    """Names of the devices inside a container by network, ``taken`` are there already.

    What the user chose (``IFNAME_OPTION``), else eth0, eth1, ... in order, the lowest number that is free. Raises
    InvalidParameterError when two are to have one name.
    """
    chosen = {name: ifname for name, each in wanted.items() if (ifname := (each.DriverOpts or {}).get(IFNAME_OPTION))}
    names = [*taken, *chosen.values()]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InvalidParameterError(f"interface name {min(twice)} is wanted for more than one network of the container")
    free = (made for made in _numbered() if made not in names)
    return {name: chosen.get(name) or next(free) for name in wanted}


def _numbered() -> Iterator[str]:
    return (f"eth{number}" for number in itertools.count())


def static_addresses(settings: EndpointSettings) -> list[IPAddress]:
    """What was asked for by name, link-local ones left out; ``settings`` are checked."""
    asked = settings.IPAMConfig
    return [ipaddress.ip_address(text) for text in ((asked.IPv4Address, asked.IPv6Address) if asked else ()) if text]


def link_local_addresses(settings: EndpointSettings) -> list[IPInterface]:
    """``LinkLocalIPs``, in their subnets; ``settings`` are checked."""
    asked = [ipaddress.ip_address(text) for text in (settings.IPAMConfig and settings.IPAMConfig.LinkLocalIPs) or ()]
    return [ipaddress.ip_interface(f"{each}/{16 if each.version == 4 else 64}") for each in asked]


def endpoint_sysctls(settings: EndpointSettings, interface: str) -> dict[str, str]:
    """Parameters of the interface, named by path below /proc/sys/net; ``settings`` are checked."""
    found = {}
    for entry in ((settings.DriverOpts or {}).get(SYSCTLS_OPTION) or "").split(","):
        if entry:
            name, _, value = entry.partition("=")
            _, family, kind, _, parameter = name.split(".", 4)
            found["/".join((family, kind, interface, parameter.replace(".", "/")))] = value
    return found
