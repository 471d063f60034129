"""The part of Go's text/template that ``--format`` is used with, over decoded JSON.

Actions: pipelines, ``if``/``else if``/``else``, ``range`` (with ``$i, $v :=``, ``break``, ``continue``), ``with``,
variables, comments, trim markers. Functions: Go's ``and or not len index slice print printf println eq ne lt le gt
ge`` and Docker's ``json upper lower title split join pad truncate``. Reference: pkg.go.dev/text/template.

Two differences follow from having JSON instead of Go types. A key that is not there may be an empty optional field or
a slip of the pen: it counts as empty where it is tested (``if``, ``with``, ``range``, ``and``, ``or``, ``not``,
``eq``, ``json``) and as an error where it would be printed. ``define``, ``template`` and ``block`` are not served.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cli.gofunctions import FUNCTIONS, LAZY, Missing, TemplateError, text_of

__all__ = ["TemplateError", "render"]

DEPTH_MAX = 60
OUTPUT_CHARACTERS_MAX = 50_000_000

_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<char>'(?:[^'\\\n]|\\.)+')|(?P<assign>:?=)
    |(?P<mark>[()|,])|(?P<word>[^\s()|,"`'=:]+)""",
    re.VERBOSE,
)
_COMMENT = re.compile(r"\{\{(?:-\s+)?/\*.*?\*/(?P<trim>\s+-)?\}\}", re.DOTALL)


def render(template: str, value: Any) -> str:
    """Apply ``template`` to ``value``, decoded JSON.

    Raises:
        TemplateError: cannot be parsed, or asks for what is not there; one line, as Docker begins it.
    """
    try:
        nodes = _Parser(_pieces(template)).whole()
        return _Run(value).text(nodes, value)
    except RecursionError:
        raise TemplateError("template parsing error: nested too deeply") from None


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class _Pipe:
    """``[$a[, $b] :=|=] command | command``; a command is a list of operands."""

    commands: list[list[Any]]
    variables: tuple[str, ...] = ()
    declares: bool = True


@dataclass(frozen=True, slots=True)
class _Access:
    """An operand with fields behind it: ``.Spec.Name``, ``$x.Name``, ``(index . 0).Name``."""

    base: Any  # "." for the dot, "$name" for a variable, a _Pipe for parentheses
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Literal:
    value: Any


@dataclass(frozen=True, slots=True)
class _Action:
    """What stands between braces; ``body`` and ``otherwise`` are of if, with and range."""

    kind: str
    pipe: _Pipe | None = None
    body: list[_Action | str] = field(default_factory=list)
    otherwise: list[_Action | str] = field(default_factory=list)


def _pieces(template: str) -> Iterator[str | list[_Token]]:
    """Plain texts, and actions as tokens, with the trim markers applied."""
    position, trimmed = 0, False
    while True:
        start = template.find("{{", position)
        text = template[position:] if start < 0 else template[position:start]
        text = text.lstrip(" \t\r\n") if trimmed else text
        if start < 0:
            yield text
            return
        if comment := _COMMENT.match(template, start):
            yield text.rstrip(" \t\r\n") if re.match(r"\{\{-\s", template[start:]) else text
            position, trimmed = comment.end(), comment["trim"] is not None
            continue
        inside = start + 2
        if re.compile(r"-\s").match(template, inside):
            text = text.rstrip(" \t\r\n")
            inside += 1
        yield text
        tokens, position, trimmed = _tokens(template, inside)
        yield tokens


