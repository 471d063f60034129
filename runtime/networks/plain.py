"""Networks that make nothing: "host" shares the host's namespace, "none" leaves a container its loopback device.

The namespace itself is the OCI spec's affair. ``container:ID``, another container's namespace, is no network at all.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Literal

import msgspec

from runtime.errors import ForbiddenError
from runtime.networks.driver import Endpoint, EndpointRequest, Network
from runtime.networks.ports import PortRequest


class PlainDriver:
    """See ``Driver``; ``name`` is "host" or "null"."""

    scope: Literal["local"] = "local"
    routes = False

    def __init__(self, name: str) -> None:
        self.name = name

    async def settle(self, network: Network, others: Sequence[Network] = ()) -> Network:
        if any(other.Driver == self.name and other.ID != network.ID for other in others):
            raise ForbiddenError(f'only one instance of "{self.name}" network is allowed')
        return msgspec.structs.replace(network, Settled=True)

    async def create(self, network: Network) -> None:
        pass

    async def remove(self, network: Network) -> None:
        pass

    async def reserve(self, network: Network, request: EndpointRequest) -> Endpoint:
        return Endpoint(NetworkID=network.ID, ID=secrets.token_hex(32), Aliases=request.settings.Aliases)

    async def attach(self, network: Network, endpoint: Endpoint, namespace: str, *, default_route: bool) -> None:
        pass

    async def publish(self, network: Network, endpoint: Endpoint, ports: Sequence[PortRequest]) -> Endpoint:
        return endpoint

    async def detach(self, network: Network, endpoint: Endpoint, namespace: str) -> None:
        pass

    async def release(self, network: Network, endpoint: Endpoint) -> None:
        pass

    def adopt(self, network: Network, endpoint: Endpoint) -> None:
        pass

    async def reconcile(self, network: Network, endpoints: Sequence[Endpoint]) -> None:
        pass

    def close(self) -> None:
        pass
