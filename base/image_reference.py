"""Image references: ``[domain/]path[:tag][@digest]``. The one place that reads and normalises them, for all parts.

Source: the grammar published in distribution/reference (``reference.go``) and its ``normalize.go``: a name without a
domain belongs to ``docker.io``, a name there without a namespace to ``library``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
NAME_LENGTH_MAX = 255

_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PATH_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[+._-][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"

# The quantifiers of the path may backtrack for long only on text that the length check has already refused.
_REFERENCE_RE = re.compile(
    rf"(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_PATH_PART}(?:/{_PATH_PART})*)(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?"
)
_TAG_RE = re.compile(_TAG)
_DIGEST_RE = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}|sha384:[0-9a-f]{96}")
_IDENTIFIER_RE = re.compile(r"[0-9a-f]{64}")
_INPUT_LENGTH_MAX = NAME_LENGTH_MAX * 2 + 128 + 256


class InvalidReferenceError(ValueError):
    """The text is no image reference; ``str(error)`` is dockerd's word for it."""

    def __init__(self, text: str, reason: str = "invalid reference format") -> None:
        super().__init__(reason)
        self.text = text


class Reference(NamedTuple):
    """A normalised reference: ``domain`` and ``path`` are always set, ``tag`` and ``digest`` may be ""."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """``docker.io/library/busybox``."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The name as users write it: ``busybox``, ``me/app``, ``quay.io/me/app``."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        head, _, rest = self.path.partition("/")
        return rest if head == "library" and rest and "/" not in rest else self.path

    @property
    def familiar(self) -> str:
        """The whole reference as users write it: ``busybox:latest``."""
        return self.familiar_name + self._suffix()

    def __str__(self) -> str:
        return self.name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def with_default_tag(self) -> Reference:
        """``latest`` where neither tag nor digest is given."""
        return self if self.tag or self.digest else self._replace(tag=DEFAULT_TAG)

    def with_tag(self, tag: str) -> Reference:
        """Same name, this tag (``check_tag``), no digest."""
        return Reference(self.domain, self.path, tag)

    def with_digest(self, digest: str) -> Reference:
        """Same name, this digest (``check_digest``), no tag."""
        return Reference(self.domain, self.path, digest=digest)


def parse_reference(text: str) -> Reference:
    """Parse and normalise what a user wrote, without adding a tag.

    Raises:
        InvalidReferenceError: with dockerd's words for it.
    """
    if not text or len(text) > _INPUT_LENGTH_MAX:
        raise InvalidReferenceError(text)
    if _IDENTIFIER_RE.fullmatch(text):
        raise InvalidReferenceError(
            text, f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
        )
    domain, remainder = _split_domain(text)
    bare = re.split("[:@]", remainder, maxsplit=1)[0]
    if bare.lower() != bare:
        raise InvalidReferenceError(text, f"invalid reference format: repository name ({bare}) must be lowercase")
    match = _REFERENCE_RE.fullmatch(f"{domain}/{remainder}")
    if match is None or match["domain"] != domain:
        raise InvalidReferenceError(text)
    if len(match["path"]) > NAME_LENGTH_MAX or len(domain) > NAME_LENGTH_MAX:
        raise InvalidReferenceError(text, f"repository name must not be more than {NAME_LENGTH_MAX} characters")
    digest = match["digest"] or ""
    return Reference(domain, match["path"], match["tag"] or "", check_digest(digest) if digest else "")


def _split_domain(text: str) -> tuple[str, str]:
    """The first component is a domain if it has a dot, a port, an upper-case letter, or is localhost."""
    head, slash, rest = text.partition("/")
    is_domain = bool(slash) and ("." in head or ":" in head or head == "localhost" or head.lower() != head)
    domain, remainder = (head, rest) if is_domain else (DEFAULT_DOMAIN, text)
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in remainder:
        remainder = f"library/{remainder}"
    return domain, remainder


def normalized(text: str) -> str:
    """The whole name, with a tag where there is neither tag nor digest: what names of one image have in common.

    A text that names no image is left as it is.
    """
    try:
        return str(parse_reference(text).with_default_tag())
    except InvalidReferenceError:
        return text


def check_tag(text: str) -> str:
    """Return ``text`` if it is a tag. Raises InvalidReferenceError."""
    if not _TAG_RE.fullmatch(text):
        raise InvalidReferenceError(text, "invalid tag format")
    return text


def check_digest(text: str) -> str:
    """Return ``text`` if it is a digest of a known algorithm. Raises InvalidReferenceError."""
    if not _DIGEST_RE.fullmatch(text):
        reason = "invalid checksum digest format"
        if ":" in text and text.split(":", 1)[0] not in ("sha256", "sha384", "sha512"):
            reason = "unsupported digest algorithm"
        raise InvalidReferenceError(text, reason)
    return text
