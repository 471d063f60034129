"""The networks of a host: ``bridge`` with addresses, masquerade and published ports; ``host`` and ``none``.

The bridge device is made at the first container, from what is kept on disk (ID and subnet, so that both survive a
restart). A container's link is a veth pair whose far end is born as eth0 inside the container's own namespace, reached
by its init's /proc/PID/ns/net between ``create`` and ``start``: no namespace file to bind and to clean, and the kernel
takes the pair away with the namespace. Which address belongs to whom is kept in the containers' records alone; the
engine hands it back by ``adopt`` after a restart.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from base.files import read_text, write_atomic
from runtime.containers.types import EndpointSettings
from runtime.errors import HostError, InvalidParameterError, NetworkNotFoundError
from runtime.kernel import netlink, nft
from runtime.networks import rules
from runtime.networks.addresses import AddressPool, choose_subnet, mac_for, parse_routes
from runtime.networks.ports import PortClaims, PortRequest
from runtime.networks.rules import PublishedPort
from runtime.networks.types import IPAM, IPAMConfig, NetworkContainer, NetworkResource

log = structlog.get_logger(__name__)

PREDEFINED = ("bridge", "host", "none")
MTU = 1500
_LINK_PREFIX = "veth"
_LINK = re.compile(r"veth[0-9a-f]{7}")


class _Saved(msgspec.Struct, kw_only=True):
    """networks.json: IDs by name and the bridge's subnet, "" until it was first made."""

    Created: str
    IDs: dict[str, str]
    Subnet: str = ""


@dataclass(slots=True)
class Attachment:
    """A container's place on the bridge: ``link`` is the host's end of the pair, "" before ``connect``."""

    endpoint: EndpointSettings
    ports: list[PublishedPort]
    link: str = ""


