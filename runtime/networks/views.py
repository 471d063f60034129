"""How networks and endpoints are spelled in the Engine API. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

import msgspec

from base.labels import has_labels
from base.times import moment_s
from runtime.errors import InvalidParameterError
from runtime.network_types import ConfigReference, IPAMConfig, NetworkContainer, NetworkResource
from runtime.networks.driver import ON_LINK, Endpoint, Network
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
        EnableIPv4=network.EnableIPv4,
        EnableIPv6=network.EnableIPv6,
        IPAM=msgspec.structs.replace(network.IPAM, Config=_ipam_config(network) or None),
        Internal=network.Internal,
        Attachable=network.Attachable,
        Ingress=network.Ingress,
        ConfigFrom=ConfigReference(Network=network.ConfigFrom),
        ConfigOnly=network.ConfigOnly,
        Containers={
            container_id: NetworkContainer(
                Name=name,
                EndpointID=endpoint.ID,
                MacAddress=endpoint.MacAddress,
                IPv4Address=_text(endpoint.Addresses, 4),
                IPv6Address=_text(endpoint.Addresses, 6),
            )
            for container_id, (name, endpoint) in users.items()
        },
        Options=network.Options,
        Labels=network.Labels,
    )


def _ipam_config(network: Network) -> list[IPAMConfig]:
    """What was asked for as it was asked, then the pools of address families that nothing was asked of."""
    asked = list(network.IPAM.Config or ())
    families = {":" in config.Subnet for config in asked}
    chosen = [
        IPAMConfig(Subnet=pool.Subnet, Gateway="" if pool.Gateway in ON_LINK else pool.Gateway)
        for pool in network.Pools
        if (":" in pool.Subnet) not in families
    ]
    return asked + chosen


class NetworkFilter:
    """``docker network ls --filter``, checked once and then asked for each network.

    Values of one key are alternatives, but every label must fit. Names and IDs fit by a part.

    Raises: InvalidParameterError.

    Source: moby ``daemon/network/filter.go``.
    """

    def __init__(self, filters: Mapping[str, Sequence[str]]) -> None:
        if unknown := set(filters) - KNOWN_FILTERS:
            raise InvalidParameterError(f"invalid filter '{min(unknown)}'")
        for value in filters.get("type", ()):
            if value not in ("builtin", "custom"):
                raise InvalidParameterError(f"invalid filter: 'type'='{value}'")
        if len(filters.get("dangling", ())) > 1:
            raise InvalidParameterError('got more than one value for filter key "dangling"')
        for value in filters.get("dangling", ()):
            if value not in ("0", "false", "1", "true"):
                raise InvalidParameterError(
                    'invalid value for filter \'dangling\', must be "true" (or "1"), or "false" (or "0")'
                )
        self._filters = filters

    def fits(self, network: NetworkResource, *, builtin: bool) -> bool:
        """Whether each filter does by one of its values; ``network`` has its containers."""
        return all(self._has(network, key, values, builtin=builtin) for key, values in self._filters.items())

    def _has(self, network: NetworkResource, key: str, values: Sequence[str], *, builtin: bool) -> bool:
        if key == "label":
            return has_labels(network.Labels, values)
        if key == "dangling":
            is_wanted = values[0] in ("1", "true")
            return is_wanted == (not builtin and not network.Containers)
        if key in ("id", "name"):
            text = network.Id if key == "id" else network.Name
            return any(_is_found(value, text) for value in values)
        return {"driver": network.Driver, "scope": network.Scope, "type": "builtin" if builtin else "custom"}[
            key
        ] in values


class PruneFilter:
    """``docker network prune --filter``. Raises: InvalidParameterError.

    Source: moby ``daemon/prune.go``.
    """

    def __init__(self, filters: Mapping[str, Sequence[str]], *, now_s: float) -> None:
        if unknown := set(filters) - {"label", "label!", "until"}:
            raise InvalidParameterError(f"invalid filter '{min(unknown)}'")
        values = filters.get("until", ())
        if len(values) > 1:
            raise InvalidParameterError("more than one until filter specified")
        try:
            self._until_s = moment_s(values[0], now_s) if values else float("inf")
        except ValueError:
            raise InvalidParameterError(f"invalid filter 'until={values[0]}'") from None
        self._wanted, self._spared = filters.get("label", ()), filters.get("label!", ())

    def takes(self, network: Network | NetworkResource) -> bool:
        """Whether it goes when nobody is on it."""
        if dt.datetime.fromisoformat(network.Created).timestamp() > self._until_s:
            return False
        spared = self._spared and has_labels(network.Labels, self._spared)
        return has_labels(network.Labels, self._wanted) and not spared


def _is_found(pattern: str, text: str) -> bool:
    """``^`` and ``$`` stand for the ends. Nothing else has a meaning: Python's patterns can take for ever, Go's cannot."""
    part = pattern.removeprefix("^").removesuffix("$")
    if pattern.startswith("^"):
        return text.startswith(part) and (not pattern.endswith("$") or text == part)
    return text.endswith(part) if pattern.endswith("$") else part in text


def endpoint_settings(asked: EndpointSettings, endpoint: Endpoint | None, network_id: str) -> EndpointSettings:
    """One of ``NetworkSettings.Networks``: the facts where there is an endpoint, else the request."""
    if endpoint is None:
        return msgspec.structs.replace(asked, NetworkID=network_id)
    v4, _, v4_length = _text(endpoint.Addresses, 4).partition("/")
    v6, _, v6_length = _text(endpoint.Addresses, 6).partition("/")
    return msgspec.structs.replace(
        asked,
        Aliases=endpoint.Aliases,
        NetworkID=endpoint.NetworkID,
        EndpointID=endpoint.ID,
        Gateway=_text([each for each in endpoint.Gateways if each not in ON_LINK], 4),
        IPAddress=v4,
        MacAddress=endpoint.MacAddress,
        IPPrefixLen=int(v4_length or 0),
        IPv6Gateway=_text([each for each in endpoint.Gateways if each not in ON_LINK], 6),
        GlobalIPv6Address=v6,
        GlobalIPv6PrefixLen=int(v6_length or 0),
    )


def _text(addresses: Sequence[str], version: int) -> str:
    """The one of an address family, or "". Not parsed: a list of containers asks for each."""
    return next((text for text in addresses if (":" in text) == (version == 6)), "")
