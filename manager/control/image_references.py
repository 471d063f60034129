"""Image references, as far as a service's spec is checked: the published grammar, no look-up, no defaults.

Source: distribution ``reference/regexp.go`` and ``normalize.go``.
"""

from __future__ import annotations

import re

NAME_LENGTH_MAX = 255

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_DOMAIN = re.compile(
    r"(?:(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])(?:\.(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9]))*"
    r"|\[[0-9a-fA-F:]+\])(?::[0-9]+)?",
    re.ASCII,
)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}", re.ASCII)
_IMAGE_ID = re.compile(r"[a-f0-9]{64}", re.ASCII)


def is_image_reference(text: str) -> bool:
    """Whether ``text`` can name an image in a registry: ``[domain/]path[:tag][@digest]``, no bare image ID."""
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        return False
    colon = rest.rfind(":")
    if colon > rest.rfind("/"):
        if not _TAG.fullmatch(rest[colon + 1 :]):
            return False
        rest = rest[:colon]
    if len(rest) > NAME_LENGTH_MAX or _IMAGE_ID.fullmatch(rest):
        return False
    first, slash, path = rest.partition("/")
    if slash and (any(c in first for c in ".:[") or first == "localhost" or first.lower() != first):
        return _DOMAIN.fullmatch(first) is not None and _PATH.fullmatch(path) is not None
    return _PATH.fullmatch(rest) is not None
