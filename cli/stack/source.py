"""Stack files as text: YAML with the line of every key, and ``${VARIABLE}`` interpolation.

YAML 1.1 would read ``22:22`` as a number in base 60 and ``on`` as true; those resolvers are dropped, as Compose's own
(YAML 1.2) parser has none. ``0440`` stays octal: file modes are written so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Path_ = tuple[str | int, ...]


class ManifestError(Exception):
    """A stack file is wrong; the text begins with file and line."""


@dataclass(frozen=True)
class Source:
    """One parsed file.

    Attributes:
        name: as given on the command line, for messages.
        directory: relative paths in the file start here.
        value: its content, plain dictionaries and lists.
        lines: line (from 1) of each key or item, by path from the root.
    """

    name: str
    directory: Path
    value: dict[str, Any]
    lines: Mapping[Path_, int] = field(repr=False)

    def where(self, path: Path_) -> str:
        """``file:line``, of the nearest place above when the path itself is not in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}:{self.lines.get(path, 1)}"

    def error(self, path: Path_, message: str) -> ManifestError:
        return ManifestError(f"{self.where(path)}: {'.'.join(map(str, path))}: {message}")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without base-60 numbers and without on/off/yes/no."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag
        not in (
            "tag:yaml.org,2002:bool",
            "tag:yaml.org,2002:int",
            "tag:yaml.org,2002:float",
            "tag:yaml.org,2002:timestamp",
        )
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|0[0-7]+|[1-9][0-9]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def parse(text: str, name: str, directory: Path, environment: Mapping[str, str] | None) -> Source:
    """Parse one file.

    Args:
        environment: for interpolation; None leaves the text as it is.

    Raises:
        ManifestError: not YAML, a duplicate key, not a mapping, or a variable that is required and missing.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        lines: dict[Path_, int] = {}
        value = _construct(loader, root, (), lines, name, environment) if root is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ManifestError(f"{name}:{line}: {error.problem or error}") from error
    finally:
        loader.dispose()
    if not isinstance(value, dict):
        raise ManifestError(f"{name}:1: top-level object must be a mapping")
    return Source(name, directory, value, lines)


def _construct(
    loader: _Loader,
    node: yaml.Node,
    path: Path_,
    lines: dict[Path_, int],
    name: str,
    environment: Mapping[str, str] | None,
) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in made and not key_node.tag.endswith(":merge"):
                raise ManifestError(f"{name}:{key_node.start_mark.line + 1}: duplicate key {key!r}")
            lines[(*path, key)] = key_node.start_mark.line + 1
            made[key] = _construct(loader, value_node, (*path, key), lines, name, environment)
        return made
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(loader, item, (*path, index), lines, name, environment) for index, item in enumerate(node.value)
        ]
    if isinstance(node, yaml.ScalarNode) and environment is not None and "$" in node.value:
        try:
            text = interpolate(node.value, environment)
        except ValueError as error:
            raise ManifestError(f"{name}:{node.start_mark.line + 1}: {error}") from error
        # What a variable brings in is typed as if it had been written there, unless it is quoted.
        if node.style in ('"', "'") or text == node.value:
            return text
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]  # PyYAML has no types here
        return loader.construct_object(yaml.ScalarNode(tag, text))
    return loader.construct_object(node, deep=True)


_VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<named>[_a-zA-Z][_a-zA-Z0-9]*)|\{(?P<braced>[_a-zA-Z][_a-zA-Z0-9]*)(?:(?P<operator>:?[-?+])(?P<word>(?:[^{}]|\{[^{}]*\})*))?\}|(?P<invalid>))"
)


def interpolate(text: str, environment: Mapping[str, str]) -> str:
    """Replace ``$X``, ``${X}``, ``${X:-default}``, ``${X-default}``, ``${X:?error}``, ``${X:+other}``; ``$$`` is ``$``.

    Raises:
        ValueError: malformed, or a required variable is missing.
    """

    def replace(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        variable = match["named"] or match["braced"]
        if variable is None:
            raise ValueError(f"invalid interpolation format: {text!r}; you may need to escape any $ with another $")
        value, operator, word = environment.get(variable), match["operator"] or "", match["word"] or ""
        present = bool(value) if operator.startswith(":") else value is not None
        if operator.endswith("-"):
            return value if present and value is not None else interpolate(word, environment)
        if operator.endswith("+"):
            return interpolate(word, environment) if present else ""
        if operator.endswith("?") and not present:
            raise ValueError(f"required variable {variable} is missing a value: {interpolate(word, environment)}")
        return value or ""

    return _VARIABLE.sub(replace, text)


def merge(base: Any, over: Any) -> Any:
    """One file over another: mappings merge, lists are joined without repetition, the rest is replaced."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {
            key: merge(base[key], over[key]) if key in base and key in over else over.get(key, base.get(key))
            for key in {**base, **over}
        }
    if isinstance(base, list) and isinstance(over, list):
        return base + [item for item in over if item not in base]
    return over
