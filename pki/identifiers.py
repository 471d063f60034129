"""Swarm IDs: how nodes, services, tasks and the cluster are named (features W07)."""

from __future__ import annotations

import os
from collections.abc import Callable

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"

ID_LENGTH = 25
"""Characters of a Swarm ID."""

_ENTROPY_BYTES = 17

_PAIRS = [high + low for high in DIGITS for low in DIGITS]
_PAIR = len(_PAIRS)
"""Two digits at a time: each step divides the whole number, and each new task has one."""


def to_base36(number: int) -> str:
    """``number`` (not negative) in base 36, lower case, without padding."""
    if number < 0:
        raise ValueError(f"negative number in base 36: {number}")
    if not number:
        return "0"
    pairs: list[str] = []
    while number:
        number, pair = divmod(number, _PAIR)
        pairs.append(_PAIRS[pair])
    return "".join(reversed(pairs)).lstrip("0")


def new_id(entropy: Callable[[int], bytes] = os.urandom) -> str:
    """A new Swarm ID: 25 characters of base 36, about 129 bits of randomness.

    The top bit of 17 random bytes is set, so that the number has 27 digits whatever the rest is; the first,
    which is nearly always the same, is dropped and 25 are kept.

    Args:
        entropy: gives that many random bytes; another source makes the result repeatable.

    Source: swarmkit ``identity/randomid.go``.
    """
    raw = bytearray(entropy(_ENTROPY_BYTES))
    raw[0] |= 0x80
    return to_base36(int.from_bytes(raw, "big"))[1 : 1 + ID_LENGTH]


def is_id(text: str) -> bool:
    """Whether ``text`` has the shape of a Swarm ID."""
    return len(text) == ID_LENGTH and all(character in DIGITS for character in text)
