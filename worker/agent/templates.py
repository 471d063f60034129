"""Go templates in hostnames, mounts, environment and payloads (features A10.13, A10.17), as far as services use them.

Text with ``{{ actions }}``: fields (``.Task.Slot``, ``.Service.Labels.zone``), ``index``, ``if``/``else``/``end``,
``with``, pipes, parentheses, strings, numbers, and the functions of ``text/template`` that make sense of text: ``and or
not eq ne len index print println printf``. Payloads add ``env``, ``secret`` and ``config``. A missing map key is an
error, as in swarmkit's ``template/`` (``missingkey=error``). Loops and definitions are not served and say so; so the
work is bounded by the length of the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Value = object
Function = Callable[..., Value]

DEPTH_MAX = 50

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<raw>`[^`]*`)
      | (?P<number>[+-]?\d+(?:\.\d+)?)
      | (?P<field>\$?(?:\.[^\W\d]\w*)+|\$|\.(?![\w]))
      | (?P<word>[^\W\d]\w*)
      | (?P<mark>[()|])
    )""",
    re.VERBOSE,
)
_UNSERVED = frozenset({"range", "define", "template", "block", "break", "continue"})


class TemplateError(ValueError):
    """The text is no template, or what it names does not exist. One line."""


def expand(text: str, fields: Mapping[str, Value], functions: Mapping[str, Function] | None = None) -> str:
    """Evaluate ``text``.

    Args:
        fields: what ``.`` is: nested mappings, strings, numbers. Capitalised keys are fields of structures (a missing
            one is a mistake in the template); see ``Labels`` for maps of the user's.
        functions: besides the built-in ones.

    Raises:
        TemplateError: syntax, an unknown field or function, a wrong argument.
    """
    if "{{" not in text:
        return text
    nodes = _Parser(list(_split(text))).parse()
    return "".join(_render(nodes, fields, fields, {**_BUILTINS, **(functions or {})}))


class Labels(dict[str, str]):
    """A map of the user's: any key may be asked for, one that is not there is an error of its own."""


# ---------------------------------------------------------------- parsing


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    spaced: bool
    """White space stands before it: ``(x).Y`` is a field of x, ``(x) .Y`` two values."""


@dataclass(frozen=True, slots=True)
class _Literal:
    value: Value


@dataclass(frozen=True, slots=True)
class _Field:
    root: bool
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Of:
    """A field of what a parenthesised pipeline gives."""

    pipeline: _Pipeline
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Word:
    name: str


_Operand = _Literal | _Field | _Of | _Word


@dataclass(frozen=True, slots=True)
class _Pipeline:
    commands: tuple[tuple[_Operand, ...], ...]


@dataclass(frozen=True, slots=True)
class _Branch:
    condition: _Pipeline
    then: tuple[_Node, ...]
    otherwise: tuple[_Node, ...]
    sets_dot: bool


_Node = str | _Pipeline | _Branch


@dataclass(frozen=True, slots=True)
class _Action:
    tokens: tuple[_Token, ...]


def _split(text: str) -> Iterator[str | _Action]:
    """Literal text and actions, in order; trim marks and comments are dealt with here."""
    offset, trim = 0, False
    while True:
        begin = text.find("{{", offset)
        literal = text[offset : begin if begin >= 0 else len(text)]
        if trim:
            literal = literal.lstrip()
        if begin < 0:
            yield literal
            return
        start = begin + 2
        if text.startswith("- ", start):
            literal, start = literal.rstrip(), start + 2
        yield literal
        action, offset, trim = _action(text, start)
        if action is not None:
            yield action


def _action(text: str, start: int) -> tuple[_Action | None, int, bool]:
    """The action at ``start``, the offset behind it and whether the text after it is trimmed."""
    comment = re.compile(r"\s*/\*.*?\*/\s*(-?)\}\}", re.DOTALL).match(text, start)
    if comment:
        return None, comment.end(), bool(comment[1])
    tokens: list[_Token] = []
    offset = start
    while True:
        end = re.compile(r"(\s+-|\s*)\}\}").match(text, offset)
        if end:
            return _Action(tuple(tokens)), end.end(), end[1].endswith("-")
        match = _TOKEN.match(text, offset)
        if match is None:
            rest = text[offset:].strip()
            if not rest:
                raise TemplateError("unclosed action")
            raise TemplateError(f"unexpected {rest[:1]!r} in action")
        kind = str(match.lastgroup)
        tokens.append(_Token(kind, match[kind], match.start(kind) > offset))
        offset = match.end()


