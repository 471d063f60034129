"""The cluster's networks for /networks, which the engine's and the cluster's share (features A11).

Source: moby ``daemon/cluster/networks.go``, ``daemon/cluster/convert/network.go``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

import grpc
import structlog

from api.swarm_routes.context import CONTROL_TIMEOUT_S, TIMEOUT_S
from base.times import rfc3339
from proto.control_pb2 import (
    CreateNetworkRequest,
    GetNetworkRequest,
    ListNetworksRequest,
    RemoveNetworkRequest,
)
from proto.objects_pb2 import Network
from proto.specs_pb2 import IPAMConfig, NetworkSpec
from runtime.network_types import IPAM, NetworkCreateRequest, NetworkResource
from runtime.network_types import IPAMConfig as APIConfig
from worker.membership.cluster_member import ClusterMember, MembershipError

if TYPE_CHECKING:
    from proto.control_pb2_grpc import ControlAsyncStub

log = structlog.get_logger(__name__)

SCOPE, OVERLAY = "swarm", "overlay"
LIST_TIMEOUT_S = 5.0
_STAYS = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
"""Of a network that is in use, or gone already."""


class SwarmNetworks:
    """What a manager says of the cluster's networks; of a host that runs none, nothing is there.

    What a manager refuses is raised as gRPC's error, which ``api.errors`` knows.
    """

    def __init__(self, member: ClusterMember) -> None:
        self._member = member

    async def all(self) -> list[NetworkResource] | None:
        """Each of them; None when no leader answers: those of the host are to be seen all the same, as in dockerd."""
        try:
            control = await self._member.wait_control(LIST_TIMEOUT_S)
            response = await control.ListNetworks(ListNetworksRequest(), timeout=LIST_TIMEOUT_S)
        except MembershipError:
            return None
        except grpc.aio.AioRpcError as error:
            log.warning("networks.not_listed", reason=error.details())
            return None
        return [resource(Network.FromString(each)) for each in response.networks]

    async def find(self, ref: str) -> NetworkResource | None:
        """By ID, name or unique ID prefix; None when there is none. Raises: BadRequestError: several match."""
        try:
            control = await self._control()
            response = await control.GetNetwork(GetNetworkRequest(ref=ref), timeout=TIMEOUT_S)
        except MembershipError:
            return None
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return resource(response.network)

    async def create(self, body: NetworkCreateRequest) -> str:
        """Make one; returns its ID. Raises: NotManagerError."""
        control = await self._control()
        response = await control.CreateNetwork(CreateNetworkRequest(spec=spec_of(body)), timeout=TIMEOUT_S)
        return response.network.id

    async def remove(self, network_id: str) -> None:
        """Raises: NotManagerError."""
        control = await self._control()
        await control.RemoveNetwork(RemoveNetworkRequest(ref=network_id), timeout=TIMEOUT_S)

    async def prune(self, networks: Iterable[NetworkResource]) -> list[str]:
        """Remove those of them that nothing uses, the routing mesh's never; returns their names."""
        candidates = [each for each in networks if not each.Ingress]
        outcomes = await asyncio.gather(*(self.remove(each.Id) for each in candidates), return_exceptions=True)
        gone = []
        for network, outcome in zip(candidates, outcomes, strict=True):
            if outcome is None:
                gone.append(network.Name)
            elif not isinstance(outcome, grpc.aio.AioRpcError):
                raise outcome
            elif outcome.code() not in _STAYS:  # what went before is told all the same
                log.warning("network.not_pruned", network=network.Name, reason=outcome.details())
        return gone

    async def _control(self) -> ControlAsyncStub:
        return await self._member.wait_control(CONTROL_TIMEOUT_S)


def spec_of(body: NetworkCreateRequest) -> NetworkSpec:
    """What is asked for, as managers take it."""
    spec = NetworkSpec(
        name=body.Name,
        labels=body.Labels,
        ipv6_enabled=bool(body.EnableIPv6),
        ipv4_disabled=body.EnableIPv4 is False,
        internal=body.Internal,
        attachable=body.Attachable,
        ingress=body.Ingress,
        config_from=body.ConfigFrom.Network if body.ConfigFrom is not None else "",
    )
    spec.driver_configuration.name = body.Driver
    spec.driver_configuration.options.update(body.Options)
    if body.IPAM is not None:
        spec.ipam_options.driver.name = body.IPAM.Driver
        spec.ipam_options.driver.options.update(body.IPAM.Options or {})
        for config in body.IPAM.Config or ():
            spec.ipam_options.configs.append(
                IPAMConfig(
                    subnet=config.Subnet,
                    range=config.IPRange,
                    gateway=config.Gateway,
                    auxiliary_addresses=config.AuxiliaryAddresses,
                )
            )
    return spec


def resource(network: Network) -> NetworkResource:
    """As it is shown."""
    spec = network.spec
    return NetworkResource(
        Name=spec.name,
        Id=network.id,
        Created=rfc3339(network.created_at.ToNanoseconds()),
        Scope=SCOPE,
        Driver=network.driver_state.name,
        EnableIPv4=not spec.ipv4_disabled,
        EnableIPv6=spec.ipv6_enabled,
        IPAM=IPAM(
            Driver=network.ipam.driver.name,
            Options=dict(network.ipam.driver.options) or None,
            Config=[
                APIConfig(
                    Subnet=config.subnet,
                    IPRange=config.range,
                    Gateway=config.gateway,
                    AuxiliaryAddresses=dict(config.auxiliary_addresses),
                )
                for config in network.ipam.configs
            ],
        ),
        Internal=spec.internal,
        Attachable=spec.attachable,
        Ingress=spec.ingress,
        Options=dict(network.driver_state.options),
        Labels=dict(spec.labels),
    )
