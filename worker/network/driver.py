"""The driver of overlay networks: what the engine sees of the data plane.

Which network there is and who has which address is decided by the cluster: a network comes with its number and subnets, an
endpoint with its addresses. An endpoint has no way out here; the engine gives its container one by ``WAY_OUT``.

The namespace of a container is kept by a bind mount while it has an endpoint, so that a daemon started later finds it
without trusting a process ID, and gets at the rules in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from base.numbers import natural
from runtime.errors import HostError, InvalidParameterError, UnavailableError
from runtime.kernel.network import AddAddress, AddRoute, Change, IPAddress, KernelNetwork, SetUp
from runtime.network_types import NetworkCreateRequest
from runtime.networks.driver import Endpoint, EndpointRequest, Network
from runtime.networks.ports import PortRequest
from worker.network.overlays import Overlays
from worker.network.types import LocalEndpoint, NetworkID, OverlayNetwork, Subnet

VNI_OPTION = "com.docker.network.driver.overlay.vxlanid_list"
MTU_OPTION = "com.docker.network.driver.mtu"
VNI_MAX = (1 << 24) - 1
WAY_OUT = NetworkCreateRequest(
    Name="docker_gwbridge",
    Driver="bridge",
    Options={
        "com.docker.network.bridge.name": "docker_gwbridge",
        "com.docker.network.bridge.enable_icc": "false",
        "com.docker.network.bridge.enable_ip_masquerade": "true",
    },
)
"""The bridge by which containers on overlays reach the world, and are reached through the mesh and on ports of the host.

Its containers do not reach each other by it, or networks would be no border on one node. A user may make it before.
"""


class OverlayDriver:
    """See ``Driver``.

    Args:
        run: namespaces of containers are kept below it, in ``sandboxes``.
    """

    name = "overlay"
    scope: Literal["swarm"] = "swarm"
    routes = False

    def __init__(self, kernel: KernelNetwork, overlays: Overlays, run: Path) -> None:
        self._kernel, self._overlays, self._folder = kernel, overlays, run / "sandboxes"
        self._taken: dict[str, dict[IPAddress, str]] = {}
        """Endpoint by address, by network."""

    async def settle(self, network: Network, others: Sequence[Network] = ()) -> Network:
        """It is settled by the cluster. Raises InvalidParameterError for one that is not."""
        overlay_of(network)
        return msgspec.structs.replace(network, Settled=True)

    async def create(self, network: Network) -> None:
        """No device: they come with the first endpoint."""
        self._overlays.set_network(overlay_of(network))

    async def remove(self, network: Network) -> None:
        self._overlays.forget_network(NetworkID(network.ID))
        self._taken.pop(network.ID, None)

    async def reserve(self, network: Network, request: EndpointRequest) -> Endpoint:
        if request.ports:
            raise InvalidParameterError(f"network {network.Name} cannot publish ports: an overlay has no way out")
        overlay, asked = overlay_of(network), request.settings.IPAMConfig
        texts = [text for text in ((asked.IPv4Address, asked.IPv6Address) if asked else ()) if text]
        if not texts:
            raise UnavailableError(f"network {network.Name}: the cluster has given this container no address")
        interfaces = [_interface(overlay, network.Name, text) for text in texts]
        endpoint_id = secrets.token_hex(32)
        taken = self._taken.setdefault(network.ID, {})
        for interface in interfaces:
            if interface.ip in taken:
                raise UnavailableError(f"Address already in use: {interface.ip}")
        taken.update(dict.fromkeys((each.ip for each in interfaces), endpoint_id))
        made = Endpoint(
            NetworkID=network.ID,
            ID=endpoint_id,
            Interface=request.interface,
            Link=f"veth{endpoint_id[:7]}",
            Addresses=[str(each) for each in interfaces],
            Aliases=request.settings.Aliases,
        )
        return msgspec.structs.replace(made, MacAddress=self._local(made).mac)

    async def attach(self, network: Network, endpoint: Endpoint, namespace: str, *, default_route: bool) -> None:
        local = self._local(endpoint)
        try:
            await self._kernel.keep_namespace(local.sandbox, namespace)
        except OSError as error:
            raise HostError(f"failed to set up container networking: {error}") from error
        try:
            await self._overlays.join(NetworkID(network.ID), local, _inside(overlay_of(network), endpoint))
        except BaseException:
            with contextlib.suppress(OSError, HostError):
                await self._kernel.drop_namespace(local.sandbox)
            raise

    async def publish(self, network: Network, endpoint: Endpoint, ports: Sequence[PortRequest]) -> Endpoint:
        if ports:
            raise InvalidParameterError(f"network {network.Name} cannot publish ports: an overlay has no way out")
        return endpoint

    async def detach(self, network: Network, endpoint: Endpoint, namespace: str) -> None:
        await self._leave(network, endpoint)

    async def _leave(self, network: Network, endpoint: Endpoint) -> None:
        local = self._local(endpoint)
        try:
            await self._overlays.leave(NetworkID(network.ID), local)
            await self._kernel.drop_namespace(local.sandbox)
        except OSError as error:
            raise HostError(f"cannot take {endpoint.Interface} off network {network.Name}: {error}") from error

    async def release(self, network: Network, endpoint: Endpoint) -> None:
        await self._leave(network, endpoint)
        taken = self._taken.get(network.ID, {})
        for interface in endpoint.interfaces():
            if taken.get(interface.ip) == endpoint.ID:
                del taken[interface.ip]

    def adopt(self, network: Network, endpoint: Endpoint) -> None:
        taken = self._taken.setdefault(network.ID, {})
        taken.update(dict.fromkeys((each.ip for each in endpoint.interfaces()), endpoint.ID))
        self._overlays.adopt(NetworkID(network.ID), self._local(endpoint))

    async def reconcile(self, network: Network, endpoints: Sequence[Endpoint]) -> None:
        """Have what was adopted looked after; what nobody uses is ``tidy``'s."""
        await self.create(network)

    async def tidy(self) -> None:
        """After a restart, with every network reconciled: what is of no network and no container any more goes.

        Raises OSError, HostError.
        """
        await self._overlays.tidy()
        local = [each for endpoints in self._overlays.networks_in_use().values() for each in endpoints]
        used = {Path(each.sandbox).name for each in local}
        names = await asyncio.to_thread(lambda: [each.name for each in self._folder.glob("*")])
        for name in set(names) - used:
            await self._kernel.drop_namespace(str(self._folder / name))

    def close(self) -> None:
        """Nothing is held; the data plane is its owner's to close."""

    def _local(self, endpoint: Endpoint) -> LocalEndpoint:
        return LocalEndpoint(
            id=endpoint.ID,
            addresses=tuple(each.ip for each in endpoint.interfaces()),
            link=endpoint.Link,
            interface=endpoint.Interface,
            sandbox=str(self._folder / endpoint.ID[:12]),
        )


