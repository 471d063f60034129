"""Templates as nodes: texts, and actions with their pipelines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from base.gotemplate.dialect import Dialect
from base.gotemplate.faults import Fault
from base.gotemplate.functions import LAZY

# A word ends where the action does: "{{.Name}}" has no space before its braces.
_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<char>'(?:[^'\\\n]|\\.)+')|(?P<assign>:?=)
    |(?P<mark>[()|,])|(?P<word>(?:[^\s()|,"`'=:}]+|\}(?!\}))+)""",
    re.VERBOSE,
)
_COMMENT = re.compile(r"\{\{(?P<trims>-\s)?\s*/\*.*?\*/\s*(?P<trim>-)?\}\}", re.DOTALL)
_CLOSING = re.compile(r"(\s+-|\s*)\}\}")
_TRIM = re.compile(r"-\s")


def parse(template: str, dialect: Dialect) -> list[Node]:
    """The nodes of a template, in order. Raises: Fault."""
    return _Parser(_pieces(template), dialect).whole()


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    follows: bool
    """On the token before it, with no space between: ``(x).Y`` is a field of x, ``(x) .Y`` two operands."""


@dataclass(frozen=True, slots=True)
class Pipe:
    """``[$a[, $b] :=|=] command | command``; a command is a list of operands."""

    commands: list[list[Operand]]
    variables: tuple[str, ...] = ()
    declares: bool = True


@dataclass(frozen=True, slots=True)
class Access:
    """An operand with fields behind it: ``.Spec.Name``, ``$x.Name``, ``(index . 0).Name``."""

    base: str | Pipe  # "." for the dot, "$name" for a variable, a Pipe for parentheses
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Literal:
    value: Any


@dataclass(frozen=True, slots=True)
class Action:
    """What stands between braces; ``body`` and ``otherwise`` are of if, with and range."""

    kind: str
    pipe: Pipe | None = None
    body: list[Node] = field(default_factory=list)
    otherwise: list[Node] = field(default_factory=list)


Operand = Literal | Access | str
"""A text is a function's name."""
Node = str | Action


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
            yield text.rstrip(" \t\r\n") if comment["trims"] else text
            position, trimmed = comment.end(), comment["trim"] is not None
            continue
        inside = start + 2
        if _TRIM.match(template, inside):
            text = text.rstrip(" \t\r\n")
            inside += 1
        yield text
        tokens, position, trimmed = _tokens(template, inside)
        yield tokens


def _tokens(template: str, position: int) -> tuple[list[_Token], int, bool]:
    """Tokens up to the closing braces, the position behind them, and whether they trim what follows."""
    tokens: list[_Token] = []
    follows = False
    while position < len(template):
        if match := _CLOSING.match(template, position):
            return tokens, match.end(), match.group(1).endswith("-")
        found = _TOKEN.match(template, position)
        if found is None:
            raise Fault("unexpected_character", found=template[position])
        kind, text = str(found.lastgroup), found.group()
        position += len(text)
        if kind != "space":
            tokens.append(_Token(kind, text, follows))
        follows = kind != "space"
    raise Fault("unclosed_action")


