"""What network drivers ask of the kernel, as a port.

Two implementations pass one suite (``tests/contract/test_kernel_network.py``): ``LinuxNetwork`` and the fake of the
tests, which records. Drivers decide; what they decided is a list of changes, so that it can be looked at without a
kernel.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

import msgspec

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IPInterface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface


class AddBridge(msgspec.Struct, frozen=True):
    """A bridge that is up, with a MAC of its own. There already is fine."""

    name: str
    mac: str


class AddVeth(msgspec.Struct, frozen=True):
    """A pair: ``name`` is a port of ``bridge`` and up, ``peer`` is born in the namespace at the path and down."""

    name: str
    bridge: str
    mtu: int
    peer: str
    peer_mac: str
    peer_namespace: str


class AddAddress(msgspec.Struct, frozen=True):
    """An address of a link. There already is fine."""

    link: str
    address: IPInterface


class AddDefaultRoute(msgspec.Struct, frozen=True):
    """The default route of the gateway's address family, in place of another."""

    gateway: IPAddress


class SetUp(msgspec.Struct, frozen=True):
    """Switch a link on."""

    link: str


class DeleteLink(msgspec.Struct, frozen=True):
    """Take a link away, with it the far end of a pair. Gone already is fine."""

    name: str


Change: TypeAlias = AddBridge | AddVeth | AddAddress | AddDefaultRoute | SetUp | DeleteLink


class Batch(msgspec.Struct, frozen=True):
    """Changes to make in order in one network namespace: that at the path (/proc/PID/ns/net), "" is the daemon's own."""

    changes: tuple[Change, ...]
    namespace: str = ""


class Link(msgspec.Struct, frozen=True):
    """A network device; ``bridge`` is the name of the one it is a port of, "" for none."""

    name: str
    bridge: str = ""


class Route(msgspec.Struct, frozen=True):
    """A destination that the host reaches by a device; default routes are none."""

    destination: ipaddress.IPv4Network
    link: str


class FlowsTo(msgspec.Struct, frozen=True):
    """Connections, or what passes for one, to a port of the host; ``protocol`` is udp or sctp.

    ``address`` "0.0.0.0" means each address of the host.
    """

    protocol: str
    address: str
    port: int


class KernelNetwork(Protocol):
    """Devices, addresses, routes and rules. What blocks is done in a thread."""

    async def apply(self, *batches: Batch) -> None:
        """Carry out the batches in order.

        Raises OSError for a change that the kernel refused and names it. What comes after it may or may not have been
        done: undo what you would not keep.
        """
        ...

    async def links(self, namespace: str = "") -> dict[str, Link]:
        """Every link of a namespace by name. Raises OSError."""
        ...

    async def routes(self) -> list[Route]:
        """IPv4 routes of the daemon's namespace. Raises OSError."""
        ...

    async def read_sysctl(self, name: str) -> str:
        """One parameter of the daemon's namespace, as ``set_sysctls`` names it. Raises OSError."""
        ...

    async def set_sysctls(self, values: Mapping[str, str]) -> None:
        """Set parameters of the daemon's namespace, named by path below /proc/sys/net. Raises OSError."""
        ...

    async def run_rules(self, commands: str) -> None:
        """Carry out commands in nft's language, all or none. Raises HostError with nft's reason."""
        ...

    async def forget_flows(self, flows: Sequence[FlowsTo]) -> None:
        """Have the rules asked anew for flows that there are: they keep the translation of their first packet.

        What goes through the host to such a port of another is left alone. Raises OSError.
        """
        ...

    def watch_rules(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call ``changed`` on the event loop whenever a table has gone, ours or not, or may have; returns what ends it.

        A table that was replaced has gone as well. Raises OSError.
        """
        ...

    async def tables(self) -> set[str]:
        """Tables of rules: family and name, such as "ip engine-swarm0". Raises HostError."""
        ...
