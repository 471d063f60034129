"""The rules of an engine's bridges as text for nft: pure functions of what there is.

One table an engine, in the family inet. Base chains look at a packet once, whatever there is of networks: by the device that
it comes from or goes to they jump to the chains of that one bridge, and where a published port leads is an element of a map.
So a network or a port more is elements and chains more, put in without reading or writing the others, and costs no packet
of the others anything. (A table a bridge was the way before: each packet went through all of them.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from runtime.kernel.network import IPAddress, IPNetwork

GatewayMode: TypeAlias = Literal["nat", "nat-unprotected", "routed", "isolated"]
ANY_IPV4, ANY_IPV6 = "0.0.0.0", "::"
TABLE_PREFIX = "engine-"


class PublishedPort(msgspec.Struct, frozen=True, order=True):
    """``host_ip:host_port`` leads to ``container_ip:container_port``; ``protocol`` is tcp, udp or sctp.

    ``host_ip`` "0.0.0.0" or "::" means each address of the host. ``host_port`` 0 means that no port of the host does:
    the container's own is open, to who has a route to it.
    """

    protocol: str
    host_ip: str
    host_port: int
    container_ip: str
    container_port: int


class BridgeRules(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules know of one network; see ``options.BridgeOptions``. ``sources`` are what the world sees."""

    device: str
    subnets: tuple[IPNetwork, ...]
    internal: bool = False
    icc: bool = True
    masquerade: bool = True
    mode_ipv4: GatewayMode = "nat"
    mode_ipv6: GatewayMode = "nat"
    sources: tuple[IPAddress, ...] = ()
    trusted_interfaces: tuple[str, ...] = ()

    def mode(self, version: int) -> GatewayMode:
        """That of an address family."""
        return self.mode_ipv4 if version == 4 else self.mode_ipv6

    def opens(self, version: int) -> bool:
        """Whether somebody reaches published ports at the container's own address."""
        return not self.internal and (self.mode(version) == "routed" or bool(self.trusted_interfaces))


class Element(NamedTuple):
    """A key in one of the table's maps and sets; its value is what it is mapped to."""

    name: str
    key: str


Elements: TypeAlias = Mapping[Element, str]


def table_name(engine: str) -> str:
    """One table an engine, named after its default bridge."""
    return f"inet {TABLE_PREFIX}{engine}"


def whole(table: str, bridges: Iterable[BridgeRules], elements: Iterable[Elements] = ()) -> str:
    """Commands that put the table in place with these bridges and ports, whatever was there before, in one transaction.

    Chains of bridges are named before the maps that lead to them: of intervals that are added in the transaction in which
    the map is, the kernel finds no chain that comes later (nftables 1.0.6).
    """
    present = list(bridges)
    chains = "".join(f"add chain {table} {chain}\n" for bridge in present for chain in _chains(bridge))
    return (
        f"add table {table}\ndelete table {table}\nadd table {table}\n{chains}{skeleton(table)}"
        + "".join(add_bridge(table, bridge) for bridge in present)
        + "".join(change_elements(table, {}, each) for each in elements)
    )


def skeleton(table: str) -> str:
    """The table without any bridge.

    - What leaves a subnet through another device takes the host's address.
    - Published ports lead to their container, for packets from outside, from the host itself (loopback included:
      hence the masquerade of 127/8; the kernel lets no answer to ::1 in again) and from a container that calls its own published port.
    - ``route_localnet``, which loopback publishing needs, must not let neighbours and containers reach the host's 127/8, nor
      seem to come from there: it lets such sources in as well.
    - Forwarding, which all of it needs, must not let neighbours reach the containers themselves, by a route to the subnet:
      only published ports and answers, whatever others accept. So are bridges kept from each other.
    """
    return f"""table {table} {{
  set bridges {{
    type ifname;
  }}
  map from_bridge {{
    type ifname : verdict;
  }}
  map to_bridge {{
    type ifname : verdict;
  }}
  map leaving_ipv4 {{
    type ipv4_addr : verdict;
    flags interval;
  }}
  map leaving_ipv6 {{
    type ipv6_addr : verdict;
    flags interval;
  }}
  map published_ipv4 {{
    type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;
  }}
  map published_ipv4_anywhere {{
    type inet_proto . inet_service : ipv4_addr . inet_service;
  }}
  map published_ipv6 {{
    type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service;
  }}
  map published_ipv6_anywhere {{
    type inet_proto . inet_service : ipv6_addr . inet_service;
  }}
  set opened_ipv4 {{
    type ipv4_addr . inet_proto . inet_service;
  }}
  set opened_ipv6 {{
    type ipv6_addr . inet_proto . inet_service;
  }}
  chain guard {{
    type filter hook prerouting priority raw; policy accept;
    iifname != "lo" ip daddr 127.0.0.0/8 drop
    iifname != "lo" ip saddr 127.0.0.0/8 drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname vmap @from_bridge
    oifname vmap @to_bridge
  }}
  chain publish {{
    dnat ip to ip daddr . meta l4proto . th dport map @published_ipv4
    dnat ip to meta l4proto . th dport map @published_ipv4_anywhere
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @published_ipv6
    dnat ip6 to meta l4proto . th dport map @published_ipv6_anywhere
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump publish
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    fib daddr type local jump publish
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr vmap @leaving_ipv4
    ip6 saddr vmap @leaving_ipv6
    oifname @bridges ip saddr 127.0.0.0/8 masquerade
  }}
}}
"""


