"""Numbers that strangers write: as many digits as they like, in any script."""

from __future__ import annotations


def natural(text: str, *, largest: int) -> int | None:
    """The number that ``text`` writes in ASCII digits alone, None when it is none or above ``largest``.

    Its length is looked at first: ``int`` refuses more than 4300 digits with a ValueError, and takes its time for fewer.
    """
    if not text.isascii() or not text.isdigit():
        return None
    digits = text.lstrip("0") or "0"
    if len(digits) > len(str(largest)):
        return None
    number = int(digits)
    return number if number <= largest else None
