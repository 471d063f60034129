"""Rules of others that stand in containers' way: told with their mending, never touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def warnings(chains: Mapping[str, str], bridges: Sequence[str]) -> list[str]:
    """Of chains with a policy of drop, those that do not speak of a bridge of ours. Pure.

    dockerd is one who makes such: its FORWARD drops what is not its own, where it switched forwarding on. An accept there is
    none here: what of it may pass, our own table judges as before.

    Args:
        chains: text by family, table and name.
    """
    found = []
    for chain, text in sorted(chains.items()):
        if silent := [bridge for bridge in bridges if not _speaks_of(text, bridge)]:
            family, table, name = chain.split(" ", 2)
            rules = "; ".join(
                f"nft insert rule {chain} {way} {{ {', '.join(silent)} }} accept" for way in ("iifname", "oifname")
            )
            found.append(
                f"WARNING: chain {name} of table {family} {table} drops what the host forwards for containers on {', '.join(silent)}, "
                f"by its policy: let it pass there ({rules})"
            )
    return found


def _speaks_of(text: str, bridge: str) -> bool:
    """By its name or the beginning of it with an asterisk."""
    beginnings = (f'"{bridge[:length]}*"' for length in range(1, len(bridge)))
    return f'"{bridge}"' in text or any(beginning in text for beginning in beginnings)
