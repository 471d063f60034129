"""``--format``: Go templates over decoded JSON, with Docker's functions, in Docker's words."""

from __future__ import annotations

from typing import Any  # Any: values of the API's JSON, as templates walk them

from base.gotemplate import engine
from base.gotemplate.dialect import Dialect
from base.gotemplate.functions import FUNCTIONS

_DIALECT = Dialect(functions=FUNCTIONS, parse_prefix="template parsing error: ", run_prefix="template: ")


def render(template: str, value: Any) -> str:
    """Apply ``template`` to ``value``, decoded JSON.

    Raises:
        TemplateError: cannot be parsed, or asks for what is not there; one line, as Docker begins it.
    """
    return engine.render(template, value, _DIALECT)
