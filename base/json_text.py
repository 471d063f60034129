"""JSON that somebody else wrote: whatever is wrong with it, it is one kind of error."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def read_json(data: bytes | str, *, type: type[T]) -> T:  # noqa: A002 - msgspec's own word
    """The value, checked to be of ``type`` (``object``: of any).

    Raises:
        msgspec.DecodeError: no JSON, another type, no UTF-8, or nested deeper than this interpreter's calls may be.
    """
    try:
        return msgspec.json.decode(data, type=type)
    except (UnicodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None
