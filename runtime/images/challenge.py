"""``WWW-Authenticate`` of a registry, and the credentials it is answered with. Pure.

Sources: RFC 9110 section 11.6.1; distribution ``docs/spec/auth/token.md`` and ``oauth.md``.
"""

from __future__ import annotations

import re

import msgspec

_CHALLENGE = re.compile(r"\s*([A-Za-z]+)(?:\s+|$)")
_PARAMETER = re.compile(r'\s*(?:,\s*)?([A-Za-z_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_HEADER_LENGTH_MAX = 8192


class Challenge(msgspec.Struct, frozen=True):
    """``scheme`` in lower case; ``parameters`` with lower-case names."""

    scheme: str
    parameters: dict[str, str] = msgspec.field(default_factory=dict)


def parse_challenges(header: str) -> list[Challenge]:
    """Challenges in the header's order; what cannot be parsed ends the list."""
    header = header[:_HEADER_LENGTH_MAX]
    found: list[Challenge] = []
    position = 0
    while match := _CHALLENGE.match(header, position):
        position = match.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(header, position):
            name, quoted, plain = parameter.groups()
            parameters[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
            position = parameter.end()
        found.append(Challenge(match[1].lower(), parameters))
        while position < len(header) and header[position] in ", \t":
            position += 1
    return found


def choose_challenge(headers: list[str]) -> Challenge | None:
    """Bearer if the registry offers it, else Basic, else None."""
    challenges = [challenge for header in headers for challenge in parse_challenges(header)]
    for scheme in ("bearer", "basic"):
        for challenge in challenges:
            if challenge.scheme == scheme:
                return challenge
    return None
