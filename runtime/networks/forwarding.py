"""Forwarding, switched on for containers alone: the host is no router for anybody else.

Containers need ``ip_forward``, and with it the host forwards between all its interfaces; so with IPv6. Where it was on already,
that is the operator's wish. Where we switched it on, a table drops what neither comes from a bridge of an engine nor goes to
one, as it was dropped before; packets to a bridge are judged by its engine's own table (``rules``). One table of each address
family serves all engines of a network namespace: each has its bridges in the table's set.

That we switched it on is known by the table. A flushed ruleset takes it away, so it is noted in a file as well; reboots take
away both, and the note has the boot's ID for run folders that outlive one. What others have in nftables is not touched: a
drop here comes on top of theirs, and an accept here is none there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable
from pathlib import Path

from base.files import read_text, write_atomic
from runtime.kernel.network import KernelNetwork

TABLES = {4: "ip forward-engines", 6: "ip6 forward-engines"}
SYSCTLS = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}
BRIDGES = "bridges"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def ruleset(table: str) -> str:
    """Commands that put the table in place without bridges.

    What others bridge is no forwarding, but passes here too with br_netfilter, and says the same bridge twice. nftables
    cannot compare the two, so two bridges of others may forward to each other.
    """
    return f"""table {table} {{
  set {BRIDGES} {{
    type ifname;
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    meta iifkind "bridge" meta oifkind "bridge" accept
    iifname != @{BRIDGES} oifname != @{BRIDGES} drop
  }}
}}
"""


def additions(table: str, bridges: Iterable[str]) -> str:
    """Commands for bridges that come; there already is fine."""
    return "".join(f'add element {table} {BRIDGES} {{ "{name}" }}\n' for name in sorted(bridges))


def removals(table: str, bridges: Collection[str], present: Collection[str]) -> tuple[str, bool]:
    """Commands for bridges that go, of those in the set, and whether forwarding is to be as it was before the first."""
    if not set(present) - set(bridges):
        return f"add table {table}\ndelete table {table}\n", True
    gone = sorted(set(present) & set(bridges))
    return "".join(f'delete element {table} {BRIDGES} {{ "{name}" }}\n' for name in gone), False


class Forwarding:
    """Switches forwarding of one address family on and off again.

    Args:
        note: a file, which is there while forwarding is on because of us.
    """

    def __init__(self, kernel: KernelNetwork, version: int, note: Path) -> None:
        self._kernel, self._version, self._note = kernel, version, note
        self._table, self._sysctl = TABLES[version], SYSCTLS[version]

    async def commands_for(self, bridges: Collection[str]) -> str:
        """What is to be in the rules before forwarding is switched on for these. Raises OSError, HostError."""
        if not bridges:
            return ""
        tables = await self._kernel.tables()
        if await self._kernel.read_sysctl(self._sysctl) != "1":
            await asyncio.to_thread(self._write_note)
        elif not (self._table in tables or await asyncio.to_thread(self._is_noted)):
            return ""
        return ("" if self._table in tables else ruleset(self._table)) + additions(self._table, bridges)

    async def switch_on(self) -> None:
        """Once the commands were carried out. Raises OSError.

        A host that forwards IPv6 takes no router's word any more, unless told to: the links that did go on doing so.
        """
        if await self._kernel.read_sysctl(self._sysctl) == "1":
            return
        values = {}
        if self._version == 6:
            names = [f"ipv6/conf/{link}/accept_ra" for link in await self._kernel.links()]
            for name in names:
                with contextlib.suppress(OSError):  # a link without IPv6, or gone
                    if await self._kernel.read_sysctl(name) == "1":
                        values[name] = "2"
        await self._kernel.set_sysctls({**values, self._sysctl: "1"})

    async def leave(self, bridge: str) -> None:
        """The bridge is gone; with the last one forwarding is as it was. Raises OSError, HostError."""
        if self._table not in await self._kernel.tables():
            return
        commands, is_last = removals(self._table, {bridge}, await self._kernel.names_in(self._table, BRIDGES))
        if is_last:
            await self._kernel.set_sysctls({self._sysctl: "0"})
            await asyncio.to_thread(self._note.unlink, missing_ok=True)
        if commands:
            await self._kernel.run_rules(commands)

    def _write_note(self) -> None:
        with contextlib.suppress(OSError):  # a full run folder: the table alone says so then
            write_atomic(self._note, _BOOT_ID.read_bytes(), durable=False)

    def _is_noted(self) -> bool:
        return read_text(self._note) == _BOOT_ID.read_text()
