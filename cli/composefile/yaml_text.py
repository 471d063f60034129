"""Values as the YAML that Docker's command prints (go-yaml's): its indentation, quotes and order of keys."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping

import yaml

_TEXT = "tag:yaml.org,2002:str"
# What a reader of YAML 1.1 or 1.2 takes for something else than text when it is not quoted.
_NO_TEXT = re.compile(
    r"|~|null|Null|NULL|true|True|TRUE|false|False|FALSE"
    r"|y|Y|yes|Yes|YES|on|On|ON|n|N|no|No|NO|off|Off|OFF"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    r"|[-+]?[0-9][0-9_]*|[-+]?0(?:o[0-7_]+|x[0-9a-fA-F_]+|b[01_]+)"
    r"|[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt ].*)?"
)


def yaml_text(value: object) -> str:
    """A document of mappings, lists and scalars; mappings keep their order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize))


class _Dumper(yaml.SafeDumper):
    """Says itself what is quoted: without resolvers, every scalar may stand plain."""

    yaml_implicit_resolvers: dict[str, object] = {}  # noqa: RUF012  # as the class it overrides has it

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else '"' if _NO_TEXT.fullmatch(text) else None
    return dumper.represent_scalar(_TEXT, text, style)


def _plain(dumper: _Dumper, value: float | None) -> yaml.ScalarNode:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return dumper.represent_scalar(_TEXT, text.removesuffix(".0"))


_Dumper.add_representer(str, _text)
for _kind in (int, float, bool, type(None)):
    _Dumper.add_representer(_kind, _plain)
_Dumper.add_multi_representer(int, _plain)


def in_order(mapping: Mapping[str, object]) -> dict[str, object]:
    """A mapping whose keys are free, in go-yaml's order: letters last, runs of digits as numbers."""
    return {key: mapping[key] for key in sorted(mapping, key=functools.cmp_to_key(_compare))}


def _compare(left: str, right: str) -> int:
    """-1 when ``left`` comes first. Reference: go-yaml, sorter.go, ``keyList.Less``."""
    digits = False
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a == b:
            digits = a.isdecimal()
        elif a.isalpha() and b.isalpha():
            return -1 if a < b else 1
        elif a.isalpha() or b.isalpha():
            return -1 if (a if digits else b).isalpha() else 1
        else:
            return -1 if _number(left, index, a) < _number(right, index, b) else 1
    return len(left) - len(right)


def _number(text: str, index: int, char: str) -> tuple[int, int, str]:
    """What is compared where two keys begin to differ: the digits from there, as a number."""
    found = re.compile("[0-9]*").match(text, index)
    run = found.group() if found else ""
    # A run that goes on from equal digits counts them too, so that 10 comes after 9 and 1 before 10.
    before = 1 if text[:index].rstrip("0")[-1:].isdecimal() else 0
    return int(f"{before}{run}"[:300] or 0), len(run), char