class _Parser:
    def __init__(self, pieces: Sequence[str | _Action]) -> None:
        self._pieces = pieces
        self._position = 0

    def parse(self) -> tuple[_Node, ...]:
        nodes, closing = self._nodes(0)
        if closing:
            raise TemplateError(f"unexpected {{{{{closing[0].text}}}}}")
        return nodes

    def _nodes(self, depth: int) -> tuple[tuple[_Node, ...], tuple[_Token, ...]]:
        """Nodes up to an ``else`` or ``end`` (its tokens are returned) or to the end of the text."""
        if depth > DEPTH_MAX:
            raise TemplateError(f"nested deeper than {DEPTH_MAX}")
        nodes: list[_Node] = []
        while self._position < len(self._pieces):
            piece = self._pieces[self._position]
            self._position += 1
            if isinstance(piece, str):
                nodes.append(piece)
                continue
            word = piece.tokens[0].text if piece.tokens and piece.tokens[0].kind == "word" else ""
            if word in ("end", "else"):
                return tuple(nodes), piece.tokens
            if word in _UNSERVED:
                raise TemplateError(f"{{{{{word}}}}} is not supported here")
            if word in ("if", "with"):
                nodes.append(self._branch(piece.tokens, depth))
            else:
                nodes.append(_PipelineParser(piece.tokens).parse())
        return tuple(nodes), ()

    def _branch(self, tokens: tuple[_Token, ...], depth: int) -> _Branch:
        condition = _PipelineParser(tokens[1:]).parse()
        then, closing = self._nodes(depth + 1)
        otherwise: tuple[_Node, ...] = ()
        if closing and closing[0].text == "else":
            if len(closing) > 1:
                if closing[1].text not in ("if", "with"):
                    raise TemplateError("unexpected text after else")
                return _Branch(condition, then, (self._branch(closing[1:], depth + 1),), tokens[0].text == "with")
            otherwise, closing = self._nodes(depth + 1)
        if not closing or closing[0].text != "end" or len(closing) > 1:
            raise TemplateError(f"{{{{{tokens[0].text}}}}} without {{{{end}}}}")
        return _Branch(condition, then, otherwise, tokens[0].text == "with")


class _PipelineParser:
    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._position = 0

    def parse(self) -> _Pipeline:
        pipeline = self._pipeline(0)
        if self._position < len(self._tokens):
            raise TemplateError(f"unexpected {self._tokens[self._position].text!r}")
        return pipeline

    def _pipeline(self, depth: int) -> _Pipeline:
        if depth > DEPTH_MAX:
            raise TemplateError(f"nested deeper than {DEPTH_MAX}")
        commands: list[tuple[_Operand, ...]] = []
        operands: list[_Operand] = []
        while self._position < len(self._tokens):
            token = self._tokens[self._position]
            if token.text == ")" and token.kind == "mark":
                break
            self._position += 1
            if token.text == "|" and token.kind == "mark":
                commands.append(_command(operands))
                operands = []
            else:
                operands.append(self._operand(token, depth))
        commands.append(_command(operands))
        return _Pipeline(tuple(commands))

    def _operand(self, token: _Token, depth: int) -> _Operand:
        match token.kind:
            case "string":
                return _Literal(_unquoted(token.text))
            case "raw":
                return _Literal(token.text[1:-1])
            case "number":
                return _Literal(float(token.text) if "." in token.text else int(token.text))
            case "field":
                return _Field(token.text.startswith("$"), tuple(name for name in token.text.split(".")[1:] if name))
            case "word":
                constants: dict[str, Value] = {"true": True, "false": False, "nil": None}
                return _Literal(constants[token.text]) if token.text in constants else _Word(token.text)
            case _:
                return self._parenthesised(depth)

    def _parenthesised(self, depth: int) -> _Operand:
        pipeline = self._pipeline(depth + 1)
        if self._position >= len(self._tokens):
            raise TemplateError("unclosed left paren")
        self._position += 1
        names: tuple[str, ...] = ()
        if self._position < len(self._tokens) and self._tokens[self._position].kind == "field":
            following = self._tokens[self._position]
            if not following.spaced and following.text.startswith(".") and len(following.text) > 1:
                names = tuple(following.text.split(".")[1:])
                self._position += 1
        return _Of(pipeline, names)


