"""A file's content with its relative paths made absolute: what ``stack config`` prints may be deployed from anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable

from cli.composefile.source import Source


def absolute(source: Source) -> dict[str, object]:
    """The content of ``source`` with sources of bind mounts, ``env_file`` and ``file`` as absolute paths.

    What is no path or of the wrong kind stays as it is, and so does a path that begins with a variable.
    """

    def path(value: object) -> object:
        if not isinstance(value, str) or not value or value.startswith("$"):
            return value
        return os.path.normpath(os.path.join(os.path.abspath(source.directory), os.path.expanduser(value)))

    def mount(value: object) -> object:
        if isinstance(value, dict):
            return _at(value, "source", path) if value.get("type") == "bind" else value
        if not isinstance(value, str) or not value.startswith((".", "~")) or ":" not in value:
            return value
        host, _, rest = value.partition(":")
        return f"{path(host)}:{rest}"

    def env_file(value: object) -> object:
        return _at(value, "path", path) if isinstance(value, dict) else path(value)

    def service(value: object) -> object:
        return _at(_at(value, "volumes", _each(mount)), "env_file", _each(env_file))

    found: object = _at(source.value, "services", _each(service))
    for kind in ("configs", "secrets"):
        found = _at(found, kind, _each(lambda value: _at(value, "file", path)))
    assert isinstance(found, dict), "it was one"
    return found


def _at(value: object, key: str, change: Callable[[object], object]) -> object:
    """A mapping with one value changed; anything else as it is."""
    return {**value, key: change(value[key])} if isinstance(value, dict) and key in value else value


def _each(change: Callable[[object], object]) -> Callable[[object], object]:
    """What changes every item of a list or value of a mapping, or a single value."""

    def every(value: object) -> object:
        if isinstance(value, list):
            return [change(item) for item in value]
        return {key: change(item) for key, item in value.items()} if isinstance(value, dict) else change(value)

    return every
