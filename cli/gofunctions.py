"""Functions of Go templates, over decoded JSON; ``cli.gotemplate`` calls them with a list of evaluated operands.

Every one of them raises TemplateError and nothing else, whatever it is given, and makes no text longer than
``WIDTH_MAX`` out of a number.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

WIDTH_MAX = 10_000


class TemplateError(ValueError):
    """The template cannot be parsed, or asks for something that is not there."""


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


def text_of(value: Any) -> str:
    """How Go prints a value (``%v``)."""
    match value:
        case Missing():
            raise TemplateError(f'template parsing error: map has no entry for key "{value.name}"')
        case None:
            return "<no value>"
        case bool():
            return "true" if value else "false"
        case float():
            return _float_text(value)
        case dict():
            return "map[" + " ".join(f"{key}:{_inner(item)}" for key, item in sorted(value.items())) + "]"
        case list() | tuple():
            return "[" + " ".join(_inner(item) for item in value) + "]"
        case _:
            return str(value)


def _inner(value: Any) -> str:
    return "<nil>" if value is None else text_of(value)


def _float_text(value: float) -> str:
    """Go's shortest %g: an exponent below 1e-4 and from 1e21 on, at least two digits of it."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
    if value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return re.sub(r"e([-+])(\d)$", r"e\g<1>0\2", repr(value))


def _takes(least: int, most: int | None = None) -> Callable[[Callable[..., Any]], Callable[[Sequence[Any]], Any]]:
    """A function of so many operands (``most`` None: any number); what it cannot handle is a TemplateError."""

    def decorate(function: Callable[..., Any]) -> Callable[[Sequence[Any]], Any]:
        name = function.__name__.strip("_")

        @functools.wraps(function)
        def call(operands: Sequence[Any]) -> Any:
            if len(operands) < least or (most is not None and len(operands) > most):
                raise TemplateError(f"template: wrong number of args for {name}: want {least} got {len(operands)}")
            try:
                return function(*operands)
            except TemplateError:
                raise
            except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
                raise TemplateError(f"template: error calling {name}: {error}") from error

        return call

    return decorate


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TemplateError(f"template: wrong type for value; expected string; got {text_of(value)[:40]}")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= WIDTH_MAX:
        raise TemplateError(f"template: want a number from 0 to {WIDTH_MAX}, got {text_of(value)[:40]}")
    return value


@_takes(1, 1)
def _json(value: Any) -> str:
    return json.dumps(None if isinstance(value, Missing) else value, separators=(",", ":"), ensure_ascii=False)


@_takes(1, 1)
def _upper(value: Any) -> str:
    return _string(value).upper()


@_takes(1, 1)
def _lower(value: Any) -> str:
    return _string(value).lower()


@_takes(1, 1)
def _title(value: Any) -> str:
    return re.sub(r"(?<!\w)[^\W\d_]", lambda match: match.group().upper(), _string(value))


@_takes(2, 2)
def _split(value: Any, separator: Any) -> list[str]:
    text, mark = _string(value), _string(separator)
    return text.split(mark) if mark else list(text)


@_takes(2, 2)
def _join(values: Any, separator: Any) -> str:
    if values is None or isinstance(values, Missing):
        return ""
    if not isinstance(values, list):
        raise TemplateError(f"template: error calling join: expected slice, got {text_of(values)[:40]}")
    return _string(separator).join(text_of(item) for item in values)


@_takes(3, 3)
def _pad(value: Any, before: Any, after: Any) -> str:
    text = _string(value)
    return " " * _count(before) + text + " " * _count(after) if text else text


@_takes(2, 2)
def _truncate(value: Any, length: Any) -> str:
    return _string(value)[: _count(length)]


@_takes(1, 1)
def _len(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode(errors="surrogatepass"))
    if isinstance(value, Missing) or value is None:
        return 0
    if isinstance(value, list | dict):
        return len(value)
    raise TemplateError(f"template: error calling len: len of {text_of(value)[:40]}")


@_takes(1)
def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if value is None or isinstance(value, Missing):
            raise TemplateError("template: error calling index: index of nil")
        if isinstance(value, Mapping):
            # Docker's maps hold strings: the empty one stands for an absent key.
            value = value.get(_string(key), "")
        elif isinstance(value, list | str):
            if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < len(value):
                raise TemplateError(f"template: error calling index: index out of range: {text_of(key)[:40]}")
            value = value[key] if isinstance(value, list) else ord(value[key])
        else:
            raise TemplateError(f"template: error calling index: can't index item of {text_of(value)[:40]}")
    return value


