"""A Compose file as text: YAML with the place of every key, and ``${VARIABLE}`` interpolation.

YAML 1.1 would read ``22:22`` as a number in base 60 and ``on`` as true; those resolvers are dropped, as Compose's own
(YAML 1.2) parser has none. ``0440`` stays octal: file modes are written so. What a variable brings in is always text
(a version "1.10" must not become the number 1.1); who needs a number or a boolean reads it from the text.

A file is somebody else's: aliases that would grow into more than ``VALUES_MAX`` values, and nesting deeper than
``DEPTH_MAX`` are refused before they cost anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from cli.composefile.interpolation import interpolate
from cli.composefile.source import ManifestError, Path_, Source

VALUES_MAX = 100_000
DEPTH_MAX = 60
_YAML = "tag:yaml.org,2002:"


class Octal(int):
    """A number that the file writes in octal (``0440``)."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without base-60 numbers, times and on/off/yes/no."""


_DROPPED = {f"{_YAML}{kind}" for kind in ("bool", "int", "float", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|0o?[0-7]+|[1-9][0-9]{0,30}|0x[0-9a-fA-F]{1,16})$", "-+0123456789"),
    ("float", r"^[-+]?(?:[0-9]{1,30}\.[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,2})?$", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"{_YAML}{_kind}", re.compile(_pattern), list(_first))


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    found = int(loader.construct_yaml_int(node))
    return Octal(found) if node.value.startswith("0") and found else found


_Loader.add_constructor(f"{_YAML}int", _integer)


def parse(text: str, name: str, directory: Path, environment: Mapping[str, str] | None) -> Source:
    """Parse one file.

    Args:
        environment: for interpolation; None leaves the text as it is.

    Raises:
        ManifestError: not YAML, too large, a duplicate key, not a mapping, or a variable that is required and missing.
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            reader = _Reader(loader, name, environment)
            value = {} if root is None else reader.value(root, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ManifestError(f"{name}:{mark.line + 1 if mark else 1}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ManifestError(f"{name}:1: {str(error).splitlines()[0]}") from error
    except RecursionError:
        raise ManifestError(f"{name}:1: nested too deeply") from None
    if not isinstance(value, dict):
        raise ManifestError(f"{name}:1: top-level object must be a mapping")
    return Source(name, directory, value, reader.lines if root is not None else {})


class _Reader:
    """Nodes to plain values. Aliases are followed, so what is counted is values, not nodes."""

    def __init__(self, loader: _Loader, name: str, environment: Mapping[str, str] | None) -> None:
        self._loader, self._name, self._environment = loader, name, environment
        self._count = 0
        self.lines: dict[Path_, str] = {}

    def value(self, node: yaml.Node, path: Path_) -> object:
        self._count += 1
        if self._count > VALUES_MAX:
            raise self._error(node, f"more than {VALUES_MAX} values (do aliases multiply?)")
        if len(path) > DEPTH_MAX:
            raise self._error(node, "nested too deeply (does an alias contain itself?)")
        self.lines.setdefault(path, self._line(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            self._plain(node, "seq")
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, object]:
        self._plain(node, "map")
        own: dict[str, object] = {}
        merged: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key must be text")
            if key_node.tag == f"{_YAML}merge":
                merged = {**self._merged(value_node, path), **merged}
                continue
            key = str(key_node.value)
            if key in own:
                raise self._error(key_node, f"duplicate key {key!r}")
            self.lines[(*path, key)] = self._line(key_node)
            own[key] = self.value(value_node, (*path, key))
        return {**merged, **own}

    def _merged(self, node: yaml.Node, path: Path_) -> dict[str, object]:
        """What ``<<`` brings in: a mapping, or a list of them of which the first with a key counts."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, object] = {}
        for one in nodes:
            if not isinstance(one, yaml.MappingNode):
                raise self._error(one, "<<: takes a mapping or a list of mappings")
            # One level deeper than it will stand, so that an alias that merges itself comes to an end.
            inner_path = (*path, "<<")
            outer, self.lines = self.lines, {}
            brought = self.value(one, inner_path)
            assert isinstance(brought, dict), "a mapping node"
            found = {**brought, **found}
            inner, self.lines = self.lines, outer
            for below, text in inner.items():
                outer.setdefault((*path, *below[len(inner_path) :]), text)
        return found

    def _scalar(self, node: yaml.ScalarNode) -> object:
        if self._environment is not None and "$" in node.value:
            try:
                return interpolate(node.value, self._environment)
            except ValueError as error:
                raise self._error(node, str(error)) from error
        try:
            return self._loader.construct_object(node, deep=True)
        except (ValueError, KeyError, OverflowError) as error:
            raise self._error(node, f"cannot be read as {node.tag.rpartition(':')[2]}: {node.value[:40]!r}") from error

    def _plain(self, node: yaml.Node, kind: str) -> None:
        if node.tag != f"{_YAML}{kind}":
            raise self._error(node, f"tag {node.tag!r} is not served")

    def _line(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"

    def _error(self, node: yaml.Node, message: str) -> ManifestError:
        return ManifestError(f"{self._line(node)}: {message}")
