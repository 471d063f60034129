"""Encryption at rest on managers: the data key, and the unlock key that may lock it (features A2.06, A2.07).

Every manager has a data key (DEK) of its own, 32 random bytes: journal and snapshots are encrypted with it, always.
It lies in ``manager-dek`` beside the node's certificate with mode 0600. With autolock the file holds the key wrapped
with the cluster's unlock key (KEK), and the node's private key is encrypted with it too; the KEK is in memory and in
the store, which is itself encrypted, and in its owner's password manager, but in no file.

Wrapping is AES-256-GCM with a random nonce. (Swarm takes NaCl's secretbox, and Fernet under FIPS; neither is worth
a second library.) What the key is for is authenticated with it, so that one wrapped thing cannot stand for another.

While the data key is being changed the file holds two: ``pending`` is the one that the next snapshot is written with,
and once that is on disk it becomes ``current``.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from base.files import SECRET_MODE, remove_leftovers, write_atomic
from pki.errors import DataKeyMissingError, InvalidCertificateError, InvalidUnlockKeyError, LockedError

KEY_SIZE_BYTES = 32
DATA_KEY_FILE = "manager-dek"

_NONCE_SIZE_BYTES = 12
_TEXT_PREFIX = "SWMKEY-1-"
_FILE_FORMAT = 1


def new_unlock_key() -> bytes:
    """A new KEK: 32 random bytes."""
    return secrets.token_bytes(KEY_SIZE_BYTES)


def unlock_key_to_text(key: bytes) -> str:
    """The KEK as people see it: ``SWMKEY-1-`` and base64 without padding."""
    return _TEXT_PREFIX + base64.b64encode(key).decode().rstrip("=")


def unlock_key_from_text(text: str) -> bytes:
    """Read what a person typed in after ``swarm unlock``; space around it is ignored.

    Raises:
        InvalidUnlockKeyError: not an unlock key.
    """
    body = text.strip()
    if not body.startswith(_TEXT_PREFIX):
        raise InvalidUnlockKeyError
    body = body.removeprefix(_TEXT_PREFIX)
    try:
        key = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidUnlockKeyError from error
    if len(key) != KEY_SIZE_BYTES:
        raise InvalidUnlockKeyError
    return key


def wrap(secret: bytes, kek: bytes, *, purpose: bytes) -> bytes:
    """``secret`` encrypted with ``kek``; only ``unwrap`` with the same purpose opens it.

    Returns:
        12 bytes nonce, ciphertext, 16 bytes tag.
    """
    nonce = os.urandom(_NONCE_SIZE_BYTES)
    return nonce + AESGCM(kek).encrypt(nonce, secret, purpose)


def unwrap(wrapped: bytes, kek: bytes, *, purpose: bytes) -> bytes:
    """Undo ``wrap``.

    Raises:
        InvalidUnlockKeyError: the key is another, or the bytes were changed.
    """
    nonce, sealed = wrapped[:_NONCE_SIZE_BYTES], wrapped[_NONCE_SIZE_BYTES:]
    try:
        return AESGCM(kek).decrypt(nonce, sealed, purpose)
    except (InvalidTag, ValueError) as error:
        raise InvalidUnlockKeyError from error


@dataclass(frozen=True, slots=True)
class DataKeys:
    """A manager's data keys.

    Attributes:
        current: 32 bytes; what is on disk is encrypted with it.
        pending: its successor while it is being changed: things on disk may be under either.
    """

    current: bytes = field(repr=False)
    pending: bytes | None = field(default=None, repr=False)

    @classmethod
    def new(cls) -> DataKeys:
        return cls(current=secrets.token_bytes(KEY_SIZE_BYTES))

    def rotate(self) -> DataKeys:
        """With a fresh ``pending``; one that is pending already stays."""
        return self if self.pending else DataKeys(self.current, secrets.token_bytes(KEY_SIZE_BYTES))

    def finish_rotation(self) -> DataKeys:
        """``pending`` becomes ``current``: nothing on disk needs the old one any more."""
        return DataKeys(self.pending) if self.pending else self


class _KeyFile(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    wrapped: bool
    current: bytes
    pending: bytes | None = None


def save_data_keys(directory: Path, keys: DataKeys, kek: bytes | None = None) -> None:
    """Write ``manager-dek`` in ``directory`` (mode 0600, atomic, synced), wrapped if a KEK is given.

    Raises:
        OSError: not written; what was there before is untouched.
    """

    def stored(key: bytes, purpose: bytes) -> bytes:
        return wrap(key, kek, purpose=purpose) if kek else key

    content = _KeyFile(
        format=_FILE_FORMAT,
        wrapped=kek is not None,
        current=stored(keys.current, b"dek"),
        pending=stored(keys.pending, b"dek-pending") if keys.pending else None,
    )
    remove_leftovers(directory, DATA_KEY_FILE)
    write_atomic(directory / DATA_KEY_FILE, msgspec.json.encode(content), mode=SECRET_MODE)


def load_data_keys(directory: Path, kek: bytes | None = None) -> DataKeys:
    """Read ``manager-dek``; a KEK that is not needed is ignored.

    Raises:
        FileNotFoundError: this node was no manager yet.
        OSError: the file cannot be read.
        LockedError: wrapped, and no KEK given.
        InvalidUnlockKeyError: the KEK does not open it.
        InvalidCertificateError: the file is damaged.
    """
    path = directory / DATA_KEY_FILE
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_KeyFile)
    except msgspec.MsgspecError as error:
        raise InvalidCertificateError(f"{path}: damaged: {error}") from error
    if content.format != _FILE_FORMAT:
        raise InvalidCertificateError(f"{path}: format {content.format}, this version reads {_FILE_FORMAT}")
    if content.wrapped and kek is None:
        raise LockedError

    def clear(stored: bytes, purpose: bytes) -> bytes:
        return unwrap(stored, kek, purpose=purpose) if content.wrapped and kek else stored

    keys = DataKeys(clear(content.current, b"dek"), clear(content.pending, b"dek-pending") if content.pending else None)
    if any(len(key) != KEY_SIZE_BYTES for key in (keys.current, keys.pending or keys.current)):
        raise InvalidCertificateError(f"{path}: damaged: a key is not {KEY_SIZE_BYTES} bytes")
    return keys


def ensure_data_keys(directory: Path, kek: bytes | None = None, *, in_use: bool = False) -> DataKeys:
    """Read ``manager-dek``, or make it when this node has never been a manager.

    Args:
        in_use: something is encrypted with it already: no other is made.

    Raises:
        DataKeyMissingError: in use, and not there.
        as ``load_data_keys`` and ``save_data_keys``.
    """
    try:
        return load_data_keys(directory, kek)
    except FileNotFoundError as error:
        if in_use:
            raise DataKeyMissingError(directory / DATA_KEY_FILE) from error
        keys = DataKeys.new()
        save_data_keys(directory, keys, kek)
        return keys
