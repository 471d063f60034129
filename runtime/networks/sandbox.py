"""What is decided about a container's networks taken together: pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from runtime.types import EndpointSettings


def gateway_network(wanted: Mapping[str, EndpointSettings]) -> str:
    """The network to get the default route and the published ports, of those that could; "" of none.

    The highest ``GwPriority``, among equals the first by name (moby daemon/libnetwork, ``Endpoint.Less``).
    """
    return min(wanted, key=lambda name: (-wanted[name].GwPriority, name), default="")


def interface_names() -> Iterator[str]:
    """Devices inside a container in the order of its networks: eth0, eth1, ..."""
    return (f"eth{number}" for number in itertools.count())
