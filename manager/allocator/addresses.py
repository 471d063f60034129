"""Which addresses of a network are whose. A pure value: what it is told changes it, and nothing else.

Addresses stand in the objects that have them: tasks, services, nodes. This is what the leader keeps of that, so that a
new one costs the same however many there are: it is told of each object as it changes (``settle``), and a new leader tells
it of all. So an address is never given twice, by leaders in a row either, and what is gone has given back what it had.

Addresses are handed out in turn, not lowest first: one that was given back rests as long as possible, because somebody may
still hold a connection to it, or an answer with it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from manager.allocator.networks import IPNetwork, NoRoomError
from proto.objects_pb2 import Network, NetworkAttachment
from proto.specs_pb2 import IPAMConfig

Owner = tuple[str, str]
"""(kind, ID) of an object."""


@dataclass
class _Pool:
    """A subnet; addresses are numbers here, there are many.

    Attributes:
        first, last: what is handed out, but for what is reserved.
        owners: of those that are handed out, and of reserved ones that somebody has all the same.
        following: where the search for the next begins; 0 before the first.
    """

    subnet: IPNetwork
    first: int
    last: int
    reserved: frozenset[int]
    following: int = 0
    owners: dict[int, Owner] = field(default_factory=dict)

    @classmethod
    def of(cls, config: IPAMConfig) -> _Pool:
        subnet = ipaddress.ip_network(config.subnet)
        given = ipaddress.ip_network(config.range) if config.range else subnet
        # The network's own address and, of IPv4, the one for all.
        first = max(int(given.network_address), int(subnet.network_address) + 1)
        last = min(int(given.broadcast_address), int(subnet.broadcast_address) - (subnet.version == 4))
        others = (config.gateway, *config.auxiliary_addresses.values())
        reserved = frozenset(int(ipaddress.ip_address(address)) for address in others if address)
        return cls(subnet, first, last, reserved)

    @property
    def size(self) -> int:
        return self.last - self.first + 1 - sum(1 for each in self.reserved if self.first <= each <= self.last)

    def holds(self, number: int, version: int) -> bool:
        low, high = int(self.subnet.network_address), int(self.subnet.broadcast_address)
        return version == self.subnet.version and low <= number <= high

    def free(self) -> int | None:
        """The next that nobody has."""
        if len(self.owners) >= self.size:
            return None
        # A new leader does not know what was given back last: it goes on behind all that is taken.
        number = self.following or max(self.owners, default=self.first - 1) + 1
        for _ in range(len(self.owners) + len(self.reserved) + 1):
            if not self.first <= number <= self.last:
                number = self.first
            if number not in self.owners and number not in self.reserved:
                return number
            number += 1
        return None

    def text(self, number: int) -> str:
        address = ipaddress.ip_address(number.to_bytes(self.subnet.max_prefixlen // 8, "big"))
        return f"{address}/{self.subnet.prefixlen}"


@dataclass
class _Held:
    """A network; ``early`` are attachments that were told of before the network was."""

    name: str = ""
    pools: list[_Pool] = field(default_factory=list)
    early: dict[Owner, NetworkAttachment] = field(default_factory=dict)


class Addresses:
    """The addresses of all networks."""

    def __init__(self) -> None:
        self._networks: dict[str, _Held] = {}
        self._attachments: dict[Owner, dict[str, NetworkAttachment]] = {}

    def put_network(self, network: Network) -> None:
        """It is there, with its subnets, which do not change."""
        held = self._networks.setdefault(network.id, _Held())
        held.name = network.spec.name
        if held.pools:
            return
        held.pools = [_Pool.of(config) for config in network.ipam.configs]
        early, held.early = held.early, {}
        for owner, attachment in early.items():
            _take(held, owner, attachment)

    def drop_network(self, network_id: str) -> None:
        """It is gone, and its addresses with it."""
        self._networks.pop(network_id, None)

    def settle(self, owner: Owner, attachments: Iterable[NetworkAttachment]) -> set[str]:
        """This is all that ``owner`` has now. Returns the IDs of the networks on which it gave something back."""
        has = {attachment.network_id: attachment for attachment in attachments if attachment.addresses}
        had = self._attachments.get(owner, {})
        if not had and not has:
            return set()
        freed = set()
        for network_id, attachment in had.items():
            if has.get(network_id) != attachment and (held := self._networks.get(network_id)) is not None:
                _give_back(held, owner, attachment)
                freed.add(network_id)
        for network_id, attachment in has.items():
            if had.get(network_id) != attachment:
                _take(self._networks.setdefault(network_id, _Held()), owner, attachment)
        if has:
            self._attachments[owner] = has
        else:
            del self._attachments[owner]
        return freed

    def allocate(self, owner: Owner, network_id: str) -> NetworkAttachment:
        """A free address of each address family that the network has, for ``owner``, who has none on it.

        Raises:
            NoRoomError: of one there is none; nothing was given.
        """
        held = self._networks.get(network_id)
        if held is None or not held.pools:
            raise NoRoomError(f"network {network_id} not found")
        addresses = []
        for version in sorted({pool.subnet.version for pool in held.pools}):
            pools = [pool for pool in held.pools if pool.subnet.version == version]
            found = next(((pool, number) for pool in pools if (number := pool.free()) is not None), None)
            if found is None:
                raise NoRoomError(
                    f"no available IPv{version} addresses on network {held.name}: "
                    + ", ".join(f"all {pool.size} of {pool.subnet} are in use" for pool in pools)
                )
            addresses.append(found[0].text(found[1]))
            found[0].following = found[1] + 1
        attachment = NetworkAttachment(network_id=network_id, addresses=addresses)
        _take(held, owner, attachment)
        self._attachments.setdefault(owner, {})[network_id] = attachment
        return attachment

    def usage(self, network_id: str) -> Mapping[str, tuple[int, int]]:
        """(in use, size) of each subnet of a network, by its text; gateways and the like are in neither."""
        held = self._networks.get(network_id, _Held())
        return {str(pool.subnet): (len(pool.owners), pool.size) for pool in held.pools}

    def differences(self, fresh: Addresses) -> Iterator[str]:
        """In what this is not as ``fresh``, which was told of everything anew; for people."""
        for network_id in self._networks.keys() | fresh._networks.keys():
            mine, theirs = (each._networks.get(network_id, _Held()).pools for each in (self, fresh))
            if [(pool.subnet, pool.owners) for pool in mine] != [(pool.subnet, pool.owners) for pool in theirs]:
                yield f"addresses of network {network_id}: {mine}, and should be {theirs}"


def _take(held: _Held, owner: Owner, attachment: NetworkAttachment) -> None:
    if not held.pools:
        held.early[owner] = attachment
        return
    for pool, number in _numbers(held, attachment):
        pool.owners.setdefault(number, owner)


def _give_back(held: _Held, owner: Owner, attachment: NetworkAttachment) -> None:
    held.early.pop(owner, None)
    for pool, number in _numbers(held, attachment):
        if pool.owners.get(number) == owner:
            del pool.owners[number]


def _numbers(held: _Held, attachment: NetworkAttachment) -> Iterator[tuple[_Pool, int]]:
    for text in attachment.addresses:
        address = ipaddress.ip_interface(text).ip
        number, version = int(address), address.version
        yield from ((pool, number) for pool in held.pools if pool.holds(number, version))
