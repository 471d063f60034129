"""Stack files as text: YAML with the place of every key, ``${VARIABLE}`` interpolation, and several files merged.

YAML 1.1 would read ``22:22`` as a number in base 60 and ``on`` as true; those resolvers are dropped, as Compose's own
(YAML 1.2) parser has none. ``0440`` stays octal: file modes are written so. What a variable brings in is always text
(a version "1.10" must not become the number 1.1); who needs a number or a boolean reads it from the text.

A file is somebody else's: aliases that would grow into more than ``VALUES_MAX`` values, nesting deeper than
``DEPTH_MAX`` and files larger than ``FILE_BYTES_MAX`` are refused before they cost anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cli.composefile.interpolation import interpolate

__all__ = ["FILE_BYTES_MAX", "ManifestError", "Path_", "Source", "interpolate", "merge", "parse"]

Path_ = tuple[str | int, ...]

FILE_BYTES_MAX = 4 * 2**20
VALUES_MAX = 100_000
DEPTH_MAX = 60
_YAML = "tag:yaml.org,2002:"


class ManifestError(Exception):
    """A stack file is wrong; the text begins with file and line."""


@dataclass(frozen=True)
class Source:
    """One parsed file, or several merged.

    Attributes:
        name: as given on the command line, for messages.
        directory: relative paths in the file start here.
        value: its content, plain dictionaries and lists.
        places: ``file:line`` of each key or item, by path from the root.
    """

    name: str
    directory: Path
    value: dict[str, Any]
    places: Mapping[Path_, str] = field(repr=False)

    def where(self, path: Path_) -> str:
        """``file:line``, of the nearest place above when the path itself is not in the file."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, f"{self.name}:1")

    def error(self, path: Path_, message: str) -> ManifestError:
        return ManifestError(f"{self.where(path)}: {'.'.join(map(str, path))}: {message}")


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
    return Source(name, directory, value, reader.places if root is not None else {})


