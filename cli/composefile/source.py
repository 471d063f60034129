"""What all of reading stands on: the content of a file, where each value of it stands, and how a refusal says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Path_ = tuple[str | int, ...]


class ManifestError(Exception):
    """A Compose file is wrong; the text begins with file and line (with the file alone when it cannot be read)."""


@dataclass(frozen=True)
class Source:
    """One parsed file, or several merged.

    Attributes:
        name: as given on the command line, for messages.
        directory: relative paths in the file start here.
        value: its content, plain dictionaries and lists.
        lines: ``file:line`` of each key or item, by path from the root.
    """

    name: str
    directory: Path
    value: dict[str, object]
    lines: Mapping[Path_, str] = field(repr=False)

    def where(self, path: Path_) -> str:
        """``file:line``, of the nearest place above when the path itself is not in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, f"{self.name}:1")


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in a file: what a later refusal of it, or a warning about it, begins with."""

    source: Source = field(repr=False)
    path: Path_ = ()

    @property
    def where(self) -> str:
        """``file:line``."""
        return self.source.where(self.path)

    @property
    def dotted(self) -> str:
        """The path, as messages write it: ``services.web.ports.1``."""
        return ".".join(map(str, self.path))

    def inner(self, key: str | int) -> Place:
        """The place of a key or an item in what stands here."""
        return Place(self.source, (*self.path, key))

    def error(self, message: str) -> ManifestError:
        return ManifestError(f"{self.where}: {self.dotted}: {message}")
