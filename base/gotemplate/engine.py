"""Templates applied to values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from base.gotemplate.dialect import Dialect
from base.gotemplate.faults import PARSING, Fault, TemplateError
from base.gotemplate.functions import LAZY
from base.gotemplate.parser import Access, Action, Literal, Node, Operand, Pipe, parse
from base.gotemplate.values import Budget, Labels, Missing, short, text_of


def render(template: str, value: Any, dialect: Dialect, budget: Budget | None = None) -> str:
    """Apply ``template`` to ``value``.

    Args:
        value: what ``.`` is: decoded JSON, or mappings (fields of structures; ``Labels`` are maps of the user's), texts
            and numbers.
        budget: how much it may do, shared with others; its own of the dialect's size by default.

    Raises:
        TemplateError: it cannot be parsed, or asks for what is not there; in the words of the dialect.
    """
    budget = budget or Budget(dialect.characters_max)
    try:
        budget.spend(len(template))
        return _Run(value, dialect, budget).text(parse(template, dialect))
    except Fault as fault:
        prefix = dialect.parse_prefix if fault.code in PARSING else dialect.run_prefix
        raise TemplateError(prefix + fault.text(dialect.words)) from None
    except RecursionError:
        deep = Fault("too_deep", most=dialect.depth_max)
        raise TemplateError(dialect.parse_prefix + deep.text(dialect.words)) from None


class _Break(Exception):  # noqa: N818  # control flow, as Python's own StopIteration
    pass


class _Continue(Exception):  # noqa: N818  # as above
    pass


class _Run:
    """One execution: the variables in scope, and what was written."""

    def __init__(self, root: Any, dialect: Dialect, budget: Budget) -> None:
        self._dialect, self._budget = dialect, budget
        self._scope: dict[str, Any] = {"$": root}
        self._written: list[str] = []

    def text(self, nodes: list[Node]) -> str:
        self._run(nodes, self._scope["$"])
        return "".join(self._written)

    def _write(self, text: str) -> None:
        self._budget.spend(len(text))
        self._written.append(text)

    def _run(self, nodes: list[Node], dot: Any) -> None:
        self._budget.spend(1 + len(nodes))  # loops in loops may write nothing
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

    def _print(self, node: Action, dot: Any) -> None:
        assert node.pipe is not None
        value = self._pipe(node.pipe, dot)
        if node.pipe.variables:
            self._bind(node.pipe, value)
        else:
            self._write(text_of(value))

    def _bind(self, pipe: Pipe, value: Any) -> None:
        name = pipe.variables[0]
        if not pipe.declares and name not in self._scope:
            raise Fault("undefined_variable", name=name)
        self._scope[name] = value

    def _branch(self, node: Action, dot: Any) -> None:
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

    def _range(self, node: Action, value: Any, dot: Any) -> None:
        assert node.pipe is not None
        pairs: list[tuple[Any, Any]]
        match value:
            case None | Missing():
                pairs = []
            case Mapping():
                pairs = sorted(value.items())
            case list():
                pairs = list(enumerate(value))
            case bool() | str() | int() | float():
                raise Fault("no_range", value=text_of(value))
            case _:
                raise Fault("no_range", value="this")
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

    def _pipe(self, pipe: Pipe, dot: Any) -> Any:
        value: Any = None
        for index, command in enumerate(pipe.commands):
            piped = [Literal(value)] if index else []
            head = command[0]
            if isinstance(head, str):
                value = self._call(head, [*command[1:], *piped], dot)
            elif len(command) > 1 or piped:
                raise Fault("no_function")
            else:
                value = self._value(head, dot)
        return value

    def _call(self, name: str, operands: list[Operand], dot: Any) -> Any:
        if name in LAZY:  # "and" and "or" stop at the operand that decides
            if not operands:
                raise Fault("argument_count", name=name, want="at least 1", got=0)
            value: Any = None
            for operand in operands:
                value = self._value(operand, dot)
                if bool(value) is LAZY[name]:
                    break
            return value
        values = [self._value(operand, dot) for operand in operands]
        self._budget.spend(1 + sum(len(value) for value in values if isinstance(value, str)))
        try:
            made = self._dialect.functions[name](*values)
            if isinstance(made, Iterator):
                return "".join(self._counted(made))
        except TypeError:
            raise Fault("arguments", name=name) from None
        self._budget.spend(len(made) if isinstance(made, str | list) else 0)
        return made

    def _counted(self, pieces: Iterator[str]) -> Iterator[str]:
        """Each piece before the next one is made."""
        for piece in pieces:
            self._budget.spend(len(piece))
            yield piece

    def _value(self, operand: Operand, dot: Any) -> Any:
        if isinstance(operand, Literal):
            return operand.value
        if isinstance(operand, str):  # a function without arguments as an argument: {{len json}}
            return self._call(operand, [], dot)
        assert isinstance(operand, Access)
        if isinstance(operand.base, Pipe):
            value = self._pipe(operand.base, dot)
        elif operand.base == ".":
            value = dot
        elif operand.base in self._scope:
            value = self._scope[operand.base]
        else:
            raise Fault("undefined_variable", name=operand.base)
        for name in operand.fields:
            value = self._field(value, name)
        return value

    def _field(self, value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            if name in value:
                return value[name]
            if self._dialect.missing_is_empty:
                return Missing(name)
            raise Fault("no_key" if isinstance(value, Labels) else "unknown_field", name=name)
        if self._dialect.missing_is_empty and (value is None or isinstance(value, Missing)):
            return Missing(name)
        raise Fault("not_a_structure", name=name, value=short(value))
