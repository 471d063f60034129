"""Compose files from disk or stdin, and the files that they name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cli.composefile.merge import merge
from cli.composefile.parse import parse
from cli.composefile.source import ManifestError, Place, Source

FILE_BYTES_MAX = 4 * 2**20


def load(names: Sequence[str], variables: Mapping[str, str] | None) -> Source:
    """Read and merge files.

    Args:
        names: paths, at least one; ``-`` is stdin, whose paths are relative to the working directory.
        variables: for interpolation; None leaves the text as it is.

    Raises:
        ManifestError: one of them cannot be read, is larger than ``FILE_BYTES_MAX`` or is no Compose file.
    """
    sources = [parse(_text(name), name, Path() if name == "-" else Path(name).parent, variables) for name in names]
    return functools.reduce(merge, sources)


def _text(name: str) -> str:
    try:
        with sys.stdin.buffer if name == "-" else open(name, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ManifestError(f"{name}: larger than {FILE_BYTES_MAX} bytes, which no stack file is")
        return data.decode()
    except OSError as error:
        raise ManifestError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{name}: is no UTF-8 text (byte {error.start})") from error


def read_bytes(path: Path, named_at: Place, most: int) -> bytes:
    """At most so many bytes of a file that a value names. Raises: ManifestError."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except (OSError, ValueError) as error:
        raise named_at.error(f"{path}: {getattr(error, 'strerror', None) or error}") from error