class _Reader:
    """Nodes to plain values. Aliases are followed, so what is counted is values, not nodes."""

    def __init__(self, loader: _Loader, name: str, environment: Mapping[str, str] | None) -> None:
        self._loader, self._name, self._environment = loader, name, environment
        self._count = 0
        self.places: dict[Path_, str] = {}

    def value(self, node: yaml.Node, path: Path_) -> Any:
        self._count += 1
        if self._count > VALUES_MAX:
            raise self._error(node, f"more than {VALUES_MAX} values (do aliases multiply?)")
        if len(path) > DEPTH_MAX:
            raise self._error(node, "nested too deeply (does an alias contain itself?)")
        self.places.setdefault(path, self._place(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            self._plain(node, "seq")
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        self._plain(node, "map")
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key must be text")
            if key_node.tag == f"{_YAML}merge":
                merged = {**self._merged(value_node, path), **merged}
                continue
            key = str(key_node.value)
            if key in own:
                raise self._error(key_node, f"duplicate key {key!r}")
            self.places[(*path, key)] = self._place(key_node)
            own[key] = self.value(value_node, (*path, key))
        return {**merged, **own}

    def _merged(self, node: yaml.Node, path: Path_) -> dict[str, Any]:
        """What ``<<`` brings in: a mapping, or a list of them of which the first with a key counts."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Any] = {}
        for one in nodes:
            if not isinstance(one, yaml.MappingNode):
                raise self._error(one, "<<: takes a mapping or a list of mappings")
            # One level deeper than it will stand, so that an alias that merges itself comes to an end.
            inner_path = (*path, "<<")
            outer, self.places = self.places, {}
            found = {**self.value(one, inner_path), **found}
            inner, self.places = self.places, outer
            for place, text in inner.items():
                outer.setdefault((*path, *place[len(inner_path) :]), text)
        return found

    def _scalar(self, node: yaml.ScalarNode) -> Any:
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

    def _place(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"

    def _error(self, node: yaml.Node, message: str) -> ManifestError:
        return ManifestError(f"{self._place(node)}: {message}")


# ---------------------------------------------------------------------- several files

# Lists of a service that name something: an entry of a later file takes the place of the one with the same name.
_KEYED = {"volumes": "target", "secrets": "source", "configs": "source", "ports": "published"}
_REPLACED = {"command", "entrypoint"}
_AS_MAPPING = {"environment", "labels", "sysctls", "extra_hosts"}


def merge(base: Source, over: Source) -> Source:
    """One file over another, as Docker's command merges them.

    Mappings merge key by key, also where the one file writes a list of ``key=value`` and the other a mapping; lists
    are joined, an entry with the same target (volumes), published port, source (secrets, configs) or text taking the
    place of the earlier one; ``command`` and ``entrypoint`` and
    everything else are replaced. Paths stay relative to the first file.
    """
    merger = _Merger(base, over)
    value = merger.merge((), base.value, over.value, (), ())
    return Source(base.name, base.directory, value, merger.places)


class _Merger:
    def __init__(self, base: Source, over: Source) -> None:
        self._base, self._over = base, over
        self.places: dict[Path_, str] = {}

    def merge(self, path: Path_, base: Any, over: Any, from_base: Path_, from_over: Path_) -> Any:
        key = path[-1] if path else ""
        if key in _AS_MAPPING and (isinstance(base, dict) or isinstance(over, dict)):
            base, over = _as_mapping(base), _as_mapping(over)
        if isinstance(base, dict) and isinstance(over, dict):
            self._mark(path, self._base, from_base)
            made = {}
            for name in {**base, **over}:
                inner, of_base, of_over = (*path, name), (*from_base, name), (*from_over, name)
                if name in base and name in over:
                    made[name] = self.merge(inner, base[name], over[name], of_base, of_over)
                elif name in over:
                    made[name] = self._take(inner, over[name], self._over, of_over)
                else:
                    made[name] = self._take(inner, base[name], self._base, of_base)
            return made
        if isinstance(base, list) and isinstance(over, list) and key not in _REPLACED:
            return self._lists(path, base, over, from_base, from_over)
        return self._take(path, over, self._over, from_over)

    def _lists(self, path: Path_, base: list[Any], over: list[Any], from_base: Path_, from_over: Path_) -> list[Any]:
        self._mark(path, self._base, from_base)
        kind = str(path[-1]) if path else ""
        entries = {_identity(kind, item): (item, self._base, (*from_base, i)) for i, item in enumerate(base)}
        entries |= {_identity(kind, item): (item, self._over, (*from_over, i)) for i, item in enumerate(over)}
        return [self._take((*path, index), *entry) for index, entry in enumerate(entries.values())]

    def _take(self, path: Path_, value: Any, source: Source, origin: Path_) -> Any:
        """A value of one file, with its places."""
        self._mark(path, source, origin)
        if isinstance(value, dict):
            return {key: self._take((*path, key), item, source, (*origin, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._take((*path, i), item, source, (*origin, i)) for i, item in enumerate(value)]
        return value

    def _mark(self, path: Path_, source: Source, origin: Path_) -> None:
        self.places[path] = source.where(origin)


def _identity(kind: str, item: Any) -> str:
    """What makes two entries of a list the same one."""
    if kind not in _KEYED:
        return repr(item)
    if isinstance(item, dict):
        return str(item.get(_KEYED[kind]) or item.get("target"))
    parts = str(item).partition("/")[0].split(":") if kind == "ports" else str(item).split(":")
    if kind == "volumes":
        return parts[1] if len(parts) > 1 and parts[1].startswith("/") else parts[0]
    return parts[-2] if kind == "ports" and len(parts) > 1 else parts[-1]


def _as_mapping(value: Any) -> Any:
    """A list of ``key=value`` as a mapping; ``key`` alone has no value, which is taken from the environment later."""
    if not isinstance(value, list):
        return value
    pairs = (str(item).partition("=") for item in value)
    return {key: item if separator else None for key, separator, item in pairs}
