"""Values of a template: decoded JSON, or nested mappings of strings and numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from base.gotemplate.faults import Fault

# Any, here and in the package: a template works on whatever its caller has, and checks it where it is used.

Function = Callable[..., Any]


class Budget:
    """How many characters templates may still read, be handed and make: what they write, and on the way to it.

    Work and memory are bounded by this alone: a few hundred characters double a text as often as they like, by
    ``{{with print . .}}`` in itself. One may be shared by the templates of one owner.
    """

    def __init__(self, characters: int) -> None:
        self._left = characters

    def spend(self, characters: int) -> None:
        """Raises Fault (``too_long``) once there is less."""
        self._left -= characters
        if self._left < 0:
            raise Fault("too_long")


class Missing:
    """A key that is not in the object: empty where it is tested, an error where it is printed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Missing)

    def __hash__(self) -> int:
        return hash(None)


class Labels(dict[str, str]):
    """A map of the user's: any key may be asked for. A mapping that is none is a structure, whose fields are known."""


def text_of(value: Any) -> str:
    """How Go prints a value (``%v``)."""
    match value:
        case Missing():
            raise Fault("no_key", name=value.name)
        case None:
            return "<no value>"
        case bool():
            return "true" if value else "false"
        case float():
            return _float_text(value)
        case Mapping():
            return "map[" + " ".join(f"{key}:{inner_text(item)}" for key, item in sorted(value.items())) + "]"
        case list() | tuple():
            return "[" + " ".join(inner_text(item) for item in value) + "]"
        case _:
            return str(value)


def inner_text(value: Any) -> str:
    """How a value prints inside another one, and as an operand of ``print``."""
    return "<nil>" if value is None else text_of(value)


def short(value: Any) -> str:
    """Enough of a value for an error."""
    return text_of(value)[:40]


def _float_text(value: float) -> str:
    """Go's shortest %g: an exponent below 1e-4 and from 1e21 on, at least two digits of it."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
    if value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return re.sub(r"e([-+])(\d)$", r"e\g<1>0\2", repr(value))