@_takes(1, 3)
def _slice(value: Any, start: Any = 0, end: Any = None) -> Any:
    if not isinstance(value, list | str):
        raise TemplateError(f"template: error calling slice: can't slice item of {text_of(value)[:40]}")
    last = len(value) if end is None else _count(end)
    if not _count(start) <= last <= len(value):
        raise TemplateError("template: error calling slice: index out of range")
    return value[_count(start) : last]


@_takes(0)
def _print(*values: Any) -> str:
    # Go puts a space between two operands of which neither is a string.
    out = ""
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            out += " "
        out += _inner(value)
    return out


@_takes(0)
def _println(*values: Any) -> str:
    return " ".join(_inner(value) for value in values) + "\n"


_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>\d*)(?:\.(?P<precision>\d*))?(?P<verb>.|\Z)", re.DOTALL)


@_takes(1)
def _printf(form: Any, *values: Any) -> str:
    left = list(values)

    def replace(match: re.Match[str]) -> str:
        verb = match["verb"]
        if verb == "%":
            return "%"
        if not left:
            return f"%!{verb}(MISSING)"
        return _formatted(match, left.pop(0))

    text = _VERB.sub(replace, _string(form))
    if left:
        text += "%!(EXTRA " + ", ".join(_inner(value) for value in left) + ")"
    return text


def _formatted(match: re.Match[str], value: Any) -> str:
    verb, flags = match["verb"], match["flags"]
    width, precision = int(match["width"][:9] or 0), match["precision"]
    places = None if precision is None else int(precision[:9] or 0)
    if width > WIDTH_MAX or (places or 0) > WIDTH_MAX:
        raise TemplateError("template: error calling printf: width out of range")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if verb in "sv":
        text = _inner(value)
        text = text[:places] if places is not None and verb == "s" else text
    elif verb == "q" and isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
    elif verb == "t" and isinstance(value, bool):
        text = _inner(value)
    elif (verb in "doxXbc" and isinstance(value, int) and number) or (verb in "feEgG" and number):
        if verb == "c":
            text = chr(value)
        elif verb in "doxXb":
            text = format(value, verb)
        else:
            text = format(value, f".{6 if places is None else places}{verb}")
        text = f"+{text}" if "+" in flags and value >= 0 else text
    else:
        return f"%!{verb}({type(value).__name__}={_inner(value)})"
    if "-" in flags:
        return text.ljust(width)
    return text.zfill(width) if "0" in flags and number else text.rjust(width)


def _comparable(a: Any, b: Any) -> None:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    if not numbers and not (isinstance(a, str) and isinstance(b, str)):
        raise TemplateError("template: incompatible types for comparison")


@_takes(2)
def _eq(first: Any, *rest: Any) -> bool:
    return any(type(first) is type(other) and first == other for other in rest) or any(
        first == other and not isinstance(first, bool) and not isinstance(other, bool) for other in rest
    )


@_takes(2, 2)
def _ne(a: Any, b: Any) -> bool:
    return not _eq([a, b])


@_takes(2, 2)
def _lt(a: Any, b: Any) -> bool:
    _comparable(a, b)
    return bool(a < b)


@_takes(2, 2)
def _le(a: Any, b: Any) -> bool:
    _comparable(a, b)
    return bool(a <= b)


@_takes(2, 2)
def _gt(a: Any, b: Any) -> bool:
    _comparable(a, b)
    return bool(a > b)


@_takes(2, 2)
def _ge(a: Any, b: Any) -> bool:
    _comparable(a, b)
    return bool(a >= b)


@_takes(1, 1)
def _not(value: Any) -> bool:
    return not value


FUNCTIONS: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    function.__name__.strip("_"): function
    for function in (
        *(_json, _upper, _lower, _title, _split, _join, _pad, _truncate),
        *(_len, _index, _slice, _print, _println, _printf, _not),
        *(_eq, _ne, _lt, _le, _gt, _ge),
    )
}

# "and" and "or": the value of an operand that ends the evaluation.
LAZY: Mapping[str, bool] = {"and": False, "or": True}
