"""The routing mesh as rules of a host: pure, and at the cost of what changes.

A client calls a published port on any node, the entry. The entry leads it to a task of its own, or over the mesh (a VXLAN
device with an address a node) to the same port of a node that has one; that node leads it to its task. Nobody changes the
source, so the task sees the client; the answer must go back by the entry, which knows the flow:

- Packets that come over the mesh are tracked in a zone that is the entry's number, from their source MAC. So the same
  client's port may come by two entries at once, and the zone says later which one it was.
- Answers of such flows come in from the bridge of the tasks; the zone gives them a mark, the mark a route over the mesh, and
  at the mesh's bridge the MAC of the entry. (The rule of the route names the incoming device too: the packets of the VXLAN
  device inherit the mark of what they carry, and would loop.)

So there are three elements a node, and two or three a place of a task on its own node or as seen from an entry; the rules
are as many for one service and one node as for all. A place is one of n among which ``numgen`` draws, as in ``balancing``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import TypeAlias

import msgspec

from runtime.kernel.network import FlowPattern
from runtime.networks.addresses import mac_for
from worker.network.balancing import PLACES_MAX, UDP, arranged, lowest_terms
from worker.network.elements import Elements, commands
from worker.network.types import IngressPort

Target: TypeAlias = tuple[IPv4Address, int]
"""Where a packet is led: address and port."""
Key: TypeAlias = tuple[str, int]
"""A published port: protocol and number."""
MARK, MARK_MASK, ROUTE_TABLE = 0x53570000, 0xFFFF0000, 0x5357
_PROTOCOLS = {"tcp": 6, "udp": UDP, "sctp": 132}
_PORT_KEYS = {
    "any": ("meta l4proto . th dport", "inet_proto . inet_service"),
    "chosen": ("ip daddr . meta l4proto . th dport", "ipv4_addr . inet_proto . inet_service"),
    "here": ("meta l4proto . th dport", "inet_proto . inet_service"),
}
"""Of published ports, by what they are for: any address of the node, chosen ones, and what comes over the mesh."""


class MeshPlace(msgspec.Struct, frozen=True):
    """This node in the mesh: its address there, the network of all such, and what its devices are called.

    ``gateway`` is no node's: what is routed over the mesh goes to it by name, and to an entry in truth. ``tasks`` is the
    bridge by which tasks are reached.
    """

    address: IPv4Address
    network: IPv4Network
    gateway: IPv4Address
    bridge: str = "swarm-mesh"
    vxlan: str = "swarm-mesh-vx"
    tasks: str = "docker_gwbridge"

    def number(self, node: IPv4Address) -> int:
        """That of a node: its zone, and the end of its mark."""
        return (int(node) - int(self.network.network_address)) & ~MARK_MASK


class Spread(msgspec.Struct, frozen=True):
    """Where a published port leads: from clients of this node, and from other nodes to the tasks here.

    ``known`` are all targets that have a backend, ``draining`` those whose backends get nothing new.
    """

    addresses: tuple[IPv4Address, ...] = ()
    places: tuple[Target, ...] = ()
    here: tuple[Target, ...] = ()
    known: frozenset[Target] = frozenset()
    draining: frozenset[Target] = frozenset()


NOWHERE = Spread()


def spread_of(port: IngressPort, place: MeshPlace, before: Spread = NOWHERE) -> Spread:
    """The places of a port, of which as many stay as they are as can be."""
    weights: Counter[Target] = Counter()
    own: Counter[Target] = Counter()
    for backend in port.backends:
        if backend.node != place.address:
            weights[backend.node, port.published] += max(0, backend.weight)
        elif backend.address is not None:
            own[backend.address, port.target] += max(0, backend.weight)
    known = frozenset(weights) | frozenset(own)
    draining = frozenset(target for target in known if weights[target] + own[target] == 0)
    # Other nodes may not have heard yet: while a task is here, whoever they send is served, by one that stops or begins too.
    served = +own or Counter(dict.fromkeys(own, 1))
    own, weights = +own, +weights
    everybody = own if port.local_first and own else own + weights
    return Spread(
        addresses=port.addresses,
        places=arranged(before.places, lowest_terms(everybody)),
        here=arranged(before.here, lowest_terms(served)),
        known=known,
        draining=draining,
    )


def departures(key: Key, before: Spread, after: Spread) -> list[FlowPattern]:
    """Flows that have to end or to be led anew; see ``balancing.departures``."""
    protocol, port = _PROTOCOLS[key[0]], key[1]
    gone = before.known - after.known
    if protocol == UDP:
        gone |= after.draining - before.draining
    return [FlowPattern(target=address, protocol=protocol, port=port) for address, _ in gone]


class MeshRules:
    """The tables of the mesh on one node, as commands: what is in them is known here."""

    def __init__(self, place: MeshPlace) -> None:
        self._place = place
        self._table, self._frames = f"ip {place.bridge}", f"bridge {place.bridge}"
        self._spreads: dict[Key, Spread] = {}
        self._nodes: set[IPv4Address] = set()
        self._sizes: set[tuple[str, str, int]] = set()

    @property
    def tables(self) -> tuple[str, str]:
        """Family and name."""
        return self._table, self._frames

    def spread(self, key: Key) -> Spread:
        """Where a port leads by now."""
        return self._spreads.get(key, NOWHERE)

    def keys(self) -> Iterable[Key]:
        """Every published port."""
        return self._spreads.keys()

    def change(
        self, spreads: Mapping[Key, Spread | None], come: Iterable[IPv4Address], gone: Iterable[IPv4Address]
    ) -> str:
        """Commands for these ports, None for one that is no more, and for nodes that come and go; "" for nothing to do.

        They count as carried out: after some that failed only ``whole`` helps.
        """
        sizes, deletions, additions = "", "", ""
        for key, spread in spreads.items():
            old, new = _elements(key, self._spreads.get(key)), _elements(key, spread)
            less, more = commands(self._table, old, new)
            deletions, additions = deletions + less, additions + more
            if spread is None:
                self._spreads.pop(key, None)
                continue
            self._spreads[key] = spread
            for size in _sizes(key, spread) - self._sizes:
                self._sizes.add(size)
                sizes += self._size(*size)
        for node in set(gone) & self._nodes:
            deletions += "".join(commands(table, each, {})[0] for table, each in self._node(node))
            self._nodes.discard(node)
        for node in set(come) - self._nodes:
            additions += "".join(commands(table, {}, each)[1] for table, each in self._node(node))
            self._nodes.add(node)
        return sizes + deletions + additions

    def whole(self) -> str:
        """Commands that put both tables in place, whatever was there before, in one transaction."""
        elements: dict[str, dict[tuple[str, str], str]] = {table: {} for table in self.tables}
        for key, spread in self._spreads.items():
            elements[self._table].update(_elements(key, spread))
        for node in sorted(self._nodes):
            for table, each in self._node(node):
                elements[table].update(each)
        sizes = (self._size(*size) for size in sorted(self._sizes))
        return "".join((self._empty(), *sizes, *(commands(table, {}, each)[1] for table, each in elements.items())))

    def removal(self) -> str:
        """Commands that take both tables away."""
        return "".join(f"add table {table}\ndelete table {table}\n" for table in self.tables)

    def _node(self, node: IPv4Address) -> tuple[tuple[str, Elements], tuple[str, Elements]]:
        """A node's elements, by table."""
        number, mac = self._place.number(node), mac_for(node)
        here = {("zones", mac): f"{number}", ("marks", f"{number}"): f"{MARK | number:#x}"}
        return (self._table, here), (self._frames, {("entries", f"{MARK | number:#x}"): mac})

    def _size(self, kind: str, protocol: str, count: int) -> str:
        chain = f"{self._table} {kind}-{protocol}-{count}"
        rule = f"dnat ip to {_place_key(kind, protocol)} . numgen random mod {count} map @{kind}_{protocol}_places"
        return f"add chain {chain}\nadd rule {chain} {rule}\n"

    def _empty(self) -> str:
        mesh, tasks, vxlan, own = self._place.bridge, self._place.tasks, self._place.vxlan, self._place.address
        # Places are of one protocol, as nft (1.0.6) cannot read a map of "typeof th dport" again.
        maps = "".join(
            f"  map {kind}_{protocol}_places {{ typeof {_place_key(kind, protocol)} . numgen random mod {PLACES_MAX}"
            f" : ip daddr . {protocol} dport; }}\n"
            for kind in _PORT_KEYS
            for protocol in _PROTOCOLS
        ) + "".join(f"  map {kind}_ports {{ type {types} : verdict; }}\n" for kind, (_, types) in _PORT_KEYS.items())
        return (
            "".join(f"add table {table}\ndelete table {table}\n" for table in self.tables)
            + f"""table {self._table} {{
{maps}  map zones {{ typeof ether saddr : ct zone; }}
  map marks {{ typeof ct zone : meta mark; }}
  chain guard {{
    type filter hook prerouting priority raw; policy accept;
    iifname != "lo" ip daddr 127.0.0.0/8 drop
    iifname != "lo" ip saddr 127.0.0.0/8 drop
    iifname "{mesh}" ct original zone set ether saddr map @zones
  }}
  chain back {{
    type filter hook prerouting priority mangle; policy accept;
    iifname "{tasks}" ct direction reply ct original ip daddr {own} meta mark set ct original zone map @marks
  }}
  chain publish {{
    {_PORT_KEYS["chosen"][0]} vmap @chosen_ports
    {_PORT_KEYS["any"][0]} vmap @any_ports
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "{mesh}" ip daddr {own} {_PORT_KEYS["here"][0]} vmap @here_ports
    iifname "{mesh}" return
    fib daddr type local jump publish
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    fib daddr type local jump publish
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{mesh}" ip saddr 127.0.0.0/8 snat to {own}
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname != "{mesh}" accept
    ct state established,related accept
    meta l4proto tcp reject with tcp reset
    drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifname "{mesh}" tcp flags syn / syn,rst tcp option maxseg size set rt mtu
    iifname != "{mesh}" oifname != "{mesh}" accept
    ct state invalid drop
    ct state established,related accept
    ct status dnat accept
    drop
  }}
}}
table {self._frames} {{
  map entries {{ type mark : ether_addr; }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "{vxlan}" meta mark & {MARK_MASK:#x} == {MARK:#x} ether daddr set meta mark map @entries meta mark set 0
  }}
}}
"""
        )


def _place_key(kind: str, protocol: str) -> str:
    return f"ip daddr . {protocol} dport" if kind == "chosen" else f"{protocol} dport"


def _elements(key: Key, spread: Spread | None) -> Elements:
    if spread is None:
        return {}
    found = _of("here", key, "", spread.here)
    if spread.addresses:
        for address in spread.addresses:
            found |= _of("chosen", key, f"{address} . ", spread.places)
    else:
        found |= _of("any", key, "", spread.places)
    return found


def _of(kind: str, key: Key, address: str, places: tuple[Target, ...]) -> dict[tuple[str, str], str]:
    if not places:
        return {}
    protocol, port = key
    name = f"{kind}_{protocol}_places"
    found = {(name, f"{address}{port} . {number}"): f"{each[0]} . {each[1]}" for number, each in enumerate(places)}
    return {(f"{kind}_ports", f"{address}{protocol} . {port}"): f"goto {kind}-{protocol}-{len(places)}", **found}


def _sizes(key: Key, spread: Spread) -> set[tuple[str, str, int]]:
    kinds = {"chosen" if spread.addresses else "any": spread.places, "here": spread.here}
    return {(kind, key[0], len(places)) for kind, places in kinds.items() if places}
