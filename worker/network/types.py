"""What a node is told of the cluster's networks: plain values, compared and never changed."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import NewType

import msgspec

from runtime.kernel.network import IPAddress, IPNetwork
from runtime.networks.addresses import mac_for

NetworkID = NewType("NetworkID", str)
DATA_PATH_PORT = 4789
UNDERLAY_MTU = 1500
_OVERHEAD_BYTES = {4: 50, 6: 70}
"""Of VXLAN by the underlay's address family: Ethernet, IP, UDP and VXLAN headers (RFC 7348, section 5)."""


class Subnet(msgspec.Struct, frozen=True):
    """A subnet of an overlay, and the address that each node's bridge has in it."""

    network: IPNetwork
    gateway: IPAddress


class OverlayNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """An overlay. ``mtu`` 0 means as large as the underlay lets it be; all subnets are one segment, that of ``vni``.

    Endpoints of an ``internal`` one have no way out; ``encrypted`` ones never go over the underlay in clear.
    """

    id: NetworkID
    vni: int
    subnets: tuple[Subnet, ...]
    mtu: int = 0
    internal: bool = False
    encrypted: bool = False
    options: dict[str, str] = msgspec.field(default_factory=dict)


class PeerEndpoint(msgspec.Struct, frozen=True):
    """An endpoint and the data-path address of the node it is on. ``addresses``: IPv4 first, one an address family."""

    addresses: tuple[IPAddress, ...]
    node: IPAddress

    @property
    def mac(self) -> str:
        """It follows from the first address, so that nobody has to be told of it."""
        return mac_for(self.addresses[0])


class Backend(msgspec.Struct, frozen=True):
    """A task behind a virtual IP or a published port. ``weight`` 0: it keeps its connections and gets no new ones."""

    address: IPAddress
    weight: int = 1


class BalancedService(msgspec.Struct, frozen=True):
    """A virtual IP of a network, and who is behind it. ``local_first``: those on this node alone, while there are any."""

    vip: IPAddress
    backends: tuple[Backend, ...]
    local_first: bool = False


class DataPath(msgspec.Struct, frozen=True):
    """This node's data path: its address and port, and the MTU of the device that has the address."""

    address: IPAddress
    port: int = DATA_PATH_PORT
    mtu: int = UNDERLAY_MTU

    def mtu_of(self, network: OverlayNetwork) -> int:
        """Of an overlay's devices here."""
        return network.mtu or self.mtu - _OVERHEAD_BYTES[self.address.version]


class LocalEndpoint(msgspec.Struct, frozen=True):
    """An endpoint on this node.

    ``link`` is its device in the network's namespace, ``interface`` the one in the container's, which is kept at the
    path ``sandbox``.
    """

    id: str
    addresses: tuple[IPAddress, ...]
    link: str
    interface: str
    sandbox: str

    @property
    def mac(self) -> str:
        """As ``PeerEndpoint.mac``."""
        return mac_for(self.addresses[0])


class IngressBackend(msgspec.Struct, frozen=True):
    """A task behind a published port.

    ``node`` is the ingress address of its node, ``address`` its own on the bridge of that node, which only that node has to
    be told. ``weight`` as in ``Backend``.
    """

    node: IPv4Address
    address: IPv4Address | None = None
    weight: int = 1


class IngressPort(msgspec.Struct, frozen=True, kw_only=True):
    """A port that every node publishes, on all its addresses or on these; ``protocol`` is tcp, udp or sctp.

    ``local_first``: clients of a node with a task get that node's tasks alone.
    """

    protocol: str
    published: int
    target: int
    backends: tuple[IngressBackend, ...] = ()
    addresses: tuple[IPv4Address, ...] = ()
    local_first: bool = False
