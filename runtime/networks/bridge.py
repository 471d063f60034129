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
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from base.tasks import OwnedTasks
from runtime.errors import HostError
from runtime.kernel.network import (
    AddAddress,
    AddBridge,
    AddDefaultRoute,
    AddVeth,
    Batch,
    Change,
    DeleteLink,
    FlowsTo,
    IPAddress,
    KernelNetwork,
    SetUp,
)
from runtime.networks import rules
from runtime.networks.addresses import AddressPool, choose_subnet, mac_for, parse_mac
from runtime.networks.driver import Endpoint, EndpointRequest, Network, Pool
from runtime.networks.forwarding import Forwarding
from runtime.networks.ports import PortClaims, PortRequest
from runtime.types import EndpointSettings

log = structlog.get_logger(__name__)

DEVICE_OPTION = "com.docker.network.bridge.name"
MTU_OPTION = "com.docker.network.driver.mtu"
MTU = 1500
MEND_DELAY_S = 0.1
_LINK = re.compile(r"veth[0-9a-f]{7}")


class _Bridge:
    """What is handed out on one network, and whether its device is made."""

    def __init__(self, network: Network) -> None:
        self.device = network.Options[DEVICE_OPTION]
        self.mtu = int(network.Options.get(MTU_OPTION, MTU))
        self.pools: list[AddressPool] = []
        self.claims = PortClaims()
        self.made = False
        self.stale = False
        """Whether the kernel has rules of ports that were given back."""
        self.lock = asyncio.Lock()

    @property
    def table(self) -> str:
        return f"ip {rules.table_name(self.device)}"

    def ruleset(self) -> str:
        return rules.ruleset(self.device, self.pools[0].subnet, self.claims.all())

    def allocate(self, settings: EndpointSettings, avoid: Collection[IPAddress]) -> list[ipaddress.IPv4Address]:
        """One address a pool, all or none. Raises UnavailableError, InvalidParameterError."""
        wanted = settings.IPAMConfig.IPv4Address if settings.IPAMConfig else ""
        found: list[ipaddress.IPv4Address] = []
        for pool in self.pools:
            try:
                found.append(pool.allocate(wanted, avoid))
            except BaseException:
                self.give_back(found)
                raise
        return found

    def give_back(self, addresses: Sequence[IPAddress]) -> None:
        """Idempotent."""
        for pool in self.pools:
            for address in addresses:
                pool.release(address)