class _Parser:
    def __init__(self, pieces: Iterator[str | list[_Token]], dialect: Dialect) -> None:
        self._pieces, self._dialect = pieces, dialect
        self._loops = 0

    def whole(self) -> list[Node]:
        nodes, closing, _ = self._block(0)
        if closing:
            raise Fault("unexpected_keyword", word=closing)
        return nodes

    def _block(self, depth: int) -> tuple[list[Node], str, list[_Token]]:
        """Nodes up to ``end`` or ``else``; that word and what follows it. The word is "" at the template's end."""
        self._check(depth)
        nodes: list[Node] = []
        for piece in self._pieces:
            if isinstance(piece, str):
                nodes.append(piece)
                continue
            word = piece[0].text if piece and piece[0].kind == "word" else ""
            if word in ("end", "else"):
                return nodes, word, piece[1:]
            nodes.append(self._action(word, piece, depth))
        return nodes, "", []

    def _check(self, depth: int) -> None:
        if depth > self._dialect.depth_max:
            raise Fault("too_deep", most=self._dialect.depth_max)

    def _action(self, word: str, tokens: list[_Token], depth: int) -> Action:
        if word in self._dialect.unserved:
            raise Fault("unserved", word=word)
        if word in ("if", "with", "range"):
            return self._branch(word, tokens[1:], depth)
        if word in ("break", "continue") and len(tokens) == 1:
            if not self._loops:
                raise Fault("outside_range", word=word)
            return Action(word)
        return Action("print", self._pipe(tokens))

    def _branch(self, word: str, tokens: list[_Token], depth: int) -> Action:
        pipe = self._pipe(tokens, range_=word == "range")
        self._loops += word == "range"
        body, closing, rest = self._block(depth + 1)
        self._loops -= word == "range"
        otherwise: list[Node] = []
        if closing == "else":
            if rest and rest[0].text in ("if", "with") and word != "range":
                return Action(word, pipe, body, [self._branch(rest[0].text, rest[1:], depth + 1)])
            if rest:
                raise Fault("after_else", found=rest[0].text)
            otherwise, closing, rest = self._block(depth + 1)
        if closing != "end" or rest:
            raise Fault("no_end", found=closing or "EOF", word=word)
        return Action(word, pipe, body, otherwise)

    def _pipe(self, tokens: list[_Token], *, range_: bool = False) -> Pipe:
        names: list[str] = []
        at = next((index for index, token in enumerate(tokens) if token.kind == "assign"), None)
        declares = True
        if at is not None:
            if not self._dialect.has_variables:
                raise Fault("unexpected_character", found=tokens[at].text[0])
            names = [token.text for token in tokens[:at] if token.text != ","]
            declares = tokens[at].text == ":="
            if not 0 < len(names) <= (2 if range_ else 1) or not all(re.fullmatch(r"\$\w+", name) for name in names):
                raise Fault("bad_variables")
            tokens = tokens[at + 1 :]
        commands, end = self._commands(tokens, 0, 0)
        if end < len(tokens):
            raise Fault("unexpected_paren")
        return Pipe(commands, tuple(names), declares)

    def _commands(self, tokens: list[_Token], at: int, depth: int) -> tuple[list[list[Operand]], int]:
        """Commands from the token ``at`` on, up to the parenthesis that closes this level; where that is."""
        self._check(depth)
        commands: list[list[Operand]] = [[]]
        while at < len(tokens) and tokens[at].text != ")":
            token = tokens[at]
            at += 1
            if token.kind == "mark" and token.text == "|":
                commands.append([])
            elif token.kind == "mark" and token.text == "(":
                inner, at = self._commands(tokens, at, depth + 1)
                if at == len(tokens):
                    raise Fault("unclosed_paren")
                at += 1
                fields: tuple[str, ...] = ()
                if at < len(tokens) and tokens[at].follows and re.match(r"\.\w", tokens[at].text):
                    fields = _fields(tokens[at].text)
                    at += 1
                commands[-1].append(Access(Pipe(inner), fields))
            elif token.kind in ("mark", "assign"):
                raise Fault("unexpected_operand", found=token.text)
            else:
                commands[-1].append(self._operand(token))
        if not all(commands):
            raise Fault("missing_value")
        return commands, at

    def _operand(self, token: _Token) -> Operand:
        text = token.text
        if token.kind == "string":
            return Literal(text[1:-1] if text[0] == "`" else _unquote(text))
        if token.kind == "char":
            inner = _unquote('"' + text[1:-1].replace('"', '\\"') + '"')
            if len(inner) != 1:
                raise Fault("bad_character", text=text)
            return Literal(ord(inner))
        if text in ("true", "false", "nil"):
            return Literal({"true": True, "false": False, "nil": None}[text])
        if text == ".":
            return Access(".", ())
        if text.startswith("."):
            return Access(".", _fields(text))
        if text.startswith("$"):
            name, dot, rest = text.partition(".")
            return Access(name, _fields(f".{rest}") if dot else ())
        if re.fullmatch(r"[-+]?(\d{1,300}|0x[0-9a-fA-F]{1,16})", text):
            return Literal(int(text, 0 if "x" in text else 10))
        if re.fullmatch(r"[-+]?(\d{1,300}\.\d{0,300}|\.\d{1,300})(e[-+]?\d{1,2})?", text):
            return Literal(float(text))
        found = re.match(r"(?:[^\W\d]\w*)?", text)
        if found is None or found.end() < len(text):
            raise Fault("unexpected_character", found=text[found.end() if found else 0])
        if text not in self._dialect.functions and text not in LAZY:
            raise Fault("unknown_function", name=text)
        return text


def _fields(text: str) -> tuple[str, ...]:
    names = tuple(text.split(".")[1:])
    if not all(re.fullmatch(r"\w+", name) for name in names):
        raise Fault("bad_field", text=text)
    return names


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"} | {
    char: char for char in "\\\"'/"
}


def _unquote(text: str) -> str:
    """A Go string constant's value."""

    def replace(match: re.Match[str]) -> str:
        code = match.group(1)
        if code[0] in "xuU" and len(code) > 1:
            number = int(code[1:], 16)
            if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                raise Fault("bad_string", text=text)
            return chr(number)
        if code not in _ESCAPES:
            raise Fault("bad_string", text=text)
        return _ESCAPES[code]

    return re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", replace, text[1:-1], flags=re.DOTALL)
