"""The bridge driver: a bridge device a network, with addresses, masquerade and published ports.

A container's link is a veth pair whose far end is born inside the container's own namespace, reached by its init's
/proc/PID/ns/net between ``create`` and ``start``: no namespace file to bind and to clean, and the kernel takes the pair
away with the namespace. The near end is named after the endpoint's ID. Which address belongs to whom is kept in the
containers' records alone; it comes back by ``adopt`` after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from base.files import read_text
from base.tasks import OwnedTasks
from runtime.errors import ForbiddenError, HostError, InvalidParameterError
from runtime.kernel.network import (
    AddAddress,
    AddBridge,
    AddPort,
    AddVeth,
    Batch,
    DeleteLink,
    FlowsTo,
    KernelNetwork,
    SetReflecting,
    SetUp,
)
from runtime.networks import options, pools
from runtime.networks.addresses import IPNetwork, mac_for, parse_mac
from runtime.networks.bridge_network import (
    BridgeNetwork,
    check_pools,
    closed_sysctls,
    gateway_interfaces,
    interface_changes,
    interface_name,
    mac_of,
    sysctls,
    wish_or_next,
)
from runtime.networks.driver import Endpoint, EndpointRequest, Network
from runtime.networks.firewall import Firewall
from runtime.networks.pools import DefaultPool
from runtime.networks.ports import PortRequest
from runtime.networks.rules import PublishedPort

log = structlog.get_logger(__name__)

_LINK = re.compile(r"veth[0-9a-f]{7}")


class BridgeDriver:
    """See ``Driver``.

    Args:
        run: a folder that goes with a reboot.
        engine: its name among those of this network namespace.
        defaults: where subnets come from that nobody asked for.
        resolv_conf: of the host: subnets that nobody asked for are around its nameservers.
    """

    name = "bridge"
    scope: Literal["local"] = "local"
    routes = True

    def __init__(
        self,
        kernel: KernelNetwork,
        run: Path,
        *,
        engine: str = "swarm0",
        defaults: Sequence[DefaultPool] = pools.DEFAULT_POOLS,
        resolv_conf: Path = Path("/etc/resolv.conf"),
    ) -> None:
        self._kernel, self._defaults, self._resolv_conf = kernel, defaults, resolv_conf
        self._firewall = Firewall(kernel, engine, run)
        self._bridges: dict[str, BridgeNetwork] = {}
        self._tasks = OwnedTasks()
        self._end_watch: Callable[[], None] | None = None

    async def settle(self, network: Network, others: Sequence[Network] = ()) -> Network:
        """Pools as asked for or of the default ones, around what the host uses, and which device."""
        if network.Settled:
            return network
        asked = options.parse(network)
        device = asked.device
        try:
            links, routes = await self._kernel.links(), await self._kernel.routes()
        except OSError as error:
            raise HostError(f"cannot make bridge {device}: {error}") from error
        if device in links and links[device].kind != "bridge":
            raise InvalidParameterError(f"existing interface {device} is not a bridge")
        for other in others:
            if other.Driver == self.name and other.Settled and options.parse(other).device == device:
                raise ForbiddenError(
                    f"cannot create network {network.ID} ({device}): conflicts with network {other.ID} ({device}): "
                    "networks have same bridge name"
                )
        taken = [ipaddress.ip_network(pool.Subnet) for other in others for pool in other.Pools]
        avoid: list[IPNetwork] = [route.destination for route in routes if route.on_link and route.link != device]
        resolv_conf = await asyncio.to_thread(read_text, self._resolv_conf)
        avoid += pools.nameservers(resolv_conf or "")
        if network.Pools:  # wishes
            chosen = [wish_or_next(pool, [*taken, *avoid], self._defaults) for pool in network.Pools]
        else:
            without = asked.versions_without_gateway(internal=network.Internal)
            chosen = pools.choose(
                network, taken=taken, avoid=avoid, defaults=self._defaults, versions_without_gateway=without
            )
            check_pools(network, chosen)
        found = device in links and not network.Pools
        return msgspec.structs.replace(network, Pools=chosen, Settled=True, DeviceFound=found)

    async def create(self, network: Network) -> None:
        """The bridge with its addresses, forwarding and rules."""
        bridge = self._bridge(network)
        async with bridge.lock:
            if bridge.made:
                return
            try:
                await self._make_device(bridge)
                await self._firewall.add(bridge.rules)
            except OSError as error:
                raise HostError(f"cannot make bridge {bridge.device}: {error}") from error
            bridge.made = True
            self._watch_links()
            log.info("bridge.created", device=bridge.device, subnets=[str(pool.subnet) for pool in bridge.pools])

    async def remove(self, network: Network) -> None:
        bridge = self._bridges.pop(network.ID, None) or BridgeNetwork(network)
        bridge.claims.close()
        async with bridge.lock:  # nobody makes it meanwhile
            bridge.made = False
            try:
                if not network.DeviceFound:
                    await self._kernel.apply(Batch((DeleteLink(bridge.device),)))
                await self._firewall.remove(bridge.rules)
            except OSError as error:
                raise HostError(f"cannot remove bridge {bridge.device}: {error}") from error

    async def reserve(self, network: Network, request: EndpointRequest) -> Endpoint:
        bridge, settings = self._bridge(network), request.settings
        endpoint_id = secrets.token_hex(32)
        mac = parse_mac(settings.MacAddress) if settings.MacAddress else ""
        addresses = bridge.allocate(settings, request.avoid)
        try:
            ports = bridge.claim(endpoint_id, request.ports, addresses)
        except BaseException:
            bridge.give_back(addresses)
            raise
        return Endpoint(
            NetworkID=network.ID,
            ID=endpoint_id,
            Interface=interface_name(request.interface, bridge.options.interface_prefix),
            Link=f"veth{endpoint_id[:7]}",
            Addresses=[f"{each}/{pool.subnet.prefixlen}" for each, pool in zip(addresses, bridge.pools, strict=True)],
            Gateways=[gateway for gateway in bridge.gateways if gateway and not bridge.internal],
            MacAddress=mac or mac_for(addresses[0]),
            Aliases=settings.Aliases,
            Ports=ports,
        )

    async def attach(self, network: Network, endpoint: Endpoint, namespace: str, *, default_route: bool) -> None:
        bridge = self._bridge(network)
        pair = AddVeth(endpoint.Link, bridge.device, bridge.mtu, endpoint.Interface, endpoint.MacAddress, namespace)
        here = Batch((pair, SetReflecting(endpoint.Link, isolated=not bridge.options.icc)))
        inside = Batch(interface_changes(endpoint, default_route=default_route), namespace)
        try:
            if any(address.version == 6 for address in endpoint.interfaces()):
                await self._kernel.apply(here)
                await self._kernel.set_sysctls({f"ipv6/conf/{endpoint.Interface}/disable_ipv6": "0"}, namespace)
                await self._kernel.apply(inside)
            else:
                await self._kernel.apply(here, inside)
            bridge.links.add(endpoint.Link)
            if endpoint.Ports:
                await self._firewall.publish(bridge.rules, endpoint.ID, endpoint.Ports)
                await self._forget_flows(endpoint)
        except (OSError, HostError) as error:
            with contextlib.suppress(OSError, HostError):  # else the kernel does, with the namespace
                await self.detach(network, endpoint, namespace)
            if isinstance(error, HostError):
                raise
            raise HostError(f"failed to set up container networking: {error}") from error

    async def publish(self, network: Network, endpoint: Endpoint, ports: Sequence[PortRequest]) -> Endpoint:
        bridge = self._bridge(network)
        bridge.claims.release(endpoint.ID)
        claimed: list[PublishedPort] = []
        try:
            claimed = bridge.claim(endpoint.ID, ports, [each.ip for each in endpoint.interfaces()])
        finally:
            try:
                await self._firewall.publish(bridge.rules, endpoint.ID, claimed)
            except HostError:
                bridge.claims.release(endpoint.ID)
                raise
        changed = msgspec.structs.replace(endpoint, Ports=claimed)
        for each in (endpoint, changed):
            await self._forget_flows(each)
        return changed

    async def detach(self, network: Network, endpoint: Endpoint, namespace: str) -> None:
        try:
            await self._kernel.apply(Batch((DeleteLink(endpoint.Link),)))
        except OSError as error:
            raise HostError(f"cannot remove link {endpoint.Link}: {error}") from error

    async def release(self, network: Network, endpoint: Endpoint) -> None:
        bridge = self._bridge(network)
        bridge.links.discard(endpoint.Link)
        bridge.claims.release(endpoint.ID)
        await self._firewall.publish(bridge.rules, endpoint.ID, ())
        await self._forget_flows(endpoint)
        # Last: what failed is tried again, and an address given back before may be another's by then.
        bridge.give_back([interface.ip for interface in endpoint.interfaces()])

    def adopt(self, network: Network, endpoint: Endpoint) -> None:
        bridge = self._bridge(network)
        for pool in bridge.pools:
            for interface in endpoint.interfaces():
                pool.adopt(interface.ip)
        bridge.links.add(endpoint.Link)
        self._firewall.note(bridge.rules, endpoint.ID, endpoint.Ports)
        if endpoint.Ports:
            bridge.claims.adopt(endpoint.ID, endpoint.Ports)

    async def reconcile(self, network: Network, endpoints: Sequence[Endpoint]) -> None:
        """No link of nobody, and the rules as they should be. Nothing when the bridge is not there and not needed."""
        bridge = self._bridge(network)
        wanted = {endpoint.Link for endpoint in endpoints}
        try:
            links = await self._kernel.links()
            strangers = [
                name
                for name, link in links.items()
                if link.bridge == bridge.device and _LINK.fullmatch(name) and name not in wanted
            ]
            if strangers:
                await self._kernel.apply(Batch(tuple(DeleteLink(name) for name in strangers)))
                log.info("links.removed", count=len(strangers))
        except OSError as error:
            raise HostError(f"cannot tidy bridge {bridge.device}: {error}") from error
        # Rules of containers that ended meanwhile would lead their ports to nobody.
        if bridge.device in links or endpoints:
            await self.create(network)
            await self._put_back_links(bridge)

    def close(self) -> None:
        if self._end_watch:
            self._end_watch()
            self._end_watch = None
        self._firewall.close()
        for bridge in self._bridges.values():
            bridge.claims.close()

    def _bridge(self, network: Network) -> BridgeNetwork:
        bridge = self._bridges.get(network.ID)
        if bridge is None:
            bridge = self._bridges[network.ID] = BridgeNetwork(network)
        return bridge

    async def _make_device(self, bridge: BridgeNetwork) -> None:
        """With its addresses; there already is fine. Raises OSError."""
        gateways = gateway_interfaces(bridge.network, bridge.options)
        mac = mac_for(gateways[0].ip) if gateways else mac_of(bridge.network)
        await self._kernel.apply(Batch((AddBridge(bridge.device, mac),)))
        await self._kernel.set_sysctls(sysctls(bridge))
        with contextlib.suppress(OSError):  # of a kernel without IPv6
            await self._kernel.set_sysctls(closed_sysctls(bridge))
        addresses = [AddAddress(bridge.device, gateway) for gateway in gateways]
        await self._kernel.apply(Batch((*addresses, SetUp(bridge.device))))

    async def _put_back_links(self, bridge: BridgeNetwork) -> None:
        """Those that are there and not on the bridge, since it was away. Raises HostError."""
        try:
            links = await self._kernel.links()
            lost = [name for name in sorted(bridge.links) if name in links and links[name].bridge != bridge.device]
            isolated = not bridge.options.icc
            changes = [each for name in lost for each in (AddPort(name, bridge.device), SetReflecting(name, isolated))]
            if changes:
                await self._kernel.apply(Batch(tuple(changes)))
                log.warning("links.restored", device=bridge.device, count=len(lost))
        except OSError as error:
            raise HostError(f"cannot put links back on bridge {bridge.device}: {error}") from error

    def _watch_links(self) -> None:
        """A bridge that somebody deletes is made again, with what was on it."""
        if self._end_watch is None:
            try:
                self._end_watch = self._kernel.watch_links(self._link_gone)
            except OSError as error:
                log.warning("links.unwatched", error=str(error))

    def _link_gone(self, name: str) -> None:
        for bridge in self._bridges.values():
            if bridge.made and name in (bridge.device, ""):
                self._tasks.spawn(self._restore(bridge), name=f"bridge {bridge.device}")

    async def _restore(self, bridge: BridgeNetwork) -> None:
        async with bridge.lock:
            try:
                if not bridge.made or bridge.device in await self._kernel.links():
                    return
                await self._make_device(bridge)
                await self._put_back_links(bridge)
                log.warning("bridge.restored", device=bridge.device)
            except (OSError, HostError) as error:
                bridge.made = False  # the next container on it tries again
                log.error("bridge.not_restored", device=bridge.device, reason=str(error))

    async def _forget_flows(self, endpoint: Endpoint) -> None:
        """Once its ports lead elsewhere than before.

        A peer that goes on sending from one port goes on to be led where its first packet was: to a container that has
        ended, or to the host itself. TCP finds out by itself, as the other end answers with a reset.
        """
        flows = [
            FlowsTo(each.protocol, each.host_ip, each.host_port)
            for each in endpoint.Ports
            if each.protocol != "tcp" and each.host_port
        ]
        if flows:
            try:
                await self._kernel.forget_flows(flows)
            except OSError as error:
                log.warning("flows.kept", endpoint=endpoint.ID, error=str(error))
