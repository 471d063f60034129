"""What of Go's templates a service's spec is given, see ``worker.agent.templates``."""

from __future__ import annotations

import json
import re

from base.gotemplate.dialect import DEFINITIONS, LOOPS, Dialect
from base.gotemplate.faults import TemplateError
from base.gotemplate.functions import FUNCTIONS
from base.gotemplate.values import text_of


def _printf(pattern: str, *arguments: object) -> str:
    """Of text, whatever the verb: a slot is a string here, and people write ``%d`` for it."""
    rest = list(arguments)

    def one(match: re.Match[str]) -> str:
        verb = match[1]
        if verb == "%":
            return "%"
        if not rest:
            return f"%!{verb}(MISSING)"
        value = rest.pop(0)
        return json.dumps(text_of(value), ensure_ascii=False) if verb == "q" else text_of(value)

    text = re.sub(r"%([sdvq%])", one, pattern)
    if rest:
        raise TemplateError("printf: more arguments than verbs")
    return text


DIALECT = Dialect(
    functions={name: FUNCTIONS[name] for name in ("not", "eq", "ne", "len", "index", "print", "println")}
    | {"printf": _printf},
    unserved=DEFINITIONS | LOOPS,
    has_variables=False,
    missing_is_empty=False,
    depth_max=50,
    words={
        "after_else": "unexpected text after else",
        "argument_count": "wrong arguments for %(name)s",
        "bad_string": "bad string %(text)s",
        "no_end": "{{%(word)s}} without {{end}}",
        "no_function": "can't give argument to non-function",
        "no_index": "can't index item of this type",
        "no_length": "len of this type",
        "not_a_structure": "can't evaluate field %(name)s in a value that is no structure",
        "too_deep": "nested deeper than %(most)d",
        "unexpected_character": "unexpected %(found)r in action",
        "unexpected_paren": "unexpected ')'",
        "unknown_function": 'function "%(name)s" not defined',
        "unserved": "{{%(word)s}} is not supported here",
    },
)
