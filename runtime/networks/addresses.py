"""Addresses of one subnet: which are free, and the MAC that goes with one. No I/O."""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from typing import TypeAlias

from runtime.errors import InvalidParameterError, UnavailableError
from runtime.kernel.network import IPAddress

IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddressPool:
    """Hands out host addresses of a subnet in turn.

    In turn rather than lowest first, so that an address rests as long as possible before somebody else has it: the
    kernel takes a dead container's link away a little later, and peers still hold connections to it.

    Args:
        part: what of the subnet is handed out unasked; all of it by default.
        reserved: addresses of others in it, the gateway's among them.
    """

    def __init__(self, subnet: IPNetwork, part: IPNetwork | None = None, reserved: Iterable[IPAddress] = ()) -> None:
        self.subnet, self._part = subnet, part or subnet
        self._reserved = {*reserved, *unusable(subnet)}
        self._taken: set[IPAddress] = set()
        self._last = int(self._part.network_address) - 1

    def allocate(self, wanted: str = "", avoid: Collection[IPAddress] = ()) -> IPAddress:
        """A free address that is none of ``avoid``, or exactly ``wanted``.

        Raises UnavailableError, InvalidParameterError.
        """
        if wanted:
            return self._exactly(wanted)
        for address in self._in_turn():
            if self.is_free(address) and address not in avoid:
                self._taken.add(address)
                self._last = int(address)
                return address
        raise UnavailableError(
            f"no available IPv{self.subnet.version} addresses on this network's address pools: {self._part} "
            f"({len(self._taken)} in use); remove containers or choose a larger subnet"
        )

    def is_free(self, address: IPAddress) -> bool:
        """Whether nobody has it; of another subnet is not free."""
        return address in self.subnet and address not in self._taken and address not in self._reserved

    def _in_turn(self) -> Iterator[IPAddress]:
        first, last = int(self._part.network_address), int(self._part.broadcast_address)
        make = type(self._part.network_address)
        return (make(each) for each in itertools.chain(range(self._last + 1, last + 1), range(first, self._last + 1)))

    def _exactly(self, wanted: str) -> IPAddress:
        try:
            address = ipaddress.ip_address(wanted)
        except ValueError:
            raise InvalidParameterError(f"invalid IPv{self.subnet.version} address: {wanted}") from None
        if address not in self.subnet or address in unusable(self.subnet):
            raise InvalidParameterError(f"no configured subnet contains IP address {wanted}")
        if not self.is_free(address):
            raise UnavailableError(f"Address already in use: {wanted}")
        self._taken.add(address)
        return address

    def adopt(self, address: IPAddress) -> None:
        """Mark as taken what a container already has; one of another subnet or address family is passed over."""
        if address in self.subnet:
            self._taken.add(address)

    def release(self, address: IPAddress) -> None:
        """Give it back. Idempotent; what is reserved stays so."""
        self._taken.discard(address)

    def __len__(self) -> int:
        """Addresses in use by endpoints."""
        return len(self._taken)


def unusable(subnet: IPNetwork) -> set[IPAddress]:
    """What no host has: the subnet itself, and the broadcast address of IPv4 (not so on a link of two, RFC 3021)."""
    if subnet.version == 6:
        return {subnet.network_address}
    return {subnet.network_address, subnet.broadcast_address} if subnet.prefixlen < 31 else set()


def mac_for(address: IPAddress) -> str:
    """A locally administered MAC that goes with the address (an IPv6 one's end), as dockerd makes it."""
    return (b"\x02\x42" + address.packed[-4:]).hex(":")


def parse_mac(text: str) -> str:
    """``02:42:ac:11:00:02`` of that or with dashes, as Go's ParseMAC reads six bytes. Raises InvalidParameterError."""
    if not re.fullmatch(r"[0-9a-fA-F]{2}(?:([:-])[0-9a-fA-F]{2})(?:\1[0-9a-fA-F]{2}){4}", text):
        raise InvalidParameterError(f"invalid MAC address: {text[:100]!r}")
    return text.replace("-", ":").lower()
