"""Image references as the engine takes them: read by ``base.image_reference``, refused with this package's error."""

from __future__ import annotations

from base import image_reference
from base.image_reference import DEFAULT_DOMAIN, Reference
from runtime.images.errors import InvalidReferenceError

__all__ = ["DEFAULT_DOMAIN", "Reference", "check_digest", "check_tag", "parse_reference"]


def parse_reference(text: str) -> Reference:
    """Parse and normalise what a user wrote, without adding a tag. Raises InvalidReferenceError."""
    try:
        return image_reference.parse_reference(text)
    except image_reference.InvalidReferenceError as error:
        raise InvalidReferenceError(text, str(error)) from error


def check_tag(text: str) -> str:
    """Return ``text`` if it is a tag. Raises InvalidReferenceError."""
    try:
        return image_reference.check_tag(text)
    except image_reference.InvalidReferenceError as error:
        raise InvalidReferenceError(text, str(error)) from error


def check_digest(text: str) -> str:
    """Return ``text`` if it is a digest of a known algorithm. Raises InvalidReferenceError."""
    try:
        return image_reference.check_digest(text)
    except image_reference.InvalidReferenceError as error:
        raise InvalidReferenceError(text, str(error)) from error
