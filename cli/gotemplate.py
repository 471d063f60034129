"""The part of Go's text/template that ``--format`` is used with.

Fields (``.Spec.Name``), ``json``, ``upper``, ``lower``, ``title``, ``len``, ``index``, ``join``, ``split``,
``print``/``printf``/``println``, comparison (``eq ne lt le gt ge``), ``and or not``, literals, pipelines,
``range``/``if``/``with`` with ``else``, and trim markers. Reference: pkg.go.dev/text/template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

_TAG = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*"|`[^`]*`)|([()|])|([^\s()|]+))')


class TemplateError(ValueError):
    """The template cannot be parsed, or asks for something that is not there."""


Node = tuple[Any, ...]


def render(template: str, value: Any) -> str:
    """Apply ``template`` to ``value``. Raises: TemplateError."""
    nodes, rest = _parse(_split(template), 0)
    if rest is not None:
        raise TemplateError(f"template parsing error: unexpected {{{{{rest}}}}}")
    return _run(nodes, value, value)


def _split(template: str) -> list[tuple[str, str]]:
    pieces: list[tuple[str, str]] = []
    position = 0
    trim_next = False
    for match in _TAG.finditer(template):
        text = template[position : match.start()]
        if trim_next:
            text = text.lstrip()
        if match.group(1):
            text = text.rstrip()
        pieces += [("text", text), ("tag", match.group(2).strip())]
        trim_next = bool(match.group(3))
        position = match.end()
    text = template[position:]
    if "{{" in text:
        raise TemplateError("template parsing error: unclosed action")
    pieces.append(("text", text.lstrip() if trim_next else text))
    return pieces


def _parse(pieces: list[tuple[str, str]], depth: int) -> tuple[list[Node], str | None]:
    """Nodes up to the ``end`` or ``else`` that closes this block; that word too."""
    nodes: list[Node] = []
    while pieces:
        kind, text = pieces.pop(0)
        if kind == "text":
            nodes.append(("text", text))
            continue
        word, _, argument = text.partition(" ")
        if word in ("range", "if", "with"):
            nodes.append(_block(word, argument, pieces, depth))
        elif word in ("end", "else"):
            if depth == 0:
                raise TemplateError(f"template parsing error: unexpected {{{{{word}}}}}")
            return nodes, text
        elif not text.startswith("/*"):
            nodes.append(("value", _pipeline(text)))
    if depth:
        raise TemplateError("template parsing error: unexpected EOF")
    return nodes, None


def _block(word: str, argument: str, pieces: list[tuple[str, str]], depth: int) -> Node:
    body, closing = _parse(pieces, depth + 1)
    otherwise: list[Node] = []
    if closing is not None and closing.startswith("else"):
        rest = closing.removeprefix("else").strip()
        if rest.startswith("if "):
            return (word, _pipeline(argument), body, [_block("if", rest[3:], pieces, depth)])
        otherwise, _ = _parse(pieces, depth + 1)
    return (word, _pipeline(argument), body, otherwise)


def _pipeline(text: str) -> list[list[Any]]:
    """Commands of a pipeline, each a list of operands (nested lists are parentheses)."""
    tokens = [next(t for t in match.groups() if t) for match in _TOKEN.finditer(text) if match.group().strip()]
    if not tokens:
        raise TemplateError("template parsing error: missing value for command")
    commands, rest = _commands(tokens)
    if rest:
        raise TemplateError("template parsing error: unexpected )")
    return commands


def _commands(tokens: list[str]) -> tuple[list[list[Any]], list[str]]:
    commands: list[list[Any]] = [[]]
    while tokens:
        token, tokens = tokens[0], tokens[1:]
        if token == ")":
            return commands, [")", *tokens]
        if token == "|":
            commands.append([])
        elif token == "(":
            inner, tokens = _commands(tokens)
            if not tokens:
                raise TemplateError("template parsing error: unclosed left paren")
            tokens = tokens[1:]
            commands[-1].append(("pipe", inner))
        else:
            commands[-1].append(token)
    return commands, []


def _run(nodes: Sequence[Node], dot: Any, root: Any) -> str:
    out = []
    for node in nodes:
        match node:
            case ("text", text):
                out.append(text)
            case ("value", pipeline):
                out.append(_print(_evaluate(pipeline, dot, root)))
            case ("range", pipeline, body, otherwise):
                found = _evaluate(pipeline, dot, root) or []
                items = [found[key] for key in sorted(found)] if isinstance(found, dict) else list(found)
                out += [_run(body, item, root) for item in items] or [_run(otherwise, dot, root)]
            case ("with", pipeline, body, otherwise):
                found = _evaluate(pipeline, dot, root)
                out.append(_run(body, found, root) if found else _run(otherwise, dot, root))
            case ("if", pipeline, body, otherwise):
                out.append(_run(body if _evaluate(pipeline, dot, root) else otherwise, dot, root))
    return "".join(out)


def _evaluate(pipeline: list[list[Any]], dot: Any, root: Any) -> Any:
    piped: list[Any] = []
    value: Any = None
    for command in pipeline:
        if not command:
            raise TemplateError("template parsing error: missing value for command")
        head, operands = command[0], command[1:]
        if isinstance(head, str) and head in _FUNCTIONS:
            value = _FUNCTIONS[head](*(_operand(operand, dot, root) for operand in operands), *piped)
        elif operands or piped:
            raise TemplateError(f"template: function {head!r} not defined")
        else:
            value = _operand(head, dot, root)
        piped = [value]
    return value


def _operand(token: Any, dot: Any, root: Any) -> Any:
    if isinstance(token, tuple):
        return _evaluate(token[1], dot, root)
    if token.startswith('"'):
        return json.loads(token)
    if token.startswith("`"):
        return token[1:-1]
    if token in ("true", "false"):
        return token == "true"
    if token == "nil":
        return None
    if token.startswith("$"):
        return _field(root, token[1:])
    if token.startswith("."):
        return _field(dot, token)
    try:
        return json.loads(token)
    except ValueError:
        raise TemplateError(f"template: function {token!r} not defined") from None


def _field(value: Any, path: str) -> Any:
    for name in path.strip(".").split(".") if path.strip(".") else ():
        if not isinstance(value, dict):
            raise TemplateError(f"template: can't evaluate field {name}")
        if name not in value:
            raise TemplateError(f"template: map has no entry for key {name!r}")
        value = value[name]
    return value


def _print(value: Any) -> str:
    match value:
        case None:
            return "<no value>"
        case bool():
            return "true" if value else "false"
        case dict():
            return "map[" + " ".join(f"{k}:{_print(v)}" for k, v in sorted(value.items())) + "]"
        case list() | tuple():
            return "[" + " ".join(_print(v) for v in value) + "]"
        case _:
            return str(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if value is None:
            return None
        try:
            value = value.get(key, "") if isinstance(value, dict) else value[key]
        except (IndexError, TypeError) as error:
            raise TemplateError(f"template: error calling index: {error}") from error
    return value


def _printf(form: str, *values: Any) -> str:
    plain = re.sub(r"%[vd]", "%s", re.sub(r"%([-0-9.]*)q", r'"%\1s"', form))
    try:
        return plain % tuple(_print(v) for v in values)
    except (TypeError, ValueError) as error:
        raise TemplateError(f"template: error calling printf: {error}") from error


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False),
    "upper": lambda value: str(value).upper(),
    "lower": lambda value: str(value).lower(),
    "title": lambda value: str(value).title(),
    "len": lambda value: len(value or ()),
    "index": _index,
    "join": lambda values, separator: separator.join(str(v) for v in values or ()),
    "split": lambda value, separator: value.split(separator),
    "print": lambda *values: "".join(_print(v) for v in values),
    "println": lambda *values: " ".join(_print(v) for v in values) + "\n",
    "printf": _printf,
    "eq": lambda first, *rest: any(first == other for other in rest),
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "and": lambda *values: next((v for v in values if not v), values[-1]),
    "or": lambda *values: next((v for v in values if v), values[-1]),
    "not": lambda value: not value,
}