def overlay_of(network: Network) -> OverlayNetwork:
    """A network of the engine's as the data plane is told of it. Raises InvalidParameterError."""
    text = network.Options.get(VNI_OPTION, "").partition(",")[0]
    vni = natural(text, largest=VNI_MAX)
    if not vni:
        raise InvalidParameterError(f"network {network.Name}: no valid VXLAN number in {VNI_OPTION}: {text[:100]!r}")
    mtu = natural(network.Options.get(MTU_OPTION) or "0", largest=65535)
    if mtu is None or 0 < mtu < 68:
        raise InvalidParameterError(f"invalid MTU number: {network.Options[MTU_OPTION][:100]}")
    subnets = []
    for pool in network.Pools:
        subnet = ipaddress.ip_network(pool.Subnet)
        subnets.append(Subnet(subnet, ipaddress.ip_address(pool.Gateway) if pool.Gateway else subnet[1]))
    if not subnets:
        raise InvalidParameterError(f"network {network.Name} has no subnet")
    return OverlayNetwork(
        id=NetworkID(network.ID),
        vni=vni,
        subnets=tuple(subnets),
        mtu=mtu,
        internal=network.Internal,
        encrypted=network.Options.get("encrypted", "false").lower() not in ("false", "0"),
        options=network.Options,
    )


def _interface(overlay: OverlayNetwork, name: str, text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidParameterError(f"invalid IP address: {text[:100]!r}") from None
    for subnet in overlay.subnets:
        if address in subnet.network:
            return ipaddress.ip_interface(f"{address}/{subnet.network.prefixlen}")
    raise InvalidParameterError(f"no configured subnet of network {name} contains IP address {address}")


def _inside(overlay: OverlayNetwork, endpoint: Endpoint) -> list[Change]:
    """The interface up, with its addresses, and the way to the other subnets of the network, which are on the same link."""
    own = {each.network for each in endpoint.interfaces()}
    versions = {each.version for each in own}
    others = [each.network for each in overlay.subnets if each.network not in own and each.network.version in versions]
    return [
        SetUp(endpoint.Interface),
        *(AddAddress(endpoint.Interface, each) for each in endpoint.interfaces()),
        *(AddRoute(each, endpoint.Interface) for each in others),
    ]
