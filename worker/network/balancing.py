"""Who is behind a virtual address, as rules: pure, and at the cost of what changes.

Two maps hold everything. ``places`` has a backend for each (virtual address, number), ``virtual`` leads an address that has
n backends to the chain ``of-n``, whose one rule draws a number below n and looks it up. So a backend that comes or goes is
two or three elements in one transaction, whatever else there is, and the rules that a packet meets are as many for one
service as for a thousand. A backend with a weight has several numbers. An address without a live backend is refused at
once instead of being asked for on the network.

Tried: nft 1.0.6 and Linux 6.18. A chain a service would do without ``numgen`` in a concatenation, but libnftables reads the
names of all chains and maps before each command; a fixed number of places for each address would be unfair.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from runtime.kernel.network import FlowPattern, IPAddress
from worker.network.elements import Elements, commands
from worker.network.types import Backend, BalancedService

K = TypeVar("K", bound=Hashable)
UDP = 17
PLACES_MAX = 65536
"""Of one virtual address: the width of the numbers in ``places``."""


class Balance(msgspec.Struct, frozen=True):
    """What a virtual address leads to: one entry a place, of backends that are ``known``; ``draining`` ones have none."""

    places: tuple[IPAddress, ...] = ()
    known: frozenset[IPAddress] = frozenset()
    draining: frozenset[IPAddress] = frozenset()


NOBODY = Balance()


def balance_of(service: BalancedService, here: Collection[IPAddress], before: Balance = NOBODY) -> Balance:
    """The places of a service, of which as many stay as they are as can be.

    Args:
        here: addresses of endpoints on this node.
        before: what it led to.
    """
    live = [backend for backend in service.backends if backend.weight > 0]
    if service.local_first:
        live = [backend for backend in live if backend.address in here] or live
    known = frozenset(backend.address for backend in service.backends)
    draining = frozenset(backend.address for backend in service.backends if backend.weight <= 0)
    return Balance(arranged(before.places, shares(live)), known, draining)


def shares(backends: Iterable[Backend]) -> Counter[IPAddress]:
    """How many places each backend has: in proportion to its weight, and as few as can be."""
    return lowest_terms(Counter({backend.address: backend.weight for backend in backends}))


def lowest_terms(weights: Counter[K]) -> Counter[K]:
    """The smallest whole numbers in the same proportion."""
    divisor = functools.reduce(math.gcd, weights.values(), 0)
    return Counter({key: weight // divisor for key, weight in weights.items()})


def arranged(before: Sequence[K], wanted: Mapping[K, int]) -> tuple[K, ...]:
    """Places for ``wanted`` that differ from those before in as few numbers as can be; the numbers have no gap."""
    left = Counter(wanted)
    places: list[K | None] = []
    for key in before:
        places.append(key if left[key] > 0 else None)
        left[key] -= 1
    new = [key for key, count in left.items() for _ in range(count)]
    gaps = [number for number, key in enumerate(places) if key is None]
    while gaps:
        if new:
            places[gaps.pop(0)] = new.pop()
        elif (last := places.pop()) is None:
            gaps.pop()
        else:
            places[gaps.pop(0)] = last
    return tuple(key for key in (*places, *new) if key is not None)


def departures(vip: IPAddress, before: Balance, after: Balance) -> list[FlowPattern]:
    """Flows that have to end, or to be led anew, when the places change from one to the other.

    One that drains keeps its connections; but what has none (UDP) would be sent there as long as packets come, past its
    end, so it is led anew at once.
    """
    ended = [FlowPattern(address=vip, target=each) for each in before.known - after.known]
    moved = after.draining - before.draining
    return ended + [FlowPattern(address=vip, target=each, protocol=UDP) for each in moved]


class Rules:
    """The table of one container on one network and of one address family, as commands: what is in it is known here."""

    def __init__(self, table: str, version: int) -> None:
        """
        Args:
            table: its name, without the family.
            version: 4 or 6, of IP.
        """
        self._family = "ip" if version == 4 else "ip6"
        self._table, self._version = f"{self._family} {table}", version
        self._balances: dict[IPAddress, Balance] = {}
        self._sizes: set[int] = set()

    @property
    def table(self) -> str:
        """Family and name."""
        return self._table

    def whole(self) -> str:
        """Commands that put the whole table in place, whatever was there before, in one transaction."""
        address = "ipv4_addr" if self._version == 4 else "ipv6_addr"
        refusal = "icmp type host-unreachable" if self._version == 4 else "icmpv6 type addr-unreachable"
        elements: dict[tuple[str, str], str] = {}
        for vip, balance in self._balances.items():
            elements.update(_elements_of(vip, balance))
        return "".join(
            (
                f"add table {self._table}\ndelete table {self._table}\n"
                f"""table {self._table} {{
  map places {{
    typeof {self._family} daddr . numgen random mod {PLACES_MAX} : {self._family} daddr
  }}
  map virtual {{
    type {address} : verdict
  }}
  set refused {{
    type {address}
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    {self._family} daddr vmap @virtual
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    {self._family} daddr vmap @virtual
  }}
  chain refuse {{
    type filter hook output priority filter; policy accept;
    {self._family} daddr @refused meta l4proto tcp reject with tcp reset
    {self._family} daddr @refused reject with {refusal}
  }}
}}
""",
                *(self._size(count) for count in sorted(self._sizes)),
                commands(self._table, {}, elements)[1],
            )
        )

    def change(self, balances: Mapping[IPAddress, Balance | None]) -> str:
        """Commands for these virtual addresses, None for one that is no more; "" when nothing is to be done.

        They count as carried out: after one that failed only ``whole`` helps.
        """
        sizes, deletions, additions = "", "", ""
        for vip, balance in balances.items():
            less, more = commands(self._table, _elements_of(vip, self._balances.get(vip)), _elements_of(vip, balance))
            deletions, additions = deletions + less, additions + more
            if balance is None:
                self._balances.pop(vip, None)
                continue
            self._balances[vip] = balance
            count = len(balance.places)
            if count and count not in self._sizes:
                self._sizes.add(count)
                sizes += self._size(count)
        return sizes + deletions + additions

    def balance(self, vip: IPAddress) -> Balance:
        """What an address leads to by now."""
        return self._balances.get(vip, NOBODY)

    def addresses(self) -> Collection[IPAddress]:
        """Every virtual address."""
        return self._balances.keys()

    def _size(self, count: int) -> str:
        number = f"{self._family} daddr . numgen random mod {count}"
        rule = f"dnat to {number} map @places"
        return f"add chain {self._table} of-{count}\nadd rule {self._table} of-{count} {rule}\n"


def _elements_of(vip: IPAddress, balance: Balance | None) -> Elements:
    if balance is None:
        return {}
    if not balance.places:
        return {("refused", f"{vip}"): ""}
    places = {("places", f"{vip} . {number}"): f"{address}" for number, address in enumerate(balance.places)}
    return {("virtual", f"{vip}"): f"goto of-{len(balance.places)}", **places}
