"""``$X``, ``${X}``, ``${X:-default}``, ``${X-default}``, ``${X:?error}``, ``${X?error}``, ``${X:+other}``, ``$$``.

Reference: Compose file reference, "Interpolation". Total: any text gives a text or one ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

DEPTH_MAX = 20
RESULT_CHARACTERS_MAX = 2**20

_NAME = re.compile(r"[_a-zA-Z][_a-zA-Z0-9]*")
_OPERATOR = re.compile(r":?[-?+]")


def interpolate(text: str, environment: Mapping[str, str], depth: int = 0) -> str:
    """Replace the variables in ``text``; defaults and messages may hold variables themselves.

    Raises:
        ValueError: malformed, nested too deeply, too large, or a required variable is missing.
    """
    if depth > DEPTH_MAX:
        raise ValueError("interpolation is nested too deeply")
    made: list[str] = []
    position = size = 0
    while True:
        dollar = text.find("$", position)
        if dollar < 0:
            return "".join([*made, text[position:]])
        piece, end = _variable(text, dollar + 1, environment, depth)
        made += [text[position:dollar], piece]
        position, size = end, size + len(piece)
        if size > RESULT_CHARACTERS_MAX:
            raise ValueError("interpolation makes a text that is too large")


def _variable(text: str, start: int, environment: Mapping[str, str], depth: int) -> tuple[str, int]:
    """What stands for the variable behind a ``$``, and where it ends."""
    if text.startswith("$", start):
        return "$", start + 1
    if named := _NAME.match(text, start):
        return environment.get(named.group(), ""), named.end()
    name = _NAME.match(text, start + 1) if text.startswith("{", start) else None
    if name is None:
        raise _malformed(text)
    end = _closing(text, name.end())
    operator = _OPERATOR.match(text, name.end())
    if operator is None:
        if end != name.end():
            raise _malformed(text)
        return environment.get(name.group(), ""), end + 1
    value, word = environment.get(name.group()), text[operator.end() : end]
    present = bool(value) if operator.group().startswith(":") else value is not None
    match operator.group()[-1]:
        case "-":
            return (value or "") if present else interpolate(word, environment, depth + 1), end + 1
        case "+":
            return interpolate(word, environment, depth + 1) if present else "", end + 1
        case _:
            if not present:
                reason = interpolate(word, environment, depth + 1)
                raise ValueError(f"required variable {name.group()} is missing a value: {reason}")
            return value or "", end + 1


def _closing(text: str, position: int) -> int:
    """The brace that closes; those of variables within are skipped."""
    depth = 0
    while position < len(text):
        if text.startswith("${", position):
            depth += 1
            position += 1
        elif text[position] == "}":
            if depth == 0:
                return position
            depth -= 1
        position += 1
    raise _malformed(text)


def _malformed(text: str) -> ValueError:
    return ValueError(f"invalid interpolation format: {text[:100]!r}; you may need to escape any $ with another $")