class Networks:
    """The networks below one state folder, in this process's network namespace.

    ``names`` tells a container's name by ID for inspect; the engine sets it.
    """

    names: Callable[[str], str]

    def __init__(self, state: Path, *, bridge: str, subnet: str) -> None:
        self._file = state / "networks.json"
        self._bridge = bridge
        self._wanted = ipaddress.IPv4Network(subnet)
        self._saved = _Saved(Created="", IDs={})
        self._pool: AddressPool | None = None
        self._index = 0
        self._attached: dict[str, Attachment] = {}
        self._claims = PortClaims()
        self._lock = asyncio.Lock()
        self.names = lambda container_id: container_id[:12]

    async def open(self) -> None:
        """Read the state, or make it. Touches no device."""
        text = read_text(self._file)
        if text is not None:
            try:
                self._saved = msgspec.json.decode(text, type=_Saved)
            except msgspec.DecodeError as error:
                log.error("networks.unreadable", path=str(self._file), reason=str(error))
        missing = [name for name in PREDEFINED if name not in self._saved.IDs]
        if missing:
            created = dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z")
            ids = {**self._saved.IDs, **{name: secrets.token_hex(32) for name in missing}}
            self._saved = _Saved(Created=self._saved.Created or created, IDs=ids, Subnet=self._saved.Subnet)
            await self._save()
        if self._saved.Subnet:
            self._pool = AddressPool(ipaddress.IPv4Network(self._saved.Subnet))

    async def close(self) -> None:
        """Give back the sockets; devices and rules stay for the containers that run on."""
        self._claims.close()

    async def remove_devices(self) -> None:
        """Take the bridge and its rules away (tests, uninstall). Containers on it lose their network."""
        await asyncio.to_thread(_remove_devices, self._bridge)
        self._index = 0

    def resolve(self, ref: str) -> str:
        """Name of a network by name, ID or unique ID prefix. Raises NetworkNotFoundError."""
        if ref in self._saved.IDs:
            return ref
        found = [name for name, network_id in self._saved.IDs.items() if ref and network_id.startswith(ref)]
        if len(found) != 1:
            raise NetworkNotFoundError(ref)
        return found[0]

    def id_of(self, name: str) -> str:
        """ID of a network by name. Raises NetworkNotFoundError."""
        return self._saved.IDs[self.resolve(name)]

    def list(self, filters: Mapping[str, Sequence[str]] | None = None) -> list[NetworkResource]:
        """All networks. Filters: driver, id, name, scope, type, dangling, label. Raises InvalidParameterError."""
        filters = filters or {}
        if unknown := set(filters) - {"driver", "id", "name", "scope", "type", "dangling", "label"}:
            raise InvalidParameterError(f"invalid filter '{min(unknown)}'")
        return [network for name in PREDEFINED if _matches(network := self.inspect(name), filters)]

    def inspect(self, ref: str) -> NetworkResource:
        """One network. Raises NetworkNotFoundError."""
        name = self.resolve(ref)
        driver = {"none": "null"}.get(name, name)
        base = NetworkResource(Name=name, Id=self._saved.IDs[name], Created=self._saved.Created, Driver=driver)
        if name != "bridge":
            return base
        pool = self._pool
        subnet = pool.subnet if pool else self._wanted
        gateway = str(pool.gateway if pool else subnet.network_address + 1)
        return msgspec.structs.replace(
            base,
            IPAM=IPAM(Config=[IPAMConfig(Subnet=str(subnet), Gateway=gateway)]),
            Containers={
                container_id: NetworkContainer(
                    Name=self.names(container_id),
                    EndpointID=attachment.endpoint.EndpointID,
                    MacAddress=attachment.endpoint.MacAddress,
                    IPv4Address=f"{attachment.endpoint.IPAddress}/{attachment.endpoint.IPPrefixLen}",
                )
                for container_id, attachment in self._attached.items()
            },
            Options={
                "com.docker.network.bridge.default_bridge": "true",
                "com.docker.network.bridge.enable_icc": "true",
                "com.docker.network.bridge.enable_ip_masquerade": "true",
                "com.docker.network.bridge.name": self._bridge,
                "com.docker.network.driver.mtu": str(MTU),
            },
        )

    async def reserve(
        self, container_id: str, wanted: EndpointSettings | None, ports: Sequence[PortRequest]
    ) -> Attachment:
        """Address, MAC and host ports for a container on the bridge, before its namespace exists.

        Raises:
            UnavailableError: no address left, a port is taken.
            HostError: the bridge could not be made.
        """
        pool = await self._ensure_bridge()
        asked = wanted.IPAMConfig.IPv4Address if wanted and wanted.IPAMConfig else ""
        address = pool.allocate(asked)
        try:
            published = self._claims.claim(container_id, ports, str(address))
        except BaseException:
            pool.release(address)
            raise
        endpoint = EndpointSettings(
            IPAMConfig=wanted.IPAMConfig if wanted else None,
            Aliases=wanted.Aliases if wanted else None,
            DriverOpts=wanted.DriverOpts if wanted else None,
            NetworkID=self._saved.IDs["bridge"],
            EndpointID=secrets.token_hex(32),
            Gateway=str(pool.gateway),
            IPAddress=str(address),
            MacAddress=(wanted.MacAddress if wanted else "") or mac_for(address),
            IPPrefixLen=pool.subnet.prefixlen,
        )
        attachment = self._attached[container_id] = Attachment(endpoint, published)
        return attachment

    async def connect(self, container_id: str, pid: int) -> None:
        """Give the namespace of process ``pid`` its eth0. Raises HostError."""
        attachment = self._attached[container_id]
        attachment.link = f"{_LINK_PREFIX}{secrets.token_hex(4)[:7]}"
        try:
            await asyncio.to_thread(_connect, attachment, self._index, pid)
            if attachment.ports:
                await self._apply_rules()
        except OSError as error:
            raise HostError(f"failed to set up container networking: {error}") from error

    async def release(self, container_id: str, *, delete_link: bool = False) -> bool:
        """Give back what ``reserve`` took; true when it had been connected. Idempotent.

        ``delete_link`` takes the pair away too, for a namespace that outlives the container (another joined it);
        else the kernel does so when the namespace ends.
        """
        attachment = self._attached.pop(container_id, None)
        if attachment is None:
            return False
        if delete_link and attachment.link:
            await asyncio.to_thread(_delete_links, [attachment.link])
        if self._pool is not None:
            self._pool.release(ipaddress.IPv4Address(attachment.endpoint.IPAddress))
        if self._claims.release(container_id):
            await self._apply_rules()
        return bool(attachment.link)

    def adopt(self, container_id: str, attachment: Attachment) -> None:
        """Take back what a container that ran on while the daemon was away still has."""
        self._attached[container_id] = attachment
        if self._pool is not None:
            self._pool.adopt(ipaddress.IPv4Address(attachment.endpoint.IPAddress))
        if attachment.ports:
            self._claims.adopt(container_id, attachment.ports)

    async def reconcile(self) -> None:
        """After a restart: the rules as they should be, and no link whose container is gone. Nothing when unused."""
        if self._pool is None:
            return
        try:
            wanted = {attachment.link for attachment in self._attached.values()}
            exists = await asyncio.to_thread(_drop_strangers, self._bridge, wanted)
        except OSError as error:
            raise HostError(f"cannot tidy bridge {self._bridge}: {error}") from error
        if exists or self._attached:  # rules of containers that ended meanwhile would lead their ports to nobody
            await self._ensure_bridge()

    async def _ensure_bridge(self) -> AddressPool:
        """The bridge with its address, forwarding and rules; made at most once in the life of this object."""
        async with self._lock:
            if self._index and self._pool:
                return self._pool
            try:
                if self._pool is None:
                    self._pool = AddressPool(await asyncio.to_thread(_free_subnet, self._bridge, self._wanted))
                    self._saved.Subnet = str(self._pool.subnet)
                    await self._save()
                self._index = await asyncio.to_thread(_make_bridge, self._bridge, self._pool)
                await asyncio.to_thread(nft.run, self._ruleset(self._pool))
            except OSError as error:
                self._index = 0
                raise HostError(f"cannot make bridge {self._bridge}: {error}") from error
            log.info("bridge.created", device=self._bridge, subnet=str(self._pool.subnet))
            return self._pool

    async def _apply_rules(self) -> None:
        async with self._lock:
            if self._pool is not None:
                await asyncio.to_thread(nft.run, self._ruleset(self._pool))

    def _ruleset(self, pool: AddressPool) -> str:
        return rules.ruleset(self._bridge, pool.subnet, self._claims.all())

    async def _save(self) -> None:
        await asyncio.to_thread(write_atomic, self._file, msgspec.json.encode(self._saved), durable=True)


