"""Networks in Engine API spelling (moby api/types/network)."""

from __future__ import annotations

import msgspec


class IPAMConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One subnet of a network and the range in it, in CIDR form; addresses of others in it, by name."""

    Subnet: str = ""
    IPRange: str = ""
    Gateway: str = ""
    AuxiliaryAddresses: dict[str, str] = msgspec.field(default_factory=dict)


class IPAM(msgspec.Struct, frozen=True, kw_only=True):
    """Where the addresses come from."""

    Driver: str = "default"
    Options: dict[str, str] | None = None
    Config: list[IPAMConfig] | None = None


class ConfigReference(msgspec.Struct, frozen=True, kw_only=True):
    """The name of a network that is only a configuration."""

    Network: str = ""


class NetworkContainer(msgspec.Struct, frozen=True, kw_only=True):
    """A container on the network; addresses in CIDR form."""

    Name: str
    EndpointID: str
    MacAddress: str
    IPv4Address: str
    IPv6Address: str = ""


class NetworkResource(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``GET /networks/{id}``."""

    Name: str
    Id: str
    Created: str
    Scope: str = "local"
    Driver: str
    EnableIPv4: bool = True
    EnableIPv6: bool = False
    IPAM: IPAM = IPAM()
    Internal: bool = False
    Attachable: bool = False
    Ingress: bool = False
    ConfigFrom: ConfigReference = ConfigReference()
    ConfigOnly: bool = False
    Containers: dict[str, NetworkContainer] = msgspec.field(default_factory=dict)
    Options: dict[str, str] = msgspec.field(default_factory=dict)
    Labels: dict[str, str] = msgspec.field(default_factory=dict)


class NetworkCreateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /networks/create``."""

    Name: str = ""
    Driver: str = ""
    Scope: str = ""
    EnableIPv4: bool | None = None
    EnableIPv6: bool | None = None
    IPAM: IPAM | None = None
    Internal: bool = False
    Attachable: bool = False
    Ingress: bool = False
    ConfigOnly: bool = False
    ConfigFrom: ConfigReference | None = None
    Options: dict[str, str] = msgspec.field(default_factory=dict)
    Labels: dict[str, str] = msgspec.field(default_factory=dict)


class NetworkCreateResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to it."""

    Id: str
    Warning: str = ""


class NetworkPruneReport(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``POST /networks/prune``: names."""

    NetworksDeleted: list[str] | None = None
