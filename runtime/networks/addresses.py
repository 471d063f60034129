"""Addresses of one subnet, and the choice of a subnet: no I/O."""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Collection, Iterable, Iterator

from runtime.errors import InvalidParameterError, UnavailableError
from runtime.kernel.network import IPAddress


class AddressPool:
    """Hands out host addresses of a subnet in turn; the gateway is its first one.

    In turn rather than lowest first, so that an address rests as long as possible before somebody else has it: the
    kernel takes a dead container's link away a little later, and peers still hold connections to it.
    """

    def __init__(self, subnet: ipaddress.IPv4Network) -> None:
        if subnet.prefixlen > 30:
            raise InvalidParameterError(f"subnet {subnet} is too small: want /30 or larger")
        self.subnet = subnet
        self.gateway = subnet.network_address + 1
        self._taken: set[IPAddress] = {self.gateway}
        self._last = int(self.gateway)

    def allocate(self, wanted: str = "", avoid: Collection[IPAddress] = ()) -> ipaddress.IPv4Address:
        """A free address that is none of ``avoid``, or exactly ``wanted``.

        Raises UnavailableError, InvalidParameterError.
        """
        if wanted:
            return self._exactly(wanted)
        first, last = int(self.gateway) + 1, int(self.subnet.broadcast_address)
        for number in itertools.chain(range(self._last + 1, last), range(first, self._last + 1)):
            address = ipaddress.IPv4Address(number)
            if address not in self._taken and address not in avoid:
                self._taken.add(address)
                self._last = number
                return address
        raise UnavailableError(
            f"no available IPv4 addresses on this network's address pools: {self.subnet} "
            f"({len(self._taken)} in use); remove containers or choose a larger subnet"
        )

    def _exactly(self, wanted: str) -> ipaddress.IPv4Address:
        try:
            address = ipaddress.IPv4Address(wanted)
        except ValueError:
            raise InvalidParameterError(f"invalid IPv4 address: {wanted}") from None
        if address not in self.subnet or address in (self.subnet.network_address, self.subnet.broadcast_address):
            raise InvalidParameterError(f"no configured subnet contains IP address {wanted}")
        if address in self._taken:
            raise UnavailableError(f"Address already in use: {wanted}")
        self._taken.add(address)
        return address

    def adopt(self, address: IPAddress) -> None:
        """Mark as taken what a container already has; one of another subnet or address family is passed over."""
        if address in self.subnet:
            self._taken.add(address)

    def release(self, address: IPAddress) -> None:
        """Give it back. Idempotent; the gateway stays."""
        if address != self.gateway:
            self._taken.discard(address)

    def __len__(self) -> int:
        """Addresses in use, the gateway among them."""
        return len(self._taken)


def mac_for(address: ipaddress.IPv4Address) -> str:
    """A locally administered MAC that goes with the address, as dockerd makes it."""
    return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + address.packed)


def parse_mac(text: str) -> str:
    """``02:42:ac:11:00:02`` of that or with dashes, as Go's ParseMAC reads six bytes. Raises InvalidParameterError."""
    if not re.fullmatch(r"[0-9a-fA-F]{2}(?:([:-])[0-9a-fA-F]{2})(?:\1[0-9a-fA-F]{2}){4}", text):
        raise InvalidParameterError(f"invalid MAC address: {text[:100]!r}")
    return text.replace("-", ":").lower()


def choose_subnet(wanted: ipaddress.IPv4Network, used: Iterable[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    """``wanted`` unless the host routes part of it already, else the next free private one. Raises UnavailableError."""
    taken = list(used)
    for candidate in (wanted, *_private()):
        if not any(candidate.overlaps(other) for other in taken):
            return candidate
    raise UnavailableError("could not find an available, non-overlapping IPv4 address pool among the private ones")


def _private() -> Iterator[ipaddress.IPv4Network]:
    yield from (ipaddress.IPv4Network((f"172.{second}.0.0", 16)) for second in range(17, 32))
    yield from (ipaddress.IPv4Network((f"192.168.{third}.0", 20)) for third in range(0, 256, 16))