def _matches(network: NetworkResource, filters: Mapping[str, Sequence[str]]) -> bool:
    for key, values in filters.items():
        good = {
            "driver": network.Driver in values,
            "id": any(network.Id.startswith(value) for value in values),
            "name": any(value in network.Name for value in values),
            "scope": network.Scope in values,
            "type": "builtin" in values,
            "dangling": any(value.lower() in ("false", "0") for value in values),
            "label": False,
        }[key]
        if not good:
            return False
    return True


def _free_subnet(bridge: str, wanted: ipaddress.IPv4Network) -> ipaddress.IPv4Network:
    table = Path("/proc/thread-self/net/route").read_text()
    others = "\n".join(line for line in table.splitlines() if line.split()[:1] != [bridge])
    return choose_subnet(wanted, parse_routes(others))


def _make_bridge(name: str, pool: AddressPool) -> int:
    with netlink.connection() as sock:
        netlink.send(sock, [netlink.add_bridge(name, mac_for(pool.gateway))])
        index = netlink.links(sock)[name][0]
        interface = ipaddress.IPv4Interface((int(pool.gateway), pool.subnet.prefixlen))
        netlink.send(sock, [netlink.add_address(index, interface), netlink.set_up(index)])
    settings = Path("/proc/sys/net/ipv4")
    for path in (settings / "ip_forward", settings / "conf" / name / "route_localnet"):
        if path.read_text().strip() != "1":
            path.write_text("1")
    return index


def _connect(attachment: Attachment, bridge_index: int, pid: int) -> None:
    endpoint = attachment.endpoint
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with netlink.connection() as sock:
            pair = netlink.add_veth(attachment.link, bridge_index, "eth0", endpoint.MacAddress, namespace, MTU)
            netlink.send(sock, [pair])
        with netlink.connection(namespace) as sock:
            index = netlink.links(sock)["eth0"][0]
            interface = ipaddress.IPv4Interface(f"{endpoint.IPAddress}/{endpoint.IPPrefixLen}")
            gateway = ipaddress.IPv4Address(endpoint.Gateway)
            messages = [
                netlink.set_up(index),
                netlink.add_address(index, interface),
                netlink.add_default_route(gateway),
            ]
            netlink.send(sock, messages)
    finally:
        os.close(namespace)


def _delete_links(names: Sequence[str]) -> None:
    with netlink.connection() as sock:
        netlink.send(sock, [netlink.delete_link(name) for name in names])


def _drop_strangers(bridge: str, wanted: set[str]) -> bool:
    """Take away links of nobody; whether the bridge exists."""
    with netlink.connection() as sock:
        found = netlink.links(sock)
        if bridge not in found:
            return False
        index = found[bridge][0]
        strangers = [
            name
            for name, (_, master) in found.items()
            if master == index and _LINK.fullmatch(name) and name not in wanted
        ]
        if strangers:
            netlink.send(sock, [netlink.delete_link(name) for name in strangers])
            log.info("links.removed", count=len(strangers))
        return True


def _remove_devices(bridge: str) -> None:
    _delete_links([bridge])
    table = f"ip {rules.table_name(bridge)}"
    nft.run(f"add table {table}\ndelete table {table}\n")
