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
import string
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from base.tasks import OwnedTasks
from runtime.errors import ForbiddenError, HostError, InvalidParameterError
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
from runtime.networks import options, pools, rules
from runtime.networks.addresses import AddressPool, IPNetwork, mac_for, parse_mac
from runtime.networks.driver import Endpoint, EndpointRequest, Network, Pool
from runtime.networks.forwarding import Forwarding
from runtime.networks.options import BridgeOptions
from runtime.networks.pools import DefaultPool
from runtime.networks.ports import PortClaims, PortRequest
from runtime.types import EndpointSettings

log = structlog.get_logger(__name__)

MEND_DELAY_S = 0.1
_OTHER_GATEWAY = "DefaultGatewayIPv4"
"""The auxiliary address by which endpoints get to the world, in place of ours."""
_LINK = re.compile(r"veth[0-9a-f]{7}")


class _Bridge:
    """What is handed out on one network, and whether its device is made."""

    def __init__(self, network: Network) -> None:
        self.options = options.parse(network)
        self.device = self.options.device
        self.mtu = self.options.mtu or options.DEFAULT_MTU
        self.pools = [_address_pool(pool) for pool in network.Pools]
        self.gateways = [pool.AuxiliaryAddresses.get(_OTHER_GATEWAY, pool.Gateway) for pool in network.Pools]
        self.claims = PortClaims()
        self.made = False
        self.stale = False
        """Whether the kernel has rules of ports that were given back."""
        self.lock = asyncio.Lock()

    @property
    def table(self) -> str:
        return f"ip {rules.table_name(self.device)}"

    def ruleset(self) -> str:
        (subnet,) = [pool.subnet for pool in self.pools if isinstance(pool.subnet, ipaddress.IPv4Network)]
        return rules.ruleset(self.device, subnet, self.claims.all())

    def allocate(self, settings: EndpointSettings, avoid: Collection[IPAddress]) -> list[IPAddress]:
        """One address a pool, all or none. Raises UnavailableError, InvalidParameterError."""
        wanted = settings.IPAMConfig.IPv4Address if settings.IPAMConfig else ""
        found: list[IPAddress] = []
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
    """See ``Driver``. ``run`` goes with a reboot; ``defaults`` are where subnets come from that nobody asked for."""

    name = "bridge"
    scope: Literal["local"] = "local"
    routes = True

    def __init__(self, kernel: KernelNetwork, run: Path, defaults: Sequence[DefaultPool] = pools.DEFAULT_POOLS) -> None:
        self._kernel, self._defaults = kernel, defaults
        self._forwarding = Forwarding(kernel, run / "forwarding")
        self._bridges: dict[str, _Bridge] = {}
        self._tasks = OwnedTasks()
        self._mending: asyncio.Task[None] | None = None
        self._end_watch: Callable[[], None] | None = None

    async def settle(self, network: Network, others: Sequence[Network] = ()) -> Network:
        """Pools as asked for or of the default ones, around what the host uses, and which device."""
        if network.Settled:
            return network
        asked = options.parse(network)
        _refuse_unserved(network, asked)
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
        avoid = [route.destination for route in routes if route.on_link and route.link != device]
        if network.Pools:  # wishes
            chosen = [_wish_or_next(pool, [*taken, *avoid], self._defaults) for pool in network.Pools]
        else:
            without = asked.versions_without_gateway(internal=network.Internal)
            chosen = pools.choose(
                network, taken=taken, avoid=avoid, defaults=self._defaults, versions_without_gateway=without
            )
            _check_pools(network, chosen)
        found = device in links and not network.Pools
        return msgspec.structs.replace(network, Pools=chosen, Settled=True, DeviceFound=found)

    async def create(self, network: Network) -> None:
        """The bridge with its addresses, forwarding and rules."""
        bridge = self._bridge(network)
        async with bridge.lock:
            if bridge.made:
                return
            try:
                await self._kernel.apply(Batch(_device_changes(network, bridge)))
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
                if not network.DeviceFound:
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
            Interface=_interface_name(request.interface, bridge.options.interface_prefix),
            Link=f"veth{endpoint_id[:7]}",
            Addresses=[f"{each}/{pool.subnet.prefixlen}" for each, pool in zip(addresses, bridge.pools, strict=True)],
            Gateways=[gateway for gateway in bridge.gateways if gateway],
            MacAddress=mac or next(mac_for(each) for each in addresses if isinstance(each, ipaddress.IPv4Address)),
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
                await self.detach(network, endpoint, namespace)
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

    async def detach(self, network: Network, endpoint: Endpoint, namespace: str) -> None:
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