def _tokens(template: str, position: int) -> tuple[list[_Token], int, bool]:
    """Tokens up to the closing braces, the position behind them, and whether they trim what follows."""
    tokens: list[_Token] = []
    closing = re.compile(r"(\s-)?\}\}")
    while position < len(template):
        if match := closing.match(template, position):
            return tokens, match.end(), match.group(1) is not None
        # A word ends where the action does: "{{.Name}}" has no space before its braces.
        found = _TOKEN.match(template, position)
        if found is None:
            raise TemplateError(f"template parsing error: unexpected {template[position]!r} in command")
        kind, text = str(found.lastgroup), found.group()
        if kind == "word" and "}}" in text:
            text = text[: text.index("}}")]
        position += len(text)
        if kind != "space":
            tokens.append(_Token(kind, text))
    raise TemplateError("template parsing error: unclosed action")


class _Parser:
    def __init__(self, pieces: Iterator[str | list[_Token]]) -> None:
        self._pieces = pieces
        self._depth = 0
        self._loops = 0

    def whole(self) -> list[_Action | str]:
        nodes, closing, _ = self._block()
        if closing:
            raise TemplateError(f"template parsing error: unexpected {{{{{closing}}}}}")
        return nodes

    def _block(self) -> tuple[list[_Action | str], str, list[_Token]]:
        """Nodes up to ``end`` or ``else``; that word and what follows it. The word is "" at the template's end."""
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise TemplateError("template parsing error: nested too deeply")
        nodes: list[_Action | str] = []
        for piece in self._pieces:
            if isinstance(piece, str):
                nodes.append(piece)
                continue
            word = piece[0].text if piece and piece[0].kind == "word" else ""
            if word in ("end", "else"):
                self._depth -= 1
                return nodes, word, piece[1:]
            nodes.append(self._action(word, piece))
        self._depth -= 1
        return nodes, "", []

    def _action(self, word: str, tokens: list[_Token]) -> _Action:
        if word in ("if", "with", "range"):
            return self._branch(word, tokens[1:])
        if word in ("break", "continue") and len(tokens) == 1:
            if not self._loops:
                raise TemplateError(f"template parsing error: {{{{{word}}}}} outside {{{{range}}}}")
            return _Action(word)
        if word in ("define", "template", "block"):
            raise TemplateError(f"template parsing error: {{{{{word}}}}} is not served")
        return _Action("print", _pipe(tokens))

    def _branch(self, word: str, tokens: list[_Token]) -> _Action:
        pipe = _pipe(tokens, range_=word == "range")
        self._loops += word == "range"
        body, closing, rest = self._block()
        self._loops -= word == "range"
        otherwise: list[_Action | str] = []
        if closing == "else":
            if rest and rest[0].text in ("if", "with") and word != "range":
                self._depth += 1
                otherwise = [self._branch(rest[0].text, rest[1:])]
                self._depth -= 1
                return _Action(word, pipe, body, otherwise)
            if rest:
                raise TemplateError(f"template parsing error: unexpected {rest[0].text!r} in else")
            otherwise, closing, rest = self._block()
        if closing != "end" or rest:
            raise TemplateError(f"template parsing error: unexpected {closing or 'EOF'}")
        return _Action(word, pipe, body, otherwise)


def _pipe(tokens: list[_Token], *, range_: bool = False) -> _Pipe:
    names: list[str] = []
    at = next((index for index, token in enumerate(tokens) if token.kind == "assign"), None)
    declares = True
    if at is not None:
        names = [token.text for token in tokens[:at] if token.text != ","]
        declares = tokens[at].text == ":="
        if not 0 < len(names) <= (2 if range_ else 1) or not all(re.fullmatch(r"\$\w+", name) for name in names):
            raise TemplateError("template parsing error: bad variables before assignment")
        tokens = tokens[at + 1 :]
    commands, rest = _commands(tokens, 0)
    if rest:
        raise TemplateError("template parsing error: unexpected )")
    return _Pipe(commands, tuple(names), declares)


