"""The subnets of ``network create``: which range, gateway and other addresses go with which of them. Pure.

Source: docker/cli ``cli/command/network/create.go`` (``createIPAMConfig``).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Object = dict[str, Any]


def ipam_config(
    subnets: Sequence[str], ranges: Sequence[str], gateways: Sequence[str], others: Mapping[str, str]
) -> list[Object]:
    """Objects of ``IPAM.Config``, in the order of the subnets.

    Raises:
        ValueError: in Docker's words.
    """
    if len(subnets) < len(ranges) or len(subnets) < len(gateways):
        raise ValueError("every ip-range or gateway must have a corresponding subnet")
    found: dict[str, Object] = {}
    for subnet in subnets:
        if any(_matches(subnet, known) or _matches(known, subnet) for known in found):
            raise ValueError("multiple overlapping subnet configuration is not supported")
        found[subnet] = {"Subnet": subnet}
    _distribute(found, ranges, "IPRange", ("ranges", "on", "range"))
    _distribute(found, gateways, "Gateway", ("gateways", "for", "gateway"))
    for name, address in others.items():
        for subnet in _matching(found, address, "aux-address"):
            found[subnet].setdefault("AuxiliaryAddresses", {})[name] = address
    return list(found.values())


def _distribute(found: Mapping[str, Object], texts: Iterable[str], key: str, words: tuple[str, str, str]) -> None:
    many, where, one = words
    for text in texts:
        if one == "range":
            _parsed(text)
        for subnet in _matching(found, text, one):
            if key in found[subnet]:
                raise ValueError(
                    f"cannot configure multiple {many} ({text}, {found[subnet][key]}) {where} the same subnet ({subnet})"
                )
            found[subnet][key] = text


def _matching(found: Mapping[str, Object], text: str, what: str) -> list[str]:
    subnets = [subnet for subnet in found if _matches(subnet, text)]
    if not subnets:
        raise ValueError(f"no matching subnet for {what} {text}")
    return subnets


def _matches(subnet: str, text: str) -> bool:
    """Whether the subnet has the address, or the first one of a block. Raises ValueError."""
    try:
        network = _parsed(subnet).network
    except ValueError as error:
        raise ValueError(f"invalid subnet: {error}") from None
    if "/" in text:
        return _parsed(text).ip in network
    try:
        return ipaddress.ip_address(text) in network
    except ValueError:
        return False


def _parsed(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    try:
        if "/" in text:
            return ipaddress.ip_interface(text)
    except ValueError:
        pass
    raise ValueError(f"invalid CIDR address: {text}")
