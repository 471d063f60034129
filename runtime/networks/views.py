"""How networks and endpoints are spelled in the Engine API. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime.networks.driver import Endpoint, Network
from runtime.networks.types import IPAM, IPAMConfig, NetworkContainer, NetworkResource
from runtime.types import EndpointSettings

KNOWN_FILTERS = {"driver", "id", "name", "scope", "type", "dangling", "label"}


def resource(network: Network, scope: str, users: Mapping[str, tuple[str, Endpoint]]) -> NetworkResource:
    """The answer of ``GET /networks/{id}``; ``users`` are name and endpoint by container ID."""
    return NetworkResource(
        Name=network.Name,
        Id=network.ID,
        Created=network.Created,
        Scope=scope,
        Driver=network.Driver,
        IPAM=IPAM(Config=[IPAMConfig(Subnet=pool.Subnet, Gateway=pool.Gateway) for pool in network.Pools]),
        Containers={
            container_id: NetworkContainer(
                Name=name,
                EndpointID=endpoint.ID,
                MacAddress=endpoint.MacAddress,
                IPv4Address=_text(endpoint.Addresses, 4),
                IPv6Address=_text(endpoint.Addresses, 6),
            )
            for container_id, (name, endpoint) in users.items()
            if endpoint.ID
        },
        Options=network.Options,
    )


def matches(network: NetworkResource, filters: Mapping[str, Sequence[str]], *, builtin: bool) -> bool:
    """Whether each filter fits by one of its values."""
    for key, values in filters.items():
        good = {
            "driver": network.Driver in values,
            "id": any(network.Id.startswith(value) for value in values),
            "name": any(value in network.Name for value in values),
            "scope": network.Scope in values,
            "type": ("builtin" if builtin else "custom") in values,
            "dangling": any(value.lower() in ("false", "0") for value in values),
            "label": False,
        }[key]
        if not good:
            return False
    return True


def endpoint_settings(asked: EndpointSettings, endpoint: Endpoint | None, network_id: str) -> EndpointSettings:
    """One of ``NetworkSettings.Networks``: the facts where there is an endpoint, else the request."""
    if endpoint is None or not endpoint.ID:
        return EndpointSettings(IPAMConfig=asked.IPAMConfig, Aliases=asked.Aliases, NetworkID=network_id)
    v4, _, v4_length = _text(endpoint.Addresses, 4).partition("/")
    v6, _, v6_length = _text(endpoint.Addresses, 6).partition("/")
    return EndpointSettings(
        IPAMConfig=asked.IPAMConfig,
        Aliases=endpoint.Aliases,
        DriverOpts=asked.DriverOpts,
        NetworkID=endpoint.NetworkID,
        EndpointID=endpoint.ID,
        Gateway=_text(endpoint.Gateways, 4),
        IPAddress=v4,
        MacAddress=endpoint.MacAddress,
        IPPrefixLen=int(v4_length or 0),
        IPv6Gateway=_text(endpoint.Gateways, 6),
        GlobalIPv6Address=v6,
        GlobalIPv6PrefixLen=int(v6_length or 0),
    )


def _text(addresses: Sequence[str], version: int) -> str:
    """The one of an address family, or "". Not parsed: a list of containers asks for each."""
    return next((text for text in addresses if (":" in text) == (version == 6)), "")