def _commands(tokens: list[_Token], depth: int) -> tuple[list[list[Any]], list[_Token]]:
    """Commands up to the parenthesis that closes this level; the tokens from it on."""
    if depth > DEPTH_MAX:
        raise TemplateError("template parsing error: nested too deeply")
    commands: list[list[Any]] = [[]]
    while tokens and tokens[0].text != ")":
        token, tokens = tokens[0], tokens[1:]
        if token.kind == "mark" and token.text == "|":
            commands.append([])
        elif token.kind == "mark" and token.text == "(":
            inner, tokens = _commands(tokens, depth + 1)
            if not tokens:
                raise TemplateError("template parsing error: unclosed left paren")
            tokens = tokens[1:]
            fields: tuple[str, ...] = ()
            if tokens and tokens[0].kind == "word" and re.match(r"\.\w", tokens[0].text):
                fields, tokens = _fields(tokens[0].text), tokens[1:]
            commands[-1].append(_Access(_Pipe(inner), fields))
        elif token.kind in ("mark", "assign"):
            raise TemplateError(f"template parsing error: unexpected {token.text!r} in operand")
        else:
            commands[-1].append(_operand(token))
    if not all(commands):
        raise TemplateError("template parsing error: missing value for command")
    return commands, tokens


def _operand(token: _Token) -> Any:
    text = token.text
    if token.kind == "string":
        return _Literal(text[1:-1] if text[0] == "`" else _unquote(text))
    if token.kind == "char":
        inner = _unquote('"' + text[1:-1].replace('"', '\\"') + '"')
        if len(inner) != 1:
            raise TemplateError(f"template parsing error: malformed character constant: {text}")
        return _Literal(ord(inner))
    if text in ("true", "false", "nil"):
        return _Literal({"true": True, "false": False, "nil": None}[text])
    if text == ".":
        return _Access(".", ())
    if text.startswith("."):
        return _Access(".", _fields(text))
    if text.startswith("$"):
        name, dot, rest = text.partition(".")
        return _Access(name, _fields(f".{rest}") if dot else ())
    if re.fullmatch(r"[-+]?(\d{1,300}|0x[0-9a-fA-F]{1,16})", text):
        return _Literal(int(text, 0 if "x" in text else 10))
    if re.fullmatch(r"[-+]?(\d{1,300}\.\d{0,300}|\.\d{1,300})(e[-+]?\d{1,2})?", text):
        return _Literal(float(text))
    if text not in FUNCTIONS and text not in LAZY:
        raise TemplateError(f"template parsing error: function {text!r} not defined")
    return text


def _fields(text: str) -> tuple[str, ...]:
    names = tuple(text.split(".")[1:])
    if not all(re.fullmatch(r"\w+", name) for name in names):
        raise TemplateError(f"template parsing error: bad field {text!r}")
    return names


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def _unquote(text: str) -> str:
    """A Go string constant's value."""

    def replace(match: re.Match[str]) -> str:
        code = match.group(1)
        if code[0] in "xuU" and len(code) > 1:
            number = int(code[1:], 16)
            if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                raise TemplateError("template parsing error: invalid syntax")
            return chr(number)
        if code in "xuU":
            raise TemplateError("template parsing error: invalid syntax")
        return _ESCAPES.get(code, code)

    return re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", replace, text[1:-1], flags=re.DOTALL)


class _Break(Exception):  # noqa: N818  # control flow, as Python's own StopIteration
    pass


class _Continue(Exception):  # noqa: N818  # as above
    pass


