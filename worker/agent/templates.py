"""Go templates in hostnames, mounts, environment and payloads (features A10.13, A10.17), as far as services use them.

Fields (``.Task.Slot``, ``.Service.Labels.zone``), ``if``, ``with``, pipes, and the functions that make sense of text:
``and or not eq ne len index print println printf``. Payloads add ``env``, ``secret`` and ``config``. A missing map key is
an error, as in swarmkit's ``template/`` (``missingkey=error``). Loops, variables and definitions are not served and say
so; so the work is bounded by the length of the text.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping

from base.gotemplate.dialect import DEFINITIONS, LOOPS, Dialect
from base.gotemplate.engine import render
from base.gotemplate.faults import TemplateError
from base.gotemplate.functions import FUNCTIONS, Function
from base.gotemplate.values import text_of

Value = object


def expand(text: str, fields: Mapping[str, Value], functions: Mapping[str, Function] | None = None) -> str:
    """Evaluate ``text``.

    Args:
        fields: what ``.`` is: nested mappings, strings, numbers. Capitalised keys are fields of structures (a missing
            one is a mistake in the template); maps of the user's are ``base.gotemplate.values.Labels``.
        functions: besides the built-in ones.

    Raises:
        TemplateError: syntax, an unknown field or function, a wrong argument.
    """
    if "{{" not in text:
        return text
    dialect = dataclasses.replace(_DIALECT, functions={**_DIALECT.functions, **functions}) if functions else _DIALECT
    return render(text, fields, dialect)


def _printf(pattern: str, *arguments: Value) -> str:
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


_DIALECT = Dialect(
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
