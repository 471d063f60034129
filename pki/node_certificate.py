"""This node's key and certificate on disk, and the newest of them in memory.

``swarm-node.key`` holds the private key *and* the certificate chain: one file, one rename, so no crash can leave a
key beside a certificate that is not its own, and another process that reads it sees one pair or the other.
``swarm-node.crt`` is a copy of the chain for people and tools; nothing here reads it. ``swarm-root-ca.crt`` is the
bundle of roots in force.

Two processes of a host read these files; one renews them (``pki.renewal``), both notice (``NodeCertificate.refresh``).
Changes are made under a lock on the folder, and start from what lies there, so that none undoes another's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from base.files import (
    PUBLIC_MODE,
    SECRET_MODE,
    ensure_private_folder,
    locked_folder,
    remove_leftovers,
    sync_folder,
    write_atomic,
)
from pki.authority import RootCA
from pki.certificates import Identity, Role, TrustRoot, chain_to_pem, key_matches, load_chain, new_csr
from pki.errors import InvalidCertificateError, InvalidUnlockKeyError, LockedError, NodeCertificateMissingError
from pki.keys import PrivateKey, key_from_pem, key_to_pem, new_key

ROOT_FILE = "swarm-root-ca.crt"
CERTIFICATE_FILE = "swarm-node.crt"
KEY_FILE = "swarm-node.key"

_BEGIN_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_STAMP = tuple[tuple[int, int, int], tuple[int, int, int]]


def utc_now() -> datetime:
    """The wall clock, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class NodeCredentials:
    """One key pair with its certificate and the roots it is to be used with. Never changes: a renewal is a new one.

    Attributes:
        identity: what the certificate says, verified against ``root`` (its time is not checked: see ``identity``).
        chain_pem: leaf, then intermediates.
        key_pem: private key, clear PEM; a secret.
        root: the roots in force.
    """

    identity: Identity
    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    root: TrustRoot

    @classmethod
    def verified(cls, *, chain_pem: bytes, key: PrivateKey, root: TrustRoot) -> NodeCredentials:
        """Put together what belongs together.

        An expired certificate passes: its holder must be able to say so (features A2.02).

        Raises:
            InvalidCertificateError: malformed, not for ``key``, or not signed by ``root``.
        """
        chain = load_chain(chain_pem)
        if not key_matches(chain[0], key):
            raise InvalidCertificateError("node certificate: the key is not the certificate's")
        identity = root.verify(chain, chain[0].not_valid_before_utc)
        return cls(identity=identity, chain_pem=chain_pem, key_pem=key_to_pem(key), root=root)


def issue_credentials(
    root_ca: RootCA, *, node_id: str, role: Role, cluster_id: str, lifetime: timedelta, now: datetime
) -> NodeCredentials:
    """Key and certificate for a node, straight from the authority: how the first manager of a cluster gets its own.

    Raises:
        CertificateExpiredError: the root is at its end.
    """
    key = new_key()
    issued = root_ca.issue(new_csr(key), node_id=node_id, role=role, cluster_id=cluster_id, lifetime=lifetime, now=now)
    return NodeCredentials.verified(chain_pem=issued.chain_pem, key=key, root=root_ca.trust_root())


