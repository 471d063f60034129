"""What of Go's templates a service's spec is given, see ``worker.agent.templates``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from base.gotemplate.dialect import DEFINITIONS, LOOPS, Dialect
from base.gotemplate.faults import TemplateError
from base.gotemplate.functions import FUNCTIONS
from base.gotemplate.values import text_of
from worker.agent.templates import CHARACTERS_MAX


def _printf(pattern: str, *arguments: object) -> Iterator[str]:
    """Of text, whatever the verb: a slot is a string here, and people write ``%d`` for it. In pieces, as ``FUNCTIONS``."""
    position, used = 0, 0
    for match in re.finditer(r"%([sdvq%])", pattern):
        yield pattern[position : match.start()]
        position, verb = match.end(), match[1]
        if verb == "%":
            yield "%"
        elif used == len(arguments):
            yield f"%!{verb}(MISSING)"
        else:
            text = text_of(arguments[used])
            used += 1
            yield json.dumps(text, ensure_ascii=False) if verb == "q" else text
    yield pattern[position:]
    if used < len(arguments):
        raise TemplateError("printf: more arguments than verbs")


DIALECT = Dialect(
    functions={name: FUNCTIONS[name] for name in ("not", "eq", "ne", "len", "index", "print", "println")}
    | {"printf": _printf},
    unserved=DEFINITIONS | LOOPS,
    has_variables=False,
    missing_is_empty=False,
    depth_max=50,
    characters_max=CHARACTERS_MAX,
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