def _command(operands: list[_Operand]) -> tuple[_Operand, ...]:
    if not operands:
        raise TemplateError("missing value for command")
    return tuple(operands)


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        raise TemplateError(f"bad string {text}") from None


# ---------------------------------------------------------------- evaluation


def _render(nodes: Sequence[_Node], dot: Value, root: Value, functions: Mapping[str, Function]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, _Pipeline):
            yield _text(_evaluate(node, dot, root, functions))
        else:
            value = _evaluate(node.condition, dot, root, functions)
            if _is_true(value):
                yield from _render(node.then, value if node.sets_dot else dot, root, functions)
            else:
                yield from _render(node.otherwise, dot, root, functions)


def _evaluate(pipeline: _Pipeline, dot: Value, root: Value, functions: Mapping[str, Function]) -> Value:
    result: Value = None
    for number, command in enumerate(pipeline.commands):
        head, *operands = command
        piped = [result] if number else []
        if isinstance(head, _Word):
            arguments = [_value(operand, dot, root, functions) for operand in operands]
            result = _call(head.name, [*arguments, *piped], functions)
        elif operands or piped:
            raise TemplateError("can't give argument to non-function")
        else:
            result = _value(head, dot, root, functions)
    return result


def _value(operand: _Operand, dot: Value, root: Value, functions: Mapping[str, Function]) -> Value:
    match operand:
        case _Literal():
            return operand.value
        case _Field():
            return _field(root if operand.root else dot, operand.names)
        case _Of():
            return _field(_evaluate(operand.pipeline, dot, root, functions), operand.names)
        case _Word():
            return _call(operand.name, [], functions)


def _field(value: Value, names: Sequence[str]) -> Value:
    for name in names:
        if not isinstance(value, Mapping):
            raise TemplateError(f"can't evaluate field {name} in a value that is no structure")
        if name not in value:
            if isinstance(value, Labels):
                raise TemplateError(f'map has no entry for key "{name}"')
            raise TemplateError(f"can't evaluate field {name}")
        value = value[name]
    return value


def _call(name: str, arguments: Sequence[Value], functions: Mapping[str, Function]) -> Value:
    function = functions.get(name)
    if function is None:
        raise TemplateError(f'function "{name}" not defined')
    try:
        return function(*arguments)
    except TypeError:
        raise TemplateError(f"wrong arguments for {name}") from None


def _is_true(value: Value) -> bool:
    return bool(value)


def _text(value: Value) -> str:
    """As Go's ``fmt`` prints it."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{_text(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _index(value: Value, *keys: Value) -> Value:
    for key in keys:
        if not isinstance(value, Mapping):
            raise TemplateError("can't index item of this type")
        value = value.get(key, "")
    return value


def _length(value: Value) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, Mapping):
        return len(value)
    raise TemplateError("len of this type")


def _equal(first: Value, *others: Value) -> bool:
    if not others:
        raise TemplateError("missing argument for comparison")
    return any(type(first) is type(other) and first == other for other in others)


def _printf(pattern: str, *arguments: Value) -> str:
    rest = list(arguments)

    def one(match: re.Match[str]) -> str:
        verb = match[1]
        if verb == "%":
            return "%"
        if not rest:
            return f"%!{verb}(MISSING)"
        value = rest.pop(0)
        return json.dumps(_text(value), ensure_ascii=False) if verb == "q" else _text(value)

    text = re.sub(r"%([sdvq%])", one, pattern)
    if rest:
        raise TemplateError("printf: more arguments than verbs")
    return text


def _print(*arguments: Value) -> str:
    """Spaces between operands when neither is a string, as ``fmt.Sprint``."""
    text = ""
    for number, value in enumerate(arguments):
        if number and not isinstance(value, str) and not isinstance(arguments[number - 1], str):
            text += " "
        text += _text(value)
    return text


def _and(*arguments: Value) -> Value:
    return next((value for value in arguments if not _is_true(value)), arguments[-1] if arguments else None)


def _or(*arguments: Value) -> Value:
    return next((value for value in arguments if _is_true(value)), arguments[-1] if arguments else None)


_BUILTINS: Mapping[str, Function] = {
    "and": _and,
    "or": _or,
    "not": lambda value: not _is_true(value),
    "eq": _equal,
    "ne": lambda first, second: not _equal(first, second),
    "len": _length,
    "index": _index,
    "print": _print,
    "println": lambda *arguments: " ".join(map(_text, arguments)) + "\n",
    "printf": _printf,
}
