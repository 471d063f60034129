"""Go templates in hostnames, mounts, environment and payloads (features A10.13, A10.17), as far as services use them.

Fields (``.Task.Slot``, ``.Service.Labels.zone``), ``if``, ``with``, pipes, and the functions that make sense of text:
``and or not eq ne len index print println printf``. Payloads add ``env``, ``secret`` and ``config``. A missing map key is
an error, as in swarmkit's ``template/`` (``missingkey=error``). Loops, variables and definitions are not served and say
so. How much the templates of a task may make is bounded for all of them together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from base.gotemplate.values import Budget, Function

Value = object

CHARACTERS_MAX = 4 * 1024 * 1024
"""What the templates of one task may do together. A config of the greatest size that takes in a secret of the greatest
size needs half of it; what the kernel takes of a process's environment is less."""


def expand(
    text: str,
    fields: Mapping[str, Value],
    functions: Mapping[str, Function] | None = None,
    budget: Budget | None = None,
) -> str:
    """Evaluate ``text``.

    Args:
        fields: what ``.`` is: nested mappings, strings, numbers. Capitalised keys are fields of structures (a missing
            one is a mistake in the template); maps of the user's are ``base.gotemplate.values.Labels``.
        functions: besides the built-in ones.
        budget: shared with the other templates of the task; ``CHARACTERS_MAX`` by default.

    Raises:
        TemplateError: syntax, an unknown field or function, a wrong argument.
    """
    if "{{" not in text:
        return text
    # Imported when there is a template: a daemon starts 10 ms sooner.
    from base.gotemplate.engine import render
    from worker.agent.template_dialect import DIALECT

    dialect = dataclasses.replace(DIALECT, functions={**DIALECT.functions, **functions}) if functions else DIALECT
    return render(text, fields, dialect, budget)
