"""Networks of a Compose file to the API's (features A13.01, A13.11).

Source: docker/cli ``cli/compose/convert/compose.go`` (``Networks``), ``convert/service.go`` (``convertServiceNetworks``).
"""

from __future__ import annotations

from collections.abc import Mapping

from cli.client import Object
from cli.composefile.model import Network, Service
from cli.stack.names import Namespace

DEFAULT = "default"
"""The key of the network that services are on which name none; the file may describe it."""
DEFAULT_DRIVER = "overlay"
_PREDEFINED = frozenset({"default", "bridge", "host", "none"})


def is_predefined(name: str) -> bool:
    """Whether every node has a network of that name, which is none of the swarm's; nothing has aliases on it."""
    return name in _PREDEFINED


def network_name(namespace: Namespace, key: str, network: Network | None) -> str:
    """The name in the swarm of what the file calls ``key``; None is the default network, not described."""
    if network is not None and network.name is not None:
        return network.name
    return key if network is not None and network.external else namespace.scoped(key)


def network_body(namespace: Namespace, name: str, network: Network | None) -> Object:
    """What is asked of /networks/create."""
    body: Object = {"Name": name, "Driver": DEFAULT_DRIVER, "Labels": namespace.labelled({})}
    if network is None:
        return body
    body |= {
        "Driver": network.driver or DEFAULT_DRIVER,
        "Options": dict(network.driver_opts),
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Labels": namespace.labelled(network.labels),
    }
    if network.ipam_driver or network.subnets:
        body["IPAM"] = {"Driver": network.ipam_driver, "Config": [{"Subnet": subnet} for subnet in network.subnets]}
    return body


def attachments(namespace: Namespace, key: str, service: Service, networks: Mapping[str, Network]) -> list[Object]:
    """``Networks`` of the service ``key``, by target: it is called so on each of them, beside its aliases.

    Args:
        networks: the file's, by key.

    Raises:
        ManifestError: a network that the file does not describe, or two ways to say what the service is on.
    """
    mode, place = service.network_mode, service.at.inner("network_mode")
    if mode is not None:
        if service.networks:
            raise place.error("conflicts with networks")
        if mode not in ("bridge", "host", "none"):
            raise place.error(f"{mode[:40]} is not served: want bridge, host or none")
        return [] if mode == "bridge" else [{"Target": mode}]
    if not service.networks:
        return [_attachment(network_name(namespace, DEFAULT, networks.get(DEFAULT)), key)]
    made = []
    for reference in service.networks:
        if reference.source not in networks and reference.source != DEFAULT:
            raise reference.at.error(f'undefined network "{reference.source}"')
        name = network_name(namespace, reference.source, networks.get(reference.source))
        made.append(_attachment(name, key, *reference.aliases) | _options(reference.driver_opts))
    return sorted(made, key=lambda one: str(one["Target"]))


def _attachment(target: str, key: str, *aliases: str) -> Object:
    names = [*aliases] if is_predefined(target) else [*aliases, key]
    return {"Target": target, **({"Aliases": names} if names else {})}


def _options(driver_opts: Mapping[str, str]) -> Object:
    return {"DriverOpts": dict(driver_opts)} if driver_opts else {}
