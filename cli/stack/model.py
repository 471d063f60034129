"""A stack on its way from file to API: the specs collected so far, and what services refer to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.composefile.cursor import Cursor

NAMESPACE_LABEL = "com.docker.stack.namespace"
IMAGE_LABEL = "com.docker.stack.image"

Object = dict[str, Any]


@dataclass
class Stack:
    """What is to be deployed.

    Attributes:
        services: ServiceSpecs; secret and config references have names and no IDs yet.
        configs, secrets: specs to create or update, by name.
        external: names of configs and secrets that must be there already.
        warnings: for stderr.
    """

    name: str
    services: list[Object] = field(default_factory=list)
    configs: dict[str, Object] = field(default_factory=dict)
    secrets: dict[str, Object] = field(default_factory=dict)
    external: dict[str, set[str]] = field(default_factory=lambda: {"config": set(), "secret": set()})
    warnings: list[str] = field(default_factory=list)

    def labelled(self, labels: Mapping[str, str]) -> dict[str, str]:
        """The labels with the stack's own."""
        return {**labels, NAMESPACE_LABEL: self.name}


@dataclass(frozen=True)
class Context:
    """What services refer to.

    Attributes:
        blobs: for "config" and "secret", the full name of each key.
        volumes: the entries of the file's ``volumes``, by key.
        environment: variables of the caller.
    """

    stack: Stack
    directory: Path
    blobs: Mapping[str, Mapping[str, str]]
    volumes: Mapping[str, Cursor]
    environment: Mapping[str, str]


def read_bytes(name: Cursor, directory: Path, most: int) -> bytes:
    """At most so many bytes of the file that a value names, relative to the stack file."""
    path = directory / name.text()
    try:
        with path.open("rb") as file:
            return file.read(most)
    except (OSError, ValueError) as error:
        raise name.error(f"{path}: {getattr(error, 'strerror', None) or error}") from error
