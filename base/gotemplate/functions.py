"""Functions of templates: Go's ``and or not len index slice print printf println eq ne lt le gt ge`` and Docker's ``json
upper lower title split join pad truncate``.

Every one of them raises Fault and nothing else, whatever it is given, and makes no text longer than ``WIDTH_MAX`` out of
a number. One that makes a text of any number of others yields it in pieces, so that the evaluator can stop at its budget;
the rest make no more than some times what they are given.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from base.gotemplate.faults import Fault
from base.gotemplate.values import Function, Missing, inner_text, short, text_of

WIDTH_MAX = 10_000


def _takes(least: int, most: int | None = None) -> Callable[[Function], Function]:
    """A function of so many operands (``most`` None: any number); what it cannot handle is a Fault."""

    def decorate(function: Function) -> Function:
        name = function.__name__.strip("_")

        @functools.wraps(function)
        def call(*operands: Any) -> Any:
            if len(operands) < least or (most is not None and len(operands) > most):
                raise Fault("argument_count", name=name, want=least, got=len(operands))
            with _faults_only(name):
                made = function(*operands)
            return _pieces(made, name) if isinstance(made, Iterator) else made

        return call

    return decorate


@contextlib.contextmanager
def _faults_only(name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise Fault("calling", name=name, reason=error) from error


def _pieces(made: Iterator[str], name: str) -> Iterator[str]:
    with _faults_only(name):
        yield from made


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise Fault("no_string", value=short(value))
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= WIDTH_MAX:
        raise Fault("no_number", most=WIDTH_MAX, value=short(value))
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
def _join(values: Any, separator: Any) -> Iterator[str]:
    if values is None or isinstance(values, Missing):
        return
    if not isinstance(values, list):
        raise Fault("calling", name="join", reason=f"expected slice, got {short(values)}")
    mark = _string(separator)
    for index, item in enumerate(values):
        yield mark if index else ""
        yield text_of(item)


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
    if isinstance(value, list | Mapping):
        return len(value)
    raise Fault("no_length", value=short(value))


@_takes(1)
def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if value is None or isinstance(value, Missing):
            raise Fault("calling", name="index", reason="index of nil")
        if isinstance(value, Mapping):
            # Docker's maps hold strings: the empty one stands for an absent key.
            value = value.get(_string(key), "")
        elif isinstance(value, list | str):
            if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < len(value):
                raise Fault("calling", name="index", reason=f"index out of range: {short(key)}")
            value = value[key] if isinstance(value, list) else ord(value[key])
        else:
            raise Fault("no_index", value=short(value))
    return value


@_takes(1, 3)
def _slice(value: Any, start: Any = 0, end: Any = None) -> Any:
    if not isinstance(value, list | str):
        raise Fault("calling", name="slice", reason=f"can't slice item of {short(value)}")
    last = len(value) if end is None else _count(end)
    if not _count(start) <= last <= len(value):
        raise Fault("calling", name="slice", reason="index out of range")
    return value[_count(start) : last]


@_takes(0)
def _print(*values: Any) -> Iterator[str]:
    # Go puts a space between two operands of which neither is a string.
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            yield " "
        yield inner_text(value)


@_takes(0)
def _println(*values: Any) -> Iterator[str]:
    for index, value in enumerate(values):
        yield " " if index else ""
        yield inner_text(value)
    yield "\n"


_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>\d*)(?:\.(?P<precision>\d*))?(?P<verb>.|\Z)", re.DOTALL)


@_takes(1)
def _printf(form: Any, *values: Any) -> Iterator[str]:
    text, position, used = _string(form), 0, 0
    for match in _VERB.finditer(text):
        yield text[position : match.start()]
        position = match.end()
        if match["verb"] == "%":
            yield "%"
        elif used == len(values):
            yield f"%!{match['verb']}(MISSING)"
        else:
            yield _formatted(match, values[used])
            used += 1
    yield text[position:]
    for index, value in enumerate(values[used:]):
        yield ", " if index else "%!(EXTRA "
        yield inner_text(value)
    yield ")" if used < len(values) else ""


def _formatted(match: re.Match[str], value: Any) -> str:
    verb, flags = match["verb"], match["flags"]
    width, precision = int(match["width"][:9] or 0), match["precision"]
    places = None if precision is None else int(precision[:9] or 0)
    if width > WIDTH_MAX or (places or 0) > WIDTH_MAX:
        raise Fault("calling", name="printf", reason="width out of range")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if verb in "sv":
        text = inner_text(value)
        text = text[:places] if places is not None and verb == "s" else text
    elif verb == "q" and isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
    elif verb == "t" and isinstance(value, bool):
        text = inner_text(value)
    elif (verb in "doxXbc" and isinstance(value, int) and number) or (verb in "feEgG" and number):
        if verb == "c":
            text = chr(value)
        elif verb in "doxXb":
            text = format(value, verb)
        else:
            text = format(value, f".{6 if places is None else places}{verb}")
        text = f"+{text}" if "+" in flags and value >= 0 else text
    else:
        return f"%!{verb}({type(value).__name__}={inner_text(value)})"
    if "-" in flags:
        return text.ljust(width)
    return text.zfill(width) if "0" in flags and number else text.rjust(width)


def _comparable(a: Any, b: Any) -> None:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    if not numbers and not (isinstance(a, str) and isinstance(b, str)):
        raise Fault("incomparable")


@_takes(2)
def _eq(first: Any, *rest: Any) -> bool:
    return any(type(first) is type(other) and first == other for other in rest) or any(
        first == other and not isinstance(first, bool) and not isinstance(other, bool) for other in rest
    )


@_takes(2, 2)
def _ne(a: Any, b: Any) -> bool:
    return not _eq(a, b)


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


FUNCTIONS: Mapping[str, Function] = {
    function.__name__.strip("_"): function
    for function in (
        *(_json, _upper, _lower, _title, _split, _join, _pad, _truncate),
        *(_len, _index, _slice, _print, _println, _printf, _not),
        *(_eq, _ne, _lt, _le, _gt, _ge),
    )
}

LAZY: Mapping[str, bool] = {"and": False, "or": True}
"""Functions that stop at the operand that decides: the truth of such an operand. They are the evaluator's."""
