"""What can go wrong with keys, certificates and tokens: one class for each thing a caller may do differently."""

from __future__ import annotations

from pathlib import Path


class PKIError(Exception):
    """Base of everything this package raises; the text is one line and holds no secret."""


class InvalidTokenError(PKIError):
    """The join token cannot be one of Swarm's; nothing was sent anywhere."""


class InvalidCertificateError(PKIError):
    """A certificate, chain, key or signing request is malformed, of a kind we do not use, or not signed by whom it must."""


class UntrustedCertificateError(InvalidCertificateError):
    """The certificate is well formed, but no root that we trust stands behind it."""


class CertificateExpiredError(InvalidCertificateError):
    """The certificate is past its end (or before its begin) at the time of the check."""


class NodeCertificateExpiredError(CertificateExpiredError):
    """This node's own certificate ran out before it could be renewed: only a new join helps (features A2.02)."""

    def __init__(self) -> None:
        super().__init__("Swarm certificates have expired. To replace them, leave the swarm and join again.")


class NodeCertificateMissingError(PKIError):
    """The state folder holds no node certificate: this host is not part of a swarm (or not any longer)."""


class DataKeyMissingError(PKIError):
    """The key of journal and snapshots is not there, and they are."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is missing: journal and snapshots can be read with nothing else; restore it")


class LockedError(PKIError):
    """The key material is encrypted and the key that opens it was not given (autolock, features A2.06)."""

    def __init__(self) -> None:
        super().__init__(
            'Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.'
        )


class InvalidUnlockKeyError(PKIError):
    """The unlock key does not open the key material."""

    def __init__(self) -> None:
        super().__init__("swarm could not be unlocked: invalid key provided")


class FingerprintMismatchError(PKIError):
    """The peer's root certificate is not the one the join token names; the secret was not sent."""

    def __init__(self, *, expected: str) -> None:
        super().__init__(f"remote CA does not match fingerprint. Expected: {expected}")
        self.expected = expected


class FrameError(PKIError):
    """The peer broke the join protocol: oversized, truncated, malformed or out of turn; the connection is of no more use."""


class JoinRefusedError(PKIError):
    """A manager answered and said no; ``code`` is the number of a gRPC status code (3 is INVALID_ARGUMENT)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class JoinUnreachableError(PKIError):
    """No manager could be reached at any of the addresses: trying again later may help."""
