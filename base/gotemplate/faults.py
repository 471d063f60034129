"""What can be wrong with a template, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping


class TemplateError(ValueError):
    """The template cannot be parsed, or asks for something that is not there. One line."""


QUOTED_LENGTH_MAX = 200


def _cut(value: object) -> object:
    """Errors are kept and shown: a template of a megabyte is not to be one of them."""
    return value if isinstance(value, int) else str(value)[:QUOTED_LENGTH_MAX]


class Fault(Exception):  # noqa: N818  # becomes a TemplateError in the words of the dialect, see ``engine.render``
    """Raised inside the package: a key of ``PARSING`` or ``RUNNING`` and the values its words name."""

    def __init__(self, code: str, /, **values: object) -> None:
        super().__init__(code, values)
        self.code, self.values = code, values

    def text(self, words: Mapping[str, str]) -> str:
        """In ``words`` where they have some for it, in ours otherwise; without a prefix."""
        found = words.get(self.code) or PARSING.get(self.code) or RUNNING[self.code]
        return found % {name: _cut(value) for name, value in self.values.items()}


PARSING: Mapping[str, str] = {
    "after_else": "unexpected %(found)r in else",
    "bad_character": "malformed character constant: %(text)s",
    "bad_field": "bad field %(text)r",
    "bad_string": "invalid syntax",
    "bad_variables": "bad variables before assignment",
    "missing_value": "missing value for command",
    "no_end": "unexpected %(found)s",
    "no_key": 'map has no entry for key "%(name)s"',
    "not_a_structure": "can't evaluate field %(name)s in %(value)r",
    "outside_range": "{{%(word)s}} outside {{range}}",
    "too_deep": "nested too deeply",
    "unclosed_action": "unclosed action",
    "unclosed_paren": "unclosed left paren",
    "undefined_variable": "undefined variable %(name)r",
    "unexpected_character": "unexpected %(found)r in command",
    "unexpected_keyword": "unexpected {{%(word)s}}",
    "unexpected_operand": "unexpected %(found)r in operand",
    "unexpected_paren": "unexpected )",
    "unknown_field": "can't evaluate field %(name)s",
    "unknown_function": "function %(name)r not defined",
    "unserved": "{{%(word)s}} is not served",
}
"""What docker calls a template parsing error, fields that are not there included."""

RUNNING: Mapping[str, str] = {
    "argument_count": "wrong number of args for %(name)s: want %(want)s got %(got)d",
    "arguments": "wrong arguments for %(name)s",
    "calling": "error calling %(name)s: %(reason)s",
    "incomparable": "incompatible types for comparison",
    "no_function": "can't give argument to what is not a function",
    "no_index": "error calling index: can't index item of %(value)s",
    "no_length": "error calling len: len of %(value)s",
    "no_number": "want a number from 0 to %(most)d, got %(value)s",
    "no_range": "range can't iterate over %(value)s",
    "no_string": "wrong type for value; expected string; got %(value)s",
    "too_long": "output too large",
}
