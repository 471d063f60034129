"""What network drivers ask of the kernel, as a port.

Two implementations pass one suite (``tests/contract/test_kernel_network.py``): ``LinuxNetwork`` and the fake of the
tests, which records. Drivers decide; what they decided is a list of changes, so that it can be looked at without a
kernel.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeAlias

import msgspec

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IPInterface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddBridge(msgspec.Struct, frozen=True):
    """A bridge that is up, with a MAC of its own. There already is fine.

    Without ``snooping`` it asks nobody who wants which multicast, and sends it to every port.
    """

    name: str
    mac: str
    snooping: bool = True


class AddVxlan(msgspec.Struct, frozen=True):
    """A VXLAN device in the network namespace at the path, whose packets go out in the namespace of the batch.

    It learns nothing: where a MAC is, and which MAC an address has, is what ``SetForwarding`` and ``SetNeighbour`` say,
    and it answers for those neighbours itself. ``local`` is the source of what it sends, and the only address it hears.
    """

    name: str
    vni: int
    local: IPAddress
    port: int
    mtu: int
    namespace: str


class AddVeth(msgspec.Struct, frozen=True):
    """A pair: ``name`` is a port of ``bridge`` and up, ``peer`` is born in the namespace at the path and down."""

    name: str
    bridge: str
    mtu: int
    peer: str
    peer_mac: str
    peer_namespace: str


class AddDummy(msgspec.Struct, frozen=True):
    """A device that leads nowhere, and up. There already is fine."""

    name: str


class AddVlan(msgspec.Struct, frozen=True):
    """What of a device's traffic has a VLAN ID (802.1Q), as a device of its own, down. There already is fine."""

    name: str
    parent: str
    vlan_id: int


class AddSublink(msgspec.Struct, frozen=True):
    """A device on top of another one, born in the namespace at the path and down.

    ``kind`` is macvlan (``mode`` bridge, private, vepa, passthru) or ipvlan (l2, l3, l3s, with ``flag`` bridge, private or
    vepa), which has the parent's MAC.
    """

    name: str
    kind: str
    parent: str
    mode: str
    flag: str
    mac: str
    namespace: str


class SetPort(msgspec.Struct, frozen=True):
    """Make a link a port of a bridge, and up, that learns no MAC. ``flood``: whether it gets what has no known place."""

    link: str
    bridge: str
    flood: bool


class AddPort(msgspec.Struct, frozen=True):
    """Make a link a port of a bridge, and up. There already is fine."""

    link: str
    bridge: str


class SetReflecting(msgspec.Struct, frozen=True):
    """Have a bridge send out by this port of it what came in by it; ``isolated``: nothing to others that are isolated too.

    The first is for a container that calls its own published port on a host with br_netfilter: translated as it comes in, the
    packet does not leave the bridge.
    """

    link: str
    isolated: bool = False


class SetForwarding(msgspec.Struct, frozen=True):
    """Where frames for a MAC go: from a VXLAN device to a host, or (None) from a bridge to this port of it."""

    link: str
    mac: str
    host: IPAddress | None = None


class DeleteForwarding(msgspec.Struct, frozen=True):
    """Of a VXLAN device. Gone already is fine."""

    link: str
    mac: str


class SetNeighbour(msgspec.Struct, frozen=True):
    """The MAC of an address, for good."""

    link: str
    address: IPAddress
    mac: str


class DeleteNeighbour(msgspec.Struct, frozen=True):
    """Gone already is fine."""

    link: str
    address: IPAddress


class AddAddress(msgspec.Struct, frozen=True):
    """An address of a link. There already is fine."""

    link: str
    address: IPInterface


class AddDefaultRoute(msgspec.Struct, frozen=True):
    """The default route of the gateway's address family, in place of another.

    ``link`` is "" where the addresses there are tell it. A gateway of zeros is none: what is anywhere is reached by the
    link itself.
    """

    gateway: IPAddress
    link: str = ""


class AddRoute(msgspec.Struct, frozen=True):
    """A route by a link, in place of another: through ``gateway``, which needs no address of ours beside it, or on link.

    ``table`` 0 is the main one.
    """

    destination: IPNetwork
    link: str
    gateway: IPAddress | None = None
    table: int = 0


class AddMarkRule(msgspec.Struct, frozen=True):
    """What comes in by a link with a mark of the firewall (``mark`` of the bits ``mask``) is routed by ``table``.

    IPv4. There already is fine.
    """

    link: str
    mark: int
    mask: int
    table: int


class DeleteMarkRule(msgspec.Struct, frozen=True):
    """Gone already is fine."""

    link: str
    mark: int
    mask: int
    table: int


class SetUp(msgspec.Struct, frozen=True):
    """Switch a link on."""

    link: str


class DeleteLink(msgspec.Struct, frozen=True):
    """Take a link away, with it the far end of a pair. Gone already is fine."""

    name: str


Change: TypeAlias = (
    AddBridge
    | AddVxlan
    | AddVeth
    | AddDummy
    | AddVlan
    | AddSublink
    | SetPort
    | AddPort
    | SetReflecting
    | SetForwarding
    | DeleteForwarding
    | SetNeighbour
    | DeleteNeighbour
    | AddAddress
    | AddDefaultRoute
    | AddRoute
    | AddMarkRule
    | DeleteMarkRule
    | SetUp
    | DeleteLink
)


