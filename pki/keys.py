"""Private keys: ECDSA on P-256 everywhere (features A2.01), PEM in PKCS #8, optionally encrypted for autolock."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pki.errors import InvalidCertificateError, InvalidUnlockKeyError, LockedError

PrivateKey = ec.EllipticCurvePrivateKey


def new_key() -> PrivateKey:
    """A new private key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: PrivateKey, password: bytes | None = None) -> bytes:
    """``key`` as PKCS #8 in PEM, encrypted when a password is given (one that OpenSSL's loaders accept too)."""
    encryption: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def key_from_pem(pem: bytes, password: bytes | None = None) -> PrivateKey:
    """Read a private key; text around the PEM block is allowed. A password that is not needed is ignored.

    Raises:
        LockedError: the key is encrypted and no password was given.
        InvalidUnlockKeyError: the password is wrong.
        InvalidCertificateError: no key, or one of another kind than ECDSA on P-256.
    """
    encrypted = is_encrypted(pem)
    if encrypted and password is None:
        raise LockedError
    try:
        key = serialization.load_pem_private_key(pem, password if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise InvalidUnlockKeyError from error
        raise InvalidCertificateError("private key: not a PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidCertificateError("private key: not an ECDSA key on P-256")
    return key


def is_encrypted(pem: bytes) -> bool:
    """Whether the first private key in ``pem`` is encrypted."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in pem