class NodeCertificate:
    """The holder: ``current`` is replaced as a whole, so any thread may read it without a lock."""

    def __init__(self, directory: Path, credentials: NodeCredentials, kek: bytes | None, stamp: _STAMP) -> None:
        """Use ``load`` or ``create``."""
        self.directory = directory
        self.current = credentials
        self._kek = kek
        self._stamp = stamp
        self._listeners: list[Callable[[NodeCredentials], None]] = []

    @classmethod
    def load(cls, directory: Path, kek: bytes | None = None) -> NodeCertificate:
        """Read what ``save`` wrote.

        Args:
            directory: ``STATE/certificates``.
            kek: the unlock key where autolock is on, see ``pki.encryption``.

        Raises:
            NodeCertificateMissingError: this host is in no swarm.
            LockedError, InvalidUnlockKeyError: autolock.
            InvalidCertificateError: damaged files.
            OSError: they cannot be read.
        """
        stamp = _stamp(directory)
        return cls(directory, _read(directory, kek), kek, stamp)

    @classmethod
    def create(cls, directory: Path, credentials: NodeCredentials, kek: bytes | None = None) -> NodeCertificate:
        """Write the first credentials of a node that was just made or has just joined.

        Raises:
            OSError: not written.
        """
        ensure_private_folder(directory)
        with locked_folder(directory):
            _write(directory, credentials, kek)
        return cls(directory, credentials, kek, _stamp(directory))

    @property
    def identity(self) -> Identity:
        return self.current.identity

    def replace(self, credentials: NodeCredentials) -> None:
        """Write new credentials, then use them and tell the listeners.

        Raises:
            OSError: not written; the old ones stay in use.
        """
        with locked_folder(self.directory):
            self._write(credentials)
        self._adopt(credentials)

    def replace_root(self, root_pem: bytes) -> None:
        """Trust other roots from now on, as the managers announce them while the root is being rotated.

        Raises:
            UntrustedCertificateError: this node's own certificate is not signed by any of them.
            InvalidCertificateError: not a bundle of authorities.
            OSError: not written; the old ones stay in use.
        """
        if root_pem == self.current.root.pem:
            return
        root = TrustRoot(root_pem)
        with locked_folder(self.directory):
            newest = self._newest()
            key = key_from_pem(newest.key_pem)
            credentials = NodeCredentials.verified(chain_pem=newest.chain_pem, key=key, root=root)
            self._write(credentials)
        self._adopt(credentials)

    def change_unlock_key(self, kek: bytes | None) -> None:
        """Encrypt the private key on disk with another unlock key, or with none any more (features A2.06).

        Every process of the host that holds the certificate calls this, in any order: it also says with which key
        to read from now on.

        Raises:
            OSError: not written; it stays as it was.
        """
        with locked_folder(self.directory):
            try:
                newest = self._newest()
            except (LockedError, InvalidUnlockKeyError):  # another process was first, with the new key
                newest = _read(self.directory, kek)
            self._kek = kek
            self._write(newest)
        if newest is not self.current:
            self._adopt(newest)

    def refresh(self) -> bool:
        """Look whether another process has replaced the files, and use what it wrote.

        Costs two ``stat`` when nothing changed.

        Returns:
            Whether ``current`` is new.

        Raises:
            as ``load``; ``current`` stays what it was.
        """
        stamp = _stamp(self.directory)
        if stamp == self._stamp:
            return False
        newest = self._newest()
        self._stamp = stamp
        if newest is self.current:
            return False
        self._adopt(newest)
        return True

    def on_change(self, listener: Callable[[NodeCredentials], None]) -> Callable[[], None]:
        """Call ``listener`` after every change, on the thread that made it.

        Returns:
            A function that ends it.
        """
        self._listeners.append(listener)

        def forget() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return forget

    def _newest(self) -> NodeCredentials:
        """What lies on disk; the very object in memory if that is the same."""
        if _stamp(self.directory) == self._stamp:
            return self.current
        newest = _read(self.directory, self._kek)
        return self.current if newest == self.current else newest

    def _write(self, credentials: NodeCredentials) -> None:
        _write(self.directory, credentials, self._kek)
        self._stamp = _stamp(self.directory)

    def _adopt(self, credentials: NodeCredentials) -> None:
        self.current = credentials
        for listener in list(self._listeners):
            listener(credentials)


def forget_key(directory: Path) -> None:
    """Make what lies in ``directory`` useless for good, before the rest of it is removed. Raises: OSError."""
    with contextlib.suppress(FileNotFoundError):
        (directory / KEY_FILE).unlink()
        sync_folder(directory)


def _write(directory: Path, credentials: NodeCredentials, kek: bytes | None) -> None:
    """Other roots come in two steps, the old ones and the new ones first, so that the pair always verifies."""
    for name in (ROOT_FILE, KEY_FILE, CERTIFICATE_FILE):
        remove_leftovers(directory, name)
    root_path, root_pem = directory / ROOT_FILE, credentials.root.pem
    old_pem = root_path.read_bytes() if root_path.exists() else b""
    if old_pem != root_pem:
        write_atomic(root_path, _union(old_pem, root_pem), mode=PUBLIC_MODE)
    key_pem = key_to_pem(key_from_pem(credentials.key_pem), kek) if kek else credentials.key_pem
    write_atomic(directory / KEY_FILE, key_pem + credentials.chain_pem, mode=SECRET_MODE)
    if old_pem != root_pem:
        write_atomic(root_path, root_pem, mode=PUBLIC_MODE)
    write_atomic(directory / CERTIFICATE_FILE, credentials.chain_pem, mode=PUBLIC_MODE)


def _union(old_pem: bytes, new_pem: bytes) -> bytes:
    try:
        return chain_to_pem(dict.fromkeys([*load_chain(old_pem), *load_chain(new_pem)]))
    except InvalidCertificateError:
        return new_pem  # what lay there was no bundle


def _read(directory: Path, kek: bytes | None) -> NodeCredentials:
    try:
        root_pem = (directory / ROOT_FILE).read_bytes()
        pair_pem = (directory / KEY_FILE).read_bytes()
    except FileNotFoundError as error:
        raise NodeCertificateMissingError(f"this node is not part of a swarm: no {error.filename}") from error
    with _damage_in(directory / ROOT_FILE):
        root = TrustRoot(root_pem)
    with _damage_in(directory / KEY_FILE):
        key = key_from_pem(pair_pem, kek)
        begin = pair_pem.find(_BEGIN_CERTIFICATE)
        if begin < 0:
            raise InvalidCertificateError("holds no certificate")
        return NodeCredentials.verified(chain_pem=pair_pem[begin:], key=key, root=root)


@contextlib.contextmanager
def _damage_in(path: Path) -> Iterator[None]:
    """What is wrong inside is told with the file's name."""
    try:
        yield
    except InvalidCertificateError as error:
        raise InvalidCertificateError(f"{path}: {error}") from error


def _stamp(directory: Path) -> _STAMP:
    try:
        root, pair = (directory / ROOT_FILE).stat(), (directory / KEY_FILE).stat()
    except FileNotFoundError as error:
        raise NodeCertificateMissingError(f"this node is not part of a swarm: no {error.filename}") from error
    return (root.st_ino, root.st_mtime_ns, root.st_size), (pair.st_ino, pair.st_mtime_ns, pair.st_size)
