"""The rules of one engine's bridges in the kernel: changed by what changed, put back whole when they are not as they should be.

What is wanted is kept here: bridges by device, and elements of the maps by endpoint. A change is carried out alone, in one
transaction, so that it costs the same however much else there is. Where the kernel refuses one, something in the table is not
as it was left, and the whole of it is put in place, in one transaction as well: at no moment is anything open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from base.tasks import OwnedTasks
from runtime.errors import HostError
from runtime.kernel.network import KernelNetwork
from runtime.networks import rules
from runtime.networks.forwarding import Forwarding
from runtime.networks.rules import BridgeRules, Elements, PublishedPort

log = structlog.get_logger(__name__)

MEND_DELAY_S = 0.1


class Firewall:
    """
    Args:
        name: the engine's among those of its network namespace.
        run: a folder that goes with a reboot.
    """

    def __init__(self, kernel: KernelNetwork, name: str, run: Path) -> None:
        self._kernel, self._table = kernel, rules.table_name(name)
        self._forwarding = {
            4: Forwarding(kernel, 4, run / "forwarding"),
            6: Forwarding(kernel, 6, run / "forwarding-ipv6"),
        }
        self._bridges: dict[str, BridgeRules] = {}
        self._elements: dict[str, Elements] = {}
        self._is_current = False
        """Whether the kernel has just what is wanted, as far as we know."""
        self._lock = asyncio.Lock()
        self._tasks = OwnedTasks()
        self._mending: asyncio.Task[None] | None = None
        self._end_watch: Callable[[], None] | None = None

    def note(self, bridge: BridgeRules, owner: str, ports: Sequence[PublishedPort]) -> None:
        """Of what ran on while the daemon was away: in the kernel with the first change."""
        self._bridges[bridge.device] = bridge
        self._elements[owner] = rules.port_elements(bridge, ports)

    async def add(self, bridge: BridgeRules) -> None:
        """Rules for a bridge, and then forwarding. Raises HostError, OSError: nothing of it is wanted any more."""
        async with self._lock:
            is_new = bridge.device not in self._bridges
            self._bridges[bridge.device] = bridge
            try:
                forwarding = "".join([await each.commands_for([bridge.device]) for each in self._of(bridge)])
                # Rules first: at no moment does the host forward without them.
                await self._change((rules.add_bridge(self._table, bridge) if is_new else "") + forwarding)
                for each in self._of(bridge):
                    await each.switch_on()
            except (HostError, OSError):
                if is_new:
                    del self._bridges[bridge.device]
                    self._is_current = False
                raise
            self._watch()

    async def remove(self, bridge: BridgeRules) -> None:
        """Idempotent. With the last bridge the table goes, and forwarding is as it was. Raises HostError, OSError."""
        async with self._lock:
            is_known = self._bridges.pop(bridge.device, None) is not None
            for each in self._forwarding.values():
                await each.leave(bridge.device)
            if not self._bridges:
                self._is_current = False
                await self._kernel.run_rules(f"add table {self._table}\ndelete table {self._table}\n")
            elif is_known or not self._is_current:
                await self._change(rules.remove_bridge(self._table, bridge))

    async def publish(self, bridge: BridgeRules, owner: str, ports: Sequence[PublishedPort]) -> None:
        """These and no others lead to the owner. Raises HostError: the kernel may have what there was before."""
        async with self._lock:
            before, after = self._elements.get(owner, {}), rules.port_elements(bridge, ports)
            if after:
                self._elements[owner] = after
            else:
                self._elements.pop(owner, None)
            if before != after or not self._is_current:
                await self._change(rules.change_elements(self._table, before, after))

    def close(self) -> None:
        """Stop looking after them; they stay."""
        if self._end_watch:
            self._end_watch()
            self._end_watch = None
        if self._mending:
            self._mending.cancel()

    def _of(self, bridge: BridgeRules) -> list[Forwarding]:
        """Of the address families that it has; an internal network needs none."""
        return [] if bridge.internal else [self._forwarding[each.version] for each in bridge.subnets]

    async def _change(self, commands: str) -> None:
        """Under the lock, with what is wanted changed."""
        if self._is_current:
            if not commands:
                return
            self._is_current = False
            try:
                await self._kernel.run_rules(commands)
            except HostError as error:
                log.warning("rules.change_refused", reason=str(error))
            else:
                self._is_current = True
                return
        if self._bridges:
            await self._replace()

    async def _replace(self) -> None:
        whole = rules.whole(self._table, self._bridges.values(), self._elements.values())
        await self._kernel.run_rules(whole + await self._forwarding_commands())
        self._is_current = True

    async def _forwarding_commands(self) -> str:
        commands = ""
        for version, forwarding in self._forwarding.items():
            devices = [
                bridge.device
                for bridge in self._bridges.values()
                if not bridge.internal and any(subnet.version == version for subnet in bridge.subnets)
            ]
            commands += await forwarding.commands_for(devices)
        return commands

    def _watch(self) -> None:
        """Others flush the ruleset, nftables.service for one at each reload: ours is put back."""
        if self._end_watch is None:
            try:
                self._end_watch = self._kernel.watch_rules(self._mend_soon)
            except OSError as error:
                log.warning("rules.unwatched", error=str(error))

    def _mend_soon(self) -> None:
        if self._mending is None or self._mending.done():
            self._mending = self._tasks.spawn(self._mend(), name="rules of bridges")

    async def _mend(self) -> None:
        # What goes in one transaction may come back in the next, and our own replacements are told of too.
        await asyncio.sleep(MEND_DELAY_S)
        async with self._lock:
            try:
                if not self._bridges:
                    return
                if self._table not in await self._kernel.tables():
                    await self._replace()
                    log.warning("rules.restored", table=self._table)
                elif commands := await self._forwarding_commands():
                    await self._kernel.run_rules(commands)
            except (OSError, HostError) as error:
                self._is_current = False
                log.warning("rules.not_restored", table=self._table, error=str(error))