class BridgeDriver:
    """See ``Driver``. The device's name is an option of the network (``DEVICE_OPTION``); ``run`` goes with a reboot."""

    name = "bridge"
    scope: Literal["local"] = "local"
    routes = True

    def __init__(self, kernel: KernelNetwork, run: Path) -> None:
        self._kernel = kernel
        self._forwarding = Forwarding(kernel, run / "forwarding")
        self._bridges: dict[str, _Bridge] = {}
        self._tasks = OwnedTasks()
        self._mending: asyncio.Task[None] | None = None
        self._end_watch: Callable[[], None] | None = None

    async def settle(self, network: Network) -> Network:
        """The wanted subnets, or for one that the host routes already the next free private one."""
        device = network.Options[DEVICE_OPTION]
        try:
            routes = await self._kernel.routes()
        except OSError as error:
            raise HostError(f"cannot make bridge {device}: {error}") from error
        used = [route.destination for route in routes if route.link != device]
        pools = []
        for pool in network.Pools:
            subnet = choose_subnet(ipaddress.IPv4Network(pool.Subnet), used)
            pools.append(Pool(Subnet=str(subnet), Gateway=str(AddressPool(subnet).gateway)))
        return msgspec.structs.replace(network, Pools=pools, Settled=True)

    async def create(self, network: Network) -> None:
        """The bridge with its addresses, forwarding and rules."""
        bridge = self._bridge(network)
        async with bridge.lock:
            if bridge.made:
                return
            try:
                await self._kernel.apply(Batch(_device_changes(bridge)))
                # Rules first: at no moment does the host forward without them.
                await self._kernel.run_rules(bridge.ruleset() + await self._forwarding.commands_for(bridge.device))
                await self._kernel.set_sysctls({f"ipv4/conf/{bridge.device}/route_localnet": "1"})
                await self._forwarding.switch_on()
            except OSError as error:
                raise HostError(f"cannot make bridge {bridge.device}: {error}") from error
            bridge.made = True
            self._watch_rules()
            log.info("bridge.created", device=bridge.device, subnets=[str(pool.subnet) for pool in bridge.pools])

    async def remove(self, network: Network) -> None:
        bridge = self._bridges.pop(network.ID, None) or _Bridge(network)
        bridge.claims.close()
        async with bridge.lock:  # nobody puts its rules back meanwhile
            bridge.made = False
            try:
                await self._kernel.apply(Batch((DeleteLink(bridge.device),)))
                await self._forwarding.leave(bridge.device)
            except OSError as error:
                raise HostError(f"cannot remove bridge {bridge.device}: {error}") from error
            await self._kernel.run_rules(f"add table {bridge.table}\ndelete table {bridge.table}\n")

    async def reserve(self, network: Network, request: EndpointRequest) -> Endpoint:
        bridge, settings = self._bridge(network), request.settings
        endpoint_id = secrets.token_hex(32)
        mac = parse_mac(settings.MacAddress) if settings.MacAddress else ""
        addresses = bridge.allocate(settings, request.avoid)
        try:
            ports = bridge.claims.claim(endpoint_id, request.ports, str(addresses[0]))
        except BaseException:
            bridge.give_back(addresses)
            raise
        return Endpoint(
            NetworkID=network.ID,
            ID=endpoint_id,
            Interface=request.interface,
            Link=f"veth{endpoint_id[:7]}",
            Addresses=[f"{each}/{pool.subnet.prefixlen}" for each, pool in zip(addresses, bridge.pools, strict=True)],
            Gateways=[str(pool.gateway) for pool in bridge.pools],
            MacAddress=mac or mac_for(addresses[0]),
            Aliases=settings.Aliases,
            Ports=ports,
        )

    async def attach(self, network: Network, endpoint: Endpoint, namespace: str, *, default_route: bool) -> None:
        bridge = self._bridge(network)
        pair = AddVeth(endpoint.Link, bridge.device, bridge.mtu, endpoint.Interface, endpoint.MacAddress, namespace)
        inside = Batch(_interface_changes(endpoint, default_route=default_route), namespace)
        try:
            await self._kernel.apply(Batch((pair,)), inside)
            if endpoint.Ports:
                await self._apply_rules(bridge)
                await self._forget_flows(endpoint)
        except (OSError, HostError) as error:
            with contextlib.suppress(OSError, HostError):  # else the kernel does, with the namespace
                await self.detach(network, endpoint)
            if isinstance(error, HostError):
                raise
            raise HostError(f"failed to set up container networking: {error}") from error

    async def publish(self, network: Network, endpoint: Endpoint, ports: Sequence[PortRequest]) -> Endpoint:
        bridge = self._bridge(network)
        bridge.stale |= bridge.claims.release(endpoint.ID)
        try:
            claimed = bridge.claims.claim(endpoint.ID, ports, str(endpoint.interfaces()[0].ip))
            bridge.stale |= bool(claimed)
        finally:
            if bridge.stale:
                await self._apply_rules_or_release(bridge, endpoint)
        changed = msgspec.structs.replace(endpoint, Ports=claimed)
        for each in (endpoint, changed):
            await self._forget_flows(each)
        return changed

    async def detach(self, network: Network, endpoint: Endpoint) -> None:
        try:
            await self._kernel.apply(Batch((DeleteLink(endpoint.Link),)))
        except OSError as error:
            raise HostError(f"cannot remove link {endpoint.Link}: {error}") from error

    async def release(self, network: Network, endpoint: Endpoint) -> None:
        bridge = self._bridge(network)
        bridge.stale |= bridge.claims.release(endpoint.ID)
        if bridge.stale:
            await self._apply_rules(bridge)
        await self._forget_flows(endpoint)
        # Last: what failed is tried again, and an address given back before may be another's by then.
        bridge.give_back([interface.ip for interface in endpoint.interfaces()])

    def adopt(self, network: Network, endpoint: Endpoint) -> None:
        bridge = self._bridge(network)
        for pool in bridge.pools:
            for interface in endpoint.interfaces():
                pool.adopt(interface.ip)
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

    def close(self) -> None:
        if self._end_watch:
            self._end_watch()
            self._end_watch = None
        if self._mending:
            self._mending.cancel()
        for bridge in self._bridges.values():
            bridge.claims.close()

    def _bridge(self, network: Network) -> _Bridge:
        bridge = self._bridges.get(network.ID)
        if bridge is None:
            bridge = self._bridges[network.ID] = _Bridge(network)
        if network.Settled and not bridge.pools:
            bridge.pools = [AddressPool(ipaddress.IPv4Network(pool.Subnet)) for pool in network.Pools]
        return bridge

    def _watch_rules(self) -> None:
        """Others flush the ruleset, nftables.service for one at each reload: ours is put back."""
        if self._end_watch is None:
            try:
                self._end_watch = self._kernel.watch_rules(self._mend_soon)
            except OSError as error:
                log.warning("rules.unwatched", error=str(error))

    def _mend_soon(self) -> None:
        if self._mending is None or self._mending.done():
            self._mending = self._tasks.spawn(self._mend(), name="rules of bridges")

    async def _mend(self) -> None:
        # What goes in one transaction may come back in the next, and our own replacements are told of too.
        await asyncio.sleep(MEND_DELAY_S)
        for bridge in [bridge for bridge in self._bridges.values() if bridge.made]:
            async with bridge.lock:
                try:
                    if bridge.made and await self._is_mangled(bridge):
                        log.warning("rules.restored", device=bridge.device)
                        await self._kernel.run_rules(
                            bridge.ruleset() + await self._forwarding.commands_for(bridge.device)
                        )
                except (OSError, HostError) as error:
                    bridge.stale = True
                    log.warning("rules.not_restored", device=bridge.device, error=str(error))

    async def _is_mangled(self, bridge: _Bridge) -> bool:
        tables = await self._kernel.tables()
        return bridge.table not in tables or await self._forwarding.is_lost(tables)

    async def _forget_flows(self, endpoint: Endpoint) -> None:
        """Once its ports lead elsewhere than before.

        A peer that goes on sending from one port goes on to be led where its first packet was: to a container that has
        ended, or to the host itself. TCP finds out by itself, as the other end answers with a reset.
        """
        flows = [
            FlowsTo(each.protocol, each.host_ip, each.host_port) for each in endpoint.Ports if each.protocol != "tcp"
        ]
        if flows:
            try:
                await self._kernel.forget_flows(flows)
            except OSError as error:
                log.warning("flows.kept", endpoint=endpoint.ID, error=str(error))

    async def _apply_rules_or_release(self, bridge: _Bridge, endpoint: Endpoint) -> None:
        try:
            await self._apply_rules(bridge)
        except HostError:
            bridge.claims.release(endpoint.ID)
            raise

    async def _apply_rules(self, bridge: _Bridge) -> None:
        async with bridge.lock:
            bridge.stale = True
            await self._kernel.run_rules(bridge.ruleset())
            bridge.stale = False


def _device_changes(bridge: _Bridge) -> tuple[Change, ...]:
    addresses = [
        AddAddress(bridge.device, ipaddress.ip_interface(f"{pool.gateway}/{pool.subnet.prefixlen}"))
        for pool in bridge.pools
    ]
    return (AddBridge(bridge.device, mac_for(bridge.pools[0].gateway)), *addresses, SetUp(bridge.device))


def _interface_changes(endpoint: Endpoint, *, default_route: bool) -> tuple[Change, ...]:
    addresses = [AddAddress(endpoint.Interface, address) for address in endpoint.interfaces()]
    gateways = [AddDefaultRoute(ipaddress.ip_address(gateway)) for gateway in endpoint.Gateways]
    return (SetUp(endpoint.Interface), *addresses, *(gateways if default_route else ()))
