"""The virtual IPs of one network, in the namespace of each of its containers here.

All of them have the same rules (``balancing.Rules``), so what is to be done is decided once and carried out in each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

import structlog

from runtime.errors import HostError
from runtime.kernel.network import FlowPattern, IPAddress, KernelNetwork, Translation
from worker.network.balancing import NOBODY, Balance, Rules, balance_of, departures
from worker.network.types import BalancedService, LocalEndpoint, NetworkID

log = structlog.get_logger(__name__)

SYSCTLS = {"netfilter/nf_conntrack_tcp_be_liberal": "1"}
"""Of a container: an answer out of its window is led back all the same, or it would arrive from an address that was not
called and end the connection (that is how kube-proxy lost some: kubernetes issue 74839)."""


class Balances:
    """What is told of a network's services, and which containers have which rules.

    Args:
        suspected: called when a table has gone in a container, ours or not; ``check`` is to follow.
    """

    def __init__(self, network_id: NetworkID, suspected: Callable[[LocalEndpoint], None]) -> None:
        self._table = f"overlay-{network_id[:12]}"
        self._services: dict[IPAddress, BalancedService] = {}
        self._rules = {4: Rules(self._table, 4)}
        self._here: set[IPAddress] = set()
        self._touched: set[IPAddress] = set()
        self._loaded: set[str] = set()
        self._suspected = suspected
        self._end_watches: dict[str, Callable[[], None]] = {}
        self._are_told = False

    # ---- what is wanted --------------------------------------------------------------------------------------------

    def set(self, services: Iterable[BalancedService]) -> None:
        """Every service."""
        wanted = {service.vip: service for service in services}
        known = wanted.keys() | self._services.keys()
        self._touched |= {vip for vip in known if wanted.get(vip) != self._services.get(vip)}
        self._services, self._are_told = wanted, True

    def change(self, changed: Iterable[BalancedService], gone: Iterable[IPAddress]) -> None:
        """Some of them."""
        for vip in gone:  # first, as another may have it now
            self._services.pop(vip, None)
            self._touched.add(vip)
        for service in changed:
            self._services[service.vip] = service
            self._touched.add(service.vip)

    def forget(self) -> None:
        """All, until told again."""
        self._touched |= self._services.keys()
        self._services, self._are_told = {}, False

    def note_here(self, addresses: Collection[IPAddress], *, here: bool) -> None:
        """An endpoint is on this node, or no more: some services prefer those."""
        self._here = self._here | set(addresses) if here else self._here - set(addresses)
        self._touched |= {vip for vip, service in self._services.items() if service.local_first}

    # ---- in the containers -----------------------------------------------------------------------------------------

    async def load(self, kernel: KernelNetwork, endpoint: LocalEndpoint) -> None:
        """All rules for a container that has none. Raises OSError, HostError."""
        if endpoint.id in self._loaded:
            return
        await kernel.set_sysctls(SYSCTLS, endpoint.sandbox)
        await kernel.run_rules("".join(rules.whole() for rules in self._rules.values()), endpoint.sandbox)
        self._loaded.add(endpoint.id)
        if endpoint.id not in self._end_watches:
            watch = kernel.watch_rules(lambda: self._suspected(endpoint), endpoint.sandbox)
            self._end_watches[endpoint.id] = watch

    async def check(self, kernel: KernelNetwork, endpoint: LocalEndpoint) -> bool:
        """Whether a container has the rules it was given; one that flushed them gets them again with the next pass.

        Raises OSError, HostError.
        """
        tables = await kernel.tables(endpoint.sandbox)
        if endpoint.id in self._loaded and not tables.issuperset(rules.table for rules in self._rules.values()):
            self._loaded.discard(endpoint.id)
        return endpoint.id in self._loaded

    def close(self) -> None:
        """Watch no container any more."""
        for end in self._end_watches.values():
            end()
        self._end_watches.clear()

    async def bring_forward(self, kernel: KernelNetwork, endpoints: Collection[LocalEndpoint]) -> None:
        """What was told since the last time, in every container. Raises OSError, HostError once all were tried.

        Containers that were adopted keep the rules they have until the services are told; then they get them as they
        should be, and no flow stays that those would not lead so.
        """
        commands, gone = self._decide()
        strangers = [each for each in endpoints if each.id not in self._loaded] if self._are_told else []
        others = [endpoint for endpoint in endpoints if endpoint.id in self._loaded]
        work = [self._load_adopted(kernel, endpoint) for endpoint in strangers]
        if commands or gone:
            work += [self._carry_out(kernel, endpoint, commands, gone) for endpoint in others]
        failures = [each for each in await asyncio.gather(*work, return_exceptions=True) if each is not None]
        for failure in failures:
            raise failure

    async def unload(self, kernel: KernelNetwork, endpoint: LocalEndpoint) -> None:
        """Take the rules out of a container that may go on. Raises OSError, HostError."""
        self._loaded.discard(endpoint.id)
        if end := self._end_watches.pop(endpoint.id, None):
            end()
        if await kernel.has_namespace(endpoint.sandbox):
            tables = (rules.table for rules in self._rules.values())
            await kernel.run_rules(
                "".join(f"add table {each}\ndelete table {each}\n" for each in tables), endpoint.sandbox
            )

    def _decide(self) -> tuple[str, list[FlowPattern]]:
        touched, self._touched = self._touched, set()
        commands: list[str] = []
        gone: list[FlowPattern] = []
        for version in (4, 6):
            wanted: dict[IPAddress, Balance | None] = {}
            for vip in touched:
                if vip.version != version:
                    continue
                before = self._rules_of(version).balance(vip)
                service = self._services.get(vip)
                wanted[vip] = balance_of(service, self._here, before) if service else None
                gone += departures(vip, before, wanted[vip] or NOBODY)
            if wanted:
                commands.append(self._rules_of(version).change(wanted))
        return "".join(commands), gone

    def _rules_of(self, version: int) -> Rules:
        if version not in self._rules:
            self._rules[version] = Rules(self._table, version)
            self._loaded.clear()  # nobody has this table yet
        return self._rules[version]

    async def _carry_out(
        self, kernel: KernelNetwork, endpoint: LocalEndpoint, commands: str, gone: Collection[FlowPattern]
    ) -> None:
        try:
            if commands:
                await kernel.run_rules(commands, endpoint.sandbox)
        except (OSError, HostError):
            self._loaded.discard(endpoint.id)
            raise
        if gone:
            await kernel.forget_translations(gone, endpoint.sandbox)

    async def _load_adopted(self, kernel: KernelNetwork, endpoint: LocalEndpoint) -> None:
        await self.load(kernel, endpoint)
        flows = await kernel.translations(endpoint.sandbox)
        if gone := [pattern for flow in flows if (pattern := self._stale(flow))]:
            await kernel.forget_translations(gone, endpoint.sandbox)

    def _stale(self, flow: Translation) -> FlowPattern | None:
        balance = (
            self._rules[flow.address.version].balance(flow.address) if flow.address.version in self._rules else NOBODY
        )
        if flow.address not in self._services or flow.target in balance.known:
            return None
        return FlowPattern(address=flow.address, target=flow.target)