def _device_changes(network: Network, bridge: _Bridge) -> tuple[Change, ...]:
    gateways = [
        ipaddress.ip_interface(f"{pool.Gateway}/{pool.Subnet.partition('/')[2]}")
        for pool in network.Pools
        if pool.Gateway and not (bridge.options.inhibit_ipv4 and ":" not in pool.Gateway)
    ]
    addresses = [AddAddress(bridge.device, gateway) for gateway in gateways]
    mac = next((mac_for(each.ip) for each in gateways if isinstance(each.ip, ipaddress.IPv4Address)), "")
    return (AddBridge(bridge.device, mac or _mac_of(network)), *addresses, SetUp(bridge.device))


def _mac_of(network: Network) -> str:
    """Of a bridge without an IPv4 address."""
    digits = network.ID[:8]
    return ":".join(("02", "42", *(digits[at : at + 2] for at in range(0, 8, 2))))


def _interface_changes(endpoint: Endpoint, *, default_route: bool) -> tuple[Change, ...]:
    addresses = [AddAddress(endpoint.Interface, address) for address in endpoint.interfaces()]
    gateways = [AddDefaultRoute(ipaddress.ip_address(gateway)) for gateway in endpoint.Gateways]
    return (SetUp(endpoint.Interface), *addresses, *(gateways if default_route else ()))


def _interface_name(given: str, prefix: str) -> str:
    """``given`` with another word before its number."""
    return prefix + given.lstrip(string.ascii_lowercase) if prefix else given


def _address_pool(pool: Pool) -> AddressPool:
    reserved = [pool.Gateway, *pool.AuxiliaryAddresses.values()]
    return AddressPool(
        ipaddress.ip_network(pool.Subnet),
        ipaddress.ip_network(pool.IPRange) if pool.IPRange else None,
        [ipaddress.ip_address(each) for each in reserved if each],
    )


def _wish_or_next(wish: Pool, used: Sequence[IPNetwork], defaults: Sequence[DefaultPool]) -> Pool:
    """The wish unless the host uses part of it already, else the next free subnet."""
    subnet = ipaddress.ip_network(wish.Subnet)
    if not pools.overlapping(subnet, used):
        return wish
    other = pools.next_free([each for each in defaults if each.base.version == subnet.version], used)
    return Pool(Subnet=str(other), Gateway=str(other.network_address + 1))


def _check_pools(network: Network, chosen: Sequence[Pool]) -> None:
    versions = [ipaddress.ip_network(pool.Subnet).version for pool in chosen]
    if not versions:
        raise InvalidParameterError("IPv4 or IPv6 must be enabled")
    if len(versions) > len(set(versions)):
        raise ForbiddenError("bridge driver doesn't support multiple subnets")
    for pool in chosen:
        if pool.Subnet in ("0.0.0.0/0", "::/0"):
            raise InvalidParameterError(f"ipv{6 if ':' in pool.Subnet else 4} pool is empty")


def _refuse_unserved(network: Network, asked: BridgeOptions) -> None:
    plain = BridgeOptions(
        device=asked.device, mtu=asked.mtu, inhibit_ipv4=asked.inhibit_ipv4, interface_prefix=asked.interface_prefix
    )
    if network.EnableIPv6 or network.Internal or asked != plain:
        raise InvalidParameterError("IPv6, internal networks and this option are not served yet")
