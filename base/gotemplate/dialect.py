"""What one reader of templates serves, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from base.gotemplate.values import Function

DEFINITIONS = frozenset({"define", "template", "block"})
LOOPS = frozenset({"range", "break", "continue"})


@dataclass(frozen=True, slots=True)
class Dialect:
    """A reader's parameters.

    Attributes:
        functions: by name, besides ``and`` and ``or``, which are always there; called with the operands' values.
        unserved: the keywords that are refused.
        has_variables: whether ``$x :=`` is served. Without it and ``LOOPS`` nothing is evaluated twice.
        missing_is_empty: a key that is not there counts as empty where it is tested and as an error where it is printed
            (JSON does not tell an optional field from a slip of the pen); otherwise it is an error at once.
        depth_max: how deep actions, and parentheses, may be nested.
        characters_max: how much a run may do where its caller gives no ``Budget``.
        parse_prefix, run_prefix: before the words of what is in ``faults.PARSING`` and ``faults.RUNNING``.
        words: instead of those, by code.
    """

    functions: Mapping[str, Function]
    unserved: frozenset[str] = DEFINITIONS
    has_variables: bool = True
    missing_is_empty: bool = True
    depth_max: int = 60
    characters_max: int = 50_000_000
    parse_prefix: str = ""
    run_prefix: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
