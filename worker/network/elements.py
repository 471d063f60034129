"""Elements of nftables' maps and sets as values that are compared, so that a change is what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

Elements: TypeAlias = Mapping[tuple[str, str], str]
"""Value by map and key, both in nft's words; "" in a set."""


def commands(table: str, old: Elements, new: Elements) -> tuple[str, str]:
    """What takes the old elements away and what adds the new ones; one whose value changes goes and comes.

    Both go in one transaction, the first first.
    """
    return _each("delete", table, _not_so(new, old)), _each("add", table, _not_so(old, new))


def _not_so(others: Elements, elements: Elements) -> Elements:
    return {key: value for key, value in elements.items() if others.get(key) != value}


def _each(command: str, table: str, elements: Elements) -> str:
    return "".join(f"{command} element {table} {name} {{ {texts} }}\n" for name, texts in _by_map(elements))


def _by_map(elements: Elements) -> Iterator[tuple[str, str]]:
    found: dict[str, list[str]] = {}
    for (name, key), value in elements.items():
        found.setdefault(name, []).append(f"{key} : {value}" if value else key)
    for name, texts in found.items():
        yield name, ", ".join(texts)