class Batch(msgspec.Struct, frozen=True):
    """Changes to make in order in one network namespace: that at the path (/proc/PID/ns/net), "" is the daemon's own."""

    changes: tuple[Change, ...]
    namespace: str = ""


class Link(msgspec.Struct, frozen=True):
    """A network device; ``bridge`` is the name of the one it is a port of, "" for none; ``kind`` is "" for hardware."""

    name: str
    bridge: str = ""
    kind: str = ""


class VxlanLink(msgspec.Struct, frozen=True):
    """What a VXLAN device is, and what it was told."""

    vni: int
    local: IPAddress | None
    port: int
    mtu: int
    bridge: str
    forwarding: dict[str, IPAddress]
    neighbours: dict[IPAddress, str]


class Route(msgspec.Struct, frozen=True):
    """A destination that the host reaches by a device, itself (``on_link``) or by a gateway; default routes are none."""

    destination: ipaddress.IPv4Network
    link: str
    on_link: bool = True


class FlowsTo(msgspec.Struct, frozen=True):
    """Connections, or what passes for one, to a port of the host; ``protocol`` is udp or sctp.

    ``address`` "0.0.0.0" or "::" means each address of the host.
    """

    protocol: str
    address: str
    port: int


class Translation(msgspec.Struct, frozen=True):
    """Flows that began towards ``address`` and were led to ``target``; ``protocol`` is its number in IP."""

    protocol: int
    address: IPAddress
    port: int
    target: IPAddress


class FlowPattern(msgspec.Struct, frozen=True, kw_only=True):
    """Translated flows; what is None fits any."""

    target: IPAddress
    address: IPAddress | None = None
    protocol: int | None = None
    port: int | None = None

    def fits(self, flow: Translation) -> bool:
        """Whether a flow is one of these."""
        return (
            flow.target == self.target
            and self.address in (None, flow.address)
            and self.protocol in (None, flow.protocol)
            and self.port in (None, flow.port)
        )


class KernelNetwork(Protocol):
    """Devices, addresses, routes and rules. What blocks is done in a thread."""

    async def apply(self, *batches: Batch) -> None:
        """Carry out the batches in order.

        Raises OSError for a change that the kernel refused and names it. What comes after it may or may not have been
        done: undo what you would not keep.
        """
        ...

    async def keep_namespace(self, path: str, of: str = "") -> None:
        """Keep a network namespace at the path: a new one, or that of the processes at ``of`` (/proc/PID/ns/net).

        One that is kept there already is fine, and goes on to be it. Raises OSError.
        """
        ...

    async def drop_namespace(self, path: str) -> None:
        """Let it go; it ends with its last process. Gone already is fine. Raises OSError."""
        ...

    async def has_namespace(self, path: str) -> bool:
        """Whether one is kept at the path."""
        ...

    async def links(self, namespace: str = "") -> dict[str, Link]:
        """Every link of a namespace by name. Raises OSError."""
        ...

    async def vxlan(self, name: str, namespace: str = "") -> VxlanLink | None:
        """A VXLAN device with its entries, None where there is no such link or it is of another kind. Raises OSError."""
        ...

    async def routes(self) -> list[Route]:
        """IPv4 routes of the daemon's namespace. Raises OSError."""
        ...

    async def read_sysctl(self, name: str) -> str:
        """One parameter of the daemon's namespace, as ``set_sysctls`` names it. Raises OSError."""
        ...

    async def set_sysctls(self, values: Mapping[str, str], namespace: str = "") -> None:
        """Set parameters of a namespace, named by path below /proc/sys/net. Raises OSError."""
        ...

    async def run_rules(self, commands: str, namespace: str = "") -> None:
        """Carry out commands in nft's language, all or none. Raises HostError with nft's reason, OSError."""
        ...

    async def forget_flows(self, flows: Sequence[FlowsTo]) -> None:
        """Have the rules asked anew for flows that there are: they keep the translation of their first packet.

        What goes through the host to such a port of another is left alone. Raises OSError.
        """
        ...

    async def translations(self, namespace: str = "") -> set[Translation]:
        """What the flows that there are have been translated to, of both address families. Raises OSError."""
        ...

    async def forget_translations(self, gone: Collection[FlowPattern], namespace: str = "") -> None:
        """Have the rules asked anew for these flows. Raises OSError."""
        ...

    def watch_rules(self, changed: Callable[[], None], namespace: str = "") -> Callable[[], None]:
        """Call ``changed`` on the event loop whenever a table has gone, ours or not, or may have; returns what ends it.

        A table that was replaced has gone as well. Raises OSError.
        """
        ...

    def watch_links(self, changed: Callable[[str], None], namespace: str = "") -> Callable[[], None]:
        """Call ``changed`` on the event loop with the name of a link that has gone ("": some may have); returns what ends it.

        Raises OSError.
        """
        ...

    async def tables(self, namespace: str = "") -> set[str]:
        """Tables of rules: family and name, such as "ip engine-swarm0". Raises HostError, OSError."""
        ...

    async def dropping_forwards(self) -> dict[str, str]:
        """Chains that drop what they do not accept of what the host forwards: their text by family, table and name.

        Raises HostError.
        """
        ...

    async def names_in(self, table: str, name: str) -> set[str]:
        """The names of devices in a set of a table of the daemon's namespace. Raises HostError."""
        ...