def add_bridge(table: str, bridge: BridgeRules) -> str:
    """Commands that add a bridge to a table that has not got it."""
    lines = []
    for chain, rules in _chains(bridge).items():
        lines.append(f"add chain {table} {chain}")
        lines += [f"add rule {table} {chain} {rule}" for rule in rules]
    lines += [_add(table, element, value) for element, value in _places(bridge).items()]
    return "".join(f"{line}\n" for line in lines)


def remove_bridge(table: str, bridge: BridgeRules) -> str:
    """Commands that take away what ``add_bridge`` added."""
    lines = [_delete(table, element) for element in _places(bridge)]
    for step in ("flush", "delete"):
        lines += [f"{step} chain {table} {chain}" for chain in _chains(bridge)]
    return "".join(f"{line}\n" for line in lines)


def port_elements(bridge: BridgeRules, ports: Iterable[PublishedPort]) -> dict[Element, str]:
    """What published ports of one container are in the table; none of them is another container's."""
    found = {}
    for port in ports:
        version = 6 if ":" in port.container_ip else 4
        target = f"{port.container_ip} . {port.container_port}"
        if port.host_port:
            anywhere = port.host_ip in ("", ANY_IPV4, ANY_IPV6)
            name = f"published_ipv{version}" + ("_anywhere" if anywhere else "")
            key = f"{port.protocol} . {port.host_port}"
            found[Element(name, key if anywhere else f"{port.host_ip} . {key}")] = target
        if bridge.opens(version):
            key = f"{port.container_ip} . {port.protocol} . {port.container_port}"
            found[Element(f"opened_ipv{version}", key)] = ""
    return found


def change_elements(table: str, before: Elements, after: Elements) -> str:
    """Commands that lead from one to the other."""
    gone = [element for element, value in before.items() if after.get(element) != value]
    new = {element: value for element, value in after.items() if before.get(element) != value}
    lines = [*(_delete(table, element) for element in gone), *(_add(table, *each) for each in new.items())]
    return "".join(f"{line}\n" for line in lines)


def _add(table: str, element: Element, value: str) -> str:
    mapped = f" : {value}" if value else ""
    return f"add element {table} {element.name} {{ {element.key}{mapped} }}"


def _delete(table: str, element: Element) -> str:
    return f"delete element {table} {element.name} {{ {element.key} }}"


def _places(bridge: BridgeRules) -> dict[Element, str]:
    """Where the base chains find the bridge's own."""
    device = bridge.device
    found = {Element("bridges", f'"{device}"'): "", Element("to_bridge", f'"{device}"'): f"goto to-{device}"}
    if bridge.internal:
        found[Element("from_bridge", f'"{device}"')] = f"jump from-{device}"
    for subnet in _translated(bridge):
        found[Element(f"leaving_ipv{subnet.version}", str(subnet))] = f"goto leaving{subnet.version}-{device}"
    return found


def _chains(bridge: BridgeRules) -> dict[str, list[str]]:
    device = bridge.device
    found = {f"to-{device}": list(_arrivals(bridge))}
    if bridge.internal:
        found[f"from-{device}"] = [f'oifname != "{device}" drop']
    for subnet in _translated(bridge):
        found[f"leaving{subnet.version}-{device}"] = list(_departures(bridge, subnet.version))
    return found


def _translated(bridge: BridgeRules) -> list[IPNetwork]:
    """Subnets whose packets may take the host's address."""
    return [] if bridge.internal else [each for each in bridge.subnets if bridge.mode(each.version) != "routed"]


def _arrivals(bridge: BridgeRules) -> Iterator[str]:
    """What may be forwarded to the bridge."""
    device = bridge.device
    if bridge.internal:
        yield f'iifname "{device}" accept'
        yield "drop"
        return
    if not bridge.icc:  # what the bridge itself passes between its ports, it does not (SetReflecting)
        yield f'iifname "{device}" ct status dnat accept'
        yield f'iifname "{device}" drop'
    yield f'iifname "{device}" accept'
    yield "ct state established,related accept"
    yield "ct status dnat accept"
    for version in sorted({subnet.version for subnet in bridge.subnets}):
        yield from _direct(bridge, version)
    yield "drop"


def _direct(bridge: BridgeRules, version: int) -> Iterator[str]:
    """Packets to the containers' own addresses, from whoever has a route."""
    family, icmp = ("ip", "icmp") if version == 4 else ("ip6", "icmpv6")
    opened = f"{family} daddr . meta l4proto . th dport @opened_ipv{version} accept"
    mode = bridge.mode(version)
    if mode == "nat-unprotected":
        yield f"meta nfproto ipv{version} accept"
    elif mode == "routed":
        yield f"meta nfproto ipv{version} meta l4proto {icmp} accept"
        yield opened
    elif bridge.trusted_interfaces:
        names = ", ".join(f'"{name}"' for name in bridge.trusted_interfaces)
        yield f"iifname {{ {names} }} {opened}"


def _departures(bridge: BridgeRules, version: int) -> Iterator[str]:
    device = bridge.device
    yield f'oifname "{device}" ct status dnat masquerade'
    if bridge.masquerade:
        family = "ip" if version == 4 else "ip6"
        source = next((str(each) for each in bridge.sources if each.version == version), "")
        yield f'oifname != "{device}" ' + (f"snat {family} to {source}" if source else "masquerade")