class _Run:
    """One execution: the variables in scope, and how much was written."""

    def __init__(self, root: Any) -> None:
        self._scope: dict[str, Any] = {"$": root}
        self._written: list[str] = []
        self._size = 0

    def text(self, nodes: list[_Action | str], dot: Any) -> str:
        self._run(nodes, dot)
        return "".join(self._written)

    def _write(self, text: str) -> None:
        self._size += len(text)
        if self._size > OUTPUT_CHARACTERS_MAX:
            raise TemplateError("template: output too large")
        self._written.append(text)

    def _run(self, nodes: list[_Action | str], dot: Any) -> None:
        for node in nodes:
            if isinstance(node, str):
                self._write(node)
            elif node.kind == "break":
                raise _Break
            elif node.kind == "continue":
                raise _Continue
            elif node.kind == "print":
                self._print(node, dot)
            else:
                outer = dict(self._scope)
                self._branch(node, dot)
                # Assignments to variables of the outer scope stay, declarations of the inner one go.
                self._scope = {name: self._scope[name] for name in outer}

    def _print(self, node: _Action, dot: Any) -> None:
        assert node.pipe is not None
        value = self._pipe(node.pipe, dot)
        if node.pipe.variables:
            self._bind(node.pipe, value)
        else:
            self._write(text_of(value))

    def _bind(self, pipe: _Pipe, value: Any) -> None:
        name = pipe.variables[0]
        if not pipe.declares and name not in self._scope:
            raise TemplateError(f"template parsing error: undefined variable {name!r}")
        self._scope[name] = value

    def _branch(self, node: _Action, dot: Any) -> None:
        assert node.pipe is not None
        value = self._pipe(node.pipe, dot)
        if node.kind == "range":
            self._range(node, value, dot)
            return
        if node.pipe.variables:
            self._bind(node.pipe, value)
        if value:
            self._run(node.body, value if node.kind == "with" else dot)
        else:
            self._run(node.otherwise, dot)

    def _range(self, node: _Action, value: Any, dot: Any) -> None:
        assert node.pipe is not None
        pairs: list[tuple[Any, Any]]
        match value:
            case None | Missing():
                pairs = []
            case dict():
                pairs = sorted(value.items())
            case list():
                pairs = list(enumerate(value))
            case bool() | str() | int() | float():
                raise TemplateError(f"template: range can't iterate over {text_of(value)}")
            case _:
                raise TemplateError("template: range can't iterate over this")
        if not pairs:
            self._run(node.otherwise, dot)
        for pair in pairs:
            names = node.pipe.variables
            bound = pair if len(names) == 2 else pair[1:]
            self._scope.update(zip(names, bound, strict=False))
            try:
                self._run(node.body, pair[1])
            except _Continue:
                continue
            except _Break:
                break

    def _pipe(self, pipe: _Pipe, dot: Any) -> Any:
        value: Any = None
        for index, command in enumerate(pipe.commands):
            piped = [_Literal(value)] if index else []
            head = command[0]
            if isinstance(head, str):
                value = self._call(head, [*command[1:], *piped], dot)
            elif len(command) > 1 or piped:
                raise TemplateError("template: can't give argument to what is not a function")
            else:
                value = self._value(head, dot)
        return value

    def _call(self, name: str, operands: list[Any], dot: Any) -> Any:
        if name in LAZY:  # "and" and "or" stop at the operand that decides
            if not operands:
                raise TemplateError(f"template: wrong number of args for {name}: want at least 1 got 0")
            value: Any = None
            for operand in operands:
                value = self._value(operand, dot)
                if bool(value) is LAZY[name]:
                    break
            return value
        return FUNCTIONS[name]([self._value(operand, dot) for operand in operands])

    def _value(self, operand: Any, dot: Any) -> Any:
        if isinstance(operand, _Literal):
            return operand.value
        if isinstance(operand, str):  # a function without arguments as an argument: {{len json}}
            return self._call(operand, [], dot)
        assert isinstance(operand, _Access)
        if isinstance(operand.base, _Pipe):
            value = self._pipe(operand.base, dot)
        elif operand.base == ".":
            value = dot
        elif operand.base in self._scope:
            value = self._scope[operand.base]
        else:
            raise TemplateError(f"template parsing error: undefined variable {operand.base!r}")
        for name in operand.fields:
            value = _field(value, name)
        return value


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value[name] if name in value else Missing(name)
    if value is None or isinstance(value, Missing):
        return Missing(name)
    raise TemplateError(f"template parsing error: can't evaluate field {name} in {text_of(value)[:40]!r}")
