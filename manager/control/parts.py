"""Lists as the control API answers them: each object encoded by itself, a slice of the list at a time.

What is listed is found in one go and is of one moment: stored messages never change, so they may be encoded later, with
turns for others in between. A list of 100 000 tasks is 0.1 s of work, and heartbeats are served meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

from base.slices import slices
from manager.store.objects import T

OBJECTS_AT_A_TIME = 2000
"""Encoded in some 2 ms."""


async def encoded(objects: Sequence[T]) -> list[bytes]:
    """Every object as the bytes of its message.

    Args:
        objects: as stored, or copies of the caller's own.
    """
    parts: list[bytes] = []
    async for some in slices(objects, OBJECTS_AT_A_TIME):
        parts += [obj.SerializeToString() for obj in some]
    return parts
