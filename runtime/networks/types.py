"""Networks in Engine API spelling (moby api/types/network)."""

from __future__ import annotations

import msgspec


class IPAMConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One subnet of a network, in CIDR form."""

    Subnet: str = ""
    IPRange: str = ""
    Gateway: str = ""


class IPAM(msgspec.Struct, frozen=True, kw_only=True):
    """Where the addresses come from."""

    Driver: str = "default"
    Options: dict[str, str] | None = None
    Config: list[IPAMConfig] = msgspec.field(default_factory=list)


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
    ConfigFrom: dict[str, str] = msgspec.field(default_factory=lambda: {"Network": ""})
    ConfigOnly: bool = False
    Containers: dict[str, NetworkContainer] = msgspec.field(default_factory=dict)
    Options: dict[str, str] = msgspec.field(default_factory=dict)
    Labels: dict[str, str] = msgspec.field(default_factory=dict)
