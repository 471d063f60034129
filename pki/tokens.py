"""Join tokens in Swarm's format: what a node must know to join, and by which it knows the cluster (features A1.17).

``SWMTKN-1-<digest>-<secret>``: the SHA-256 of the root certificate (the PEM bytes as the managers hand them out, the
whole bundle) in base 36 on 50 characters, and 16 random bytes in base 36 on 25. Version 2 has one more field,
``SWMTKN-2-<0|1>-...``, where 1 says that the cluster admits FIPS nodes only; we are none and say so.

Source: swarmkit ``ca/config.go``, GenerateJoinToken and ParseJoinToken.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from pki.certificates import Role
from pki.errors import InvalidTokenError
from pki.identifiers import to_base36

DIGEST_LENGTH = 50
SECRET_LENGTH = 25
_SECRET_BYTES = 16
_DIGEST_BYTES = 32

_FORM = re.compile(
    rf"SWMTKN-(?:1|2-(?P<fips>[01]))-(?P<digest>[0-9a-z]{{{DIGEST_LENGTH}}})-(?P<secret>[0-9a-z]{{{SECRET_LENGTH}}})",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token taken apart.

    Attributes:
        text: the token as given; a secret.
        root_digest: SHA-256 that the cluster's root certificate must have, lower-case hex, 64 characters.
    """

    text: str = field(repr=False)
    root_digest: str


def new_token(root_digest: str, entropy: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """A new token with a fresh secret.

    Args:
        root_digest: hex SHA-256 of the root certificate, see ``TrustRoot.digest``.
        entropy: gives that many random bytes.
    """
    digest = to_base36(int(root_digest, 16)).rjust(DIGEST_LENGTH, "0")
    secret = to_base36(int.from_bytes(entropy(_SECRET_BYTES), "big")).rjust(SECRET_LENGTH, "0")
    return f"SWMTKN-1-{digest}-{secret}"


def replace_secret(token: str, entropy: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """The token after ``join-token --rotate``: the same cluster, another secret."""
    return new_token(parse_token(token).root_digest, entropy)


def parse_token(text: str) -> JoinToken:
    """Take a token apart.

    Raises:
        InvalidTokenError: the text is no join token, or one of a cluster that admits only FIPS nodes.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise InvalidTokenError("invalid join token")
    digest = int(match["digest"], 36)
    secret = int(match["secret"], 36)
    if digest.bit_length() > 8 * _DIGEST_BYTES or secret.bit_length() > 8 * _SECRET_BYTES:
        raise InvalidTokenError("invalid join token")
    if match["fips"] == "1":
        raise InvalidTokenError("node is not FIPS-enabled but cluster requires FIPS")
    return JoinToken(text=text, root_digest=f"{digest:064x}")


@dataclass(frozen=True, slots=True)
class JoinTokens:
    """The two tokens in force; a rotated one is simply not here any more."""

    worker: str = field(repr=False)
    manager: str = field(repr=False)

    @classmethod
    def new(cls, root_digest: str, entropy: Callable[[int], bytes] = secrets.token_bytes) -> JoinTokens:
        return cls(worker=new_token(root_digest, entropy), manager=new_token(root_digest, entropy))

    def role_of(self, token: str) -> Role | None:
        """The role that ``token`` grants, None if it grants none.

        Both comparisons are always made and take the same time whatever the token is, so that the answer's time
        tells nothing about the secrets.
        """
        presented = token.encode("utf-8", "replace")
        manager = hmac.compare_digest(presented, self.manager.encode())
        worker = hmac.compare_digest(presented, self.worker.encode())
        if manager:
            return Role.MANAGER
        return Role.WORKER if worker else None
