"""Forwarding, switched on for containers alone: the host is no router for anybody else.

Containers need ``ip_forward``, and with it the host forwards between all its interfaces. Where it was on already, that is the
operator's wish. Where we switched it on, a table drops what neither comes from a bridge of an engine nor goes to one, as it
was dropped before; packets to a bridge are judged by that bridge's own table (``rules``). One table serves all engines of a
network namespace: the names of their tables say which bridges there are.

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
from runtime.networks.rules import TABLE_PREFIX

SYSCTL = "ipv4/ip_forward"
TABLE = "ip forward-engines"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def ruleset(bridges: Iterable[str]) -> str:
    """Commands that put the table in place for these bridges, whatever was there before, in one transaction.

    What others bridge is no forwarding, but passes here too with br_netfilter, and says the same bridge twice. nftables
    cannot compare the two, so two bridges of others may forward to each other.
    """
    names = ", ".join(f'"{name}"' for name in sorted(bridges))
    return f"""add table {TABLE}
delete table {TABLE}
table {TABLE} {{
  chain forward {{
    type filter hook forward priority filter; policy accept;
    meta iifkind "bridge" meta oifkind "bridge" accept
    iifname != {{ {names} }} oifname != {{ {names} }} drop
  }}
}}
"""


def without(bridge: str, tables: Collection[str]) -> tuple[str, bool]:
    """Commands for when this bridge goes, and whether forwarding is to be switched off, as it was before the first."""
    if TABLE not in tables:
        return "", False
    left = bridges(tables) - {bridge}
    return (ruleset(left), False) if left else (f"delete table {TABLE}\n", True)


def bridges(tables: Iterable[str]) -> set[str]:
    """The bridges of engines, by the names of all tables."""
    prefix = f"ip {TABLE_PREFIX}"
    return {table.removeprefix(prefix) for table in tables if table.startswith(prefix)}


class Forwarding:
    """Switches forwarding on and off again.

    Args:
        note: a file, which is there while forwarding is on because of us.
    """

    def __init__(self, kernel: KernelNetwork, note: Path) -> None:
        self._kernel, self._note = kernel, note

    async def commands_for(self, bridge: str) -> str:
        """What is to be in the rules before forwarding is switched on for a bridge. Raises OSError, HostError."""
        tables = await self._kernel.tables()
        if await self._kernel.read_sysctl(SYSCTL) != "1":
            await asyncio.to_thread(self._write_note)
        elif not (TABLE in tables or await self.is_lost(tables)):
            return ""
        return ruleset({bridge} | bridges(tables))

    async def is_lost(self, tables: Collection[str]) -> bool:
        """Whether the table was taken away from us."""
        return TABLE not in tables and await asyncio.to_thread(self._is_noted)

    async def switch_on(self) -> None:
        """Once the commands were carried out. Raises OSError."""
        await self._kernel.set_sysctls({SYSCTL: "1"})

    async def leave(self, bridge: str) -> None:
        """The bridge is gone; with the last one forwarding is as it was. Raises OSError, HostError."""
        commands, is_last = without(bridge, await self._kernel.tables())
        if is_last:
            await self._kernel.set_sysctls({SYSCTL: "0"})
            await asyncio.to_thread(self._note.unlink, missing_ok=True)
        if commands:
            await self._kernel.run_rules(commands)

    def _write_note(self) -> None:
        with contextlib.suppress(OSError):  # a full run folder: the table alone says so then
            write_atomic(self._note, _BOOT_ID.read_bytes(), durable=False)

    def _is_noted(self) -> bool:
        return read_text(self._note) == _BOOT_ID.read_text()
