"""Addresses that containers asked for by name: theirs while they exist, stopped or not. No I/O.

An address may be asked for by several, as when a container is made that is to take another's place: it is the first
one's until that is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from runtime.kernel.network import IPAddress
from runtime.networks.sandbox import static_addresses
from runtime.types import EndpointSettings


class Reservations:
    """Who asked for which address, by name of the network. Follows the containers' records."""

    def __init__(self) -> None:
        self._asked: dict[str, dict[IPAddress, list[str]]] = {}
        self._by_container: dict[str, set[str]] = {}

    def ask(self, container_id: str, endpoints: Mapping[str, EndpointSettings]) -> None:
        """What a container asks of its networks, by name. Idempotent."""
        for network, settings in endpoints.items():
            for address in static_addresses(settings):
                waiting = self._asked.setdefault(network, {}).setdefault(address, [])
                if container_id not in waiting:
                    waiting.append(container_id)
                self._by_container.setdefault(container_id, set()).add(network)

    def drop(self, container_id: str, network: str | None = None) -> None:
        """Of one network, or of all that the container asked of. Idempotent."""
        networks = self._by_container.get(container_id, set())
        for name in [network] if network is not None else list(networks):
            asked = self._asked.get(name, {})
            for address, waiting in list(asked.items()):
                if container_id in waiting:
                    waiting.remove(container_id)
                if not waiting:
                    del asked[address]
            if not asked:
                self._asked.pop(name, None)
            networks.discard(name)
        if not networks:
            self._by_container.pop(container_id, None)

    def holder(self, network: str, address: IPAddress) -> str | None:
        """The container whose address it is."""
        waiting = self._asked.get(network, {}).get(address)
        return waiting[0] if waiting else None

    def of(self, network: str) -> Collection[IPAddress]:
        """All that were asked for; a view that follows."""
        return self._asked.get(network, {}).keys()
