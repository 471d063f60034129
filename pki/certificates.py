"""Certificates of the cluster: who may be asked for one, what it says, and whether to believe one (features A2.01).

A node certificate says three things and nothing else counts: CN is the node ID, OU the role, O the cluster ID. All
three are written by the cluster's authority; a signing request contributes its public key and not a word more.

Source: swarmkit ``ca/certificates.go``; times are back-dated by an hour for nodes whose clock is behind (D18).
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID

from pki.errors import CertificateExpiredError, InvalidCertificateError, UntrustedCertificateError
from pki.keys import PrivateKey

BACKDATE = timedelta(hours=1)
"""Every node certificate begins that long before it is issued."""

ROOT_COMMON_NAME = "swarm-ca"
CERT_EXPIRY_DEFAULT = timedelta(hours=2160)
CERT_EXPIRY_MIN = timedelta(hours=1)

CSR_SIZE_BYTES_MAX = 8 * 1024
CHAIN_SIZE_BYTES_MAX = 32 * 1024
CHAIN_LENGTH_MAX = 8
_CACHE_SIZE_MAX = 4096


class Role(enum.StrEnum):
    """What a node may do in the cluster; the value is the OU of its certificate and a DNS name in it."""

    MANAGER = "swarm-manager"
    WORKER = "swarm-worker"


class Identity(msgspec.Struct, frozen=True):
    """Who a verified certificate says its holder is.

    Attributes:
        node_id: CN.
        role: OU.
        cluster_id: O.
        serial: serial number, positive, at most 159 bits.
        not_before: begin of validity (UTC); an hour before it was issued.
        not_after: end of validity (UTC).
    """

    node_id: str
    role: Role
    cluster_id: str
    serial: int
    not_before: datetime
    not_after: datetime

    @property
    def issued_at(self) -> datetime:
        """When the certificate was issued (UTC): begin of validity without the back-dating."""
        return min(self.not_before + BACKDATE, self.not_after)

    def check_time(self, now: datetime) -> None:
        """Raises:
        CertificateExpiredError: ``now`` (aware) is outside the validity.
        """
        if now > self.not_after:
            raise CertificateExpiredError(f"certificate of node {self.node_id} expired at {self.not_after.isoformat()}")
        if now < self.not_before:
            raise CertificateExpiredError(
                f"certificate of node {self.node_id} is not valid before {self.not_before.isoformat()}"
            )


def check_cert_expiry(lifetime: timedelta) -> None:
    """Check what a user asks for with ``--cert-expiry`` (features A1.11).

    Raises:
        ValueError: less than an hour; the text is Swarm's.
    """
    if lifetime < CERT_EXPIRY_MIN:
        raise ValueError("minimum certificate expiry time is: 1h0m0s")


def new_csr(key: PrivateKey) -> bytes:
    """A signing request (PEM) for ``key``. Its subject is empty: the authority decides all that a certificate says."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def public_key_of_csr(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Check a signing request from the network and take the one thing from it that counts.

    Names, alternative names and every other extension that it asks for are ignored.

    Raises:
        InvalidCertificateError: too long, not a request, a key other than ECDSA on P-256, or not signed by that key.
    """
    if len(csr_pem) > CSR_SIZE_BYTES_MAX:
        raise InvalidCertificateError(f"certificate request: {len(csr_pem)} bytes, at most {CSR_SIZE_BYTES_MAX}")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise InvalidCertificateError("certificate request: the key is not ECDSA on P-256")
        signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise InvalidCertificateError("certificate request: not a PEM certificate request") from error
    if not signed:
        raise InvalidCertificateError("certificate request: its signature is not by its key")
    return key


def load_chain(pem: bytes) -> list[x509.Certificate]:
    """The certificates in ``pem``, in order.

    Raises:
        InvalidCertificateError: none, too many, too long or malformed.
    """
    if len(pem) > CHAIN_SIZE_BYTES_MAX:
        raise InvalidCertificateError(f"certificate: {len(pem)} bytes, at most {CHAIN_SIZE_BYTES_MAX}")
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise InvalidCertificateError("certificate: not a PEM certificate") from error
    if len(chain) > CHAIN_LENGTH_MAX:
        raise InvalidCertificateError(f"certificate: a chain of {len(chain)}, at most {CHAIN_LENGTH_MAX}")
    return chain


def identity_of(certificate: x509.Certificate) -> Identity:
    """What ``certificate`` says, not whether it is true: use ``TrustRoot.verify`` for one from a peer.

    Raises:
        InvalidCertificateError: CN, OU or O is missing or there twice, or the role is unknown.
    """
    try:
        subject = certificate.subject
        role_text = _single(subject, NameOID.ORGANIZATIONAL_UNIT_NAME, "role")
        node_id = _single(subject, NameOID.COMMON_NAME, "node ID")
        cluster_id = _single(subject, NameOID.ORGANIZATION_NAME, "cluster ID")
        not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        serial = certificate.serial_number
    except ValueError as error:
        raise InvalidCertificateError("certificate: malformed subject, serial or validity") from error
    try:
        role = Role(role_text)
    except ValueError:
        raise InvalidCertificateError(f"certificate of node {node_id}: unknown role {role_text!r}") from None
    return Identity(
        node_id=node_id, role=role, cluster_id=cluster_id, serial=serial, not_before=not_before, not_after=not_after
    )


def _single(name: x509.Name, oid: x509.ObjectIdentifier, what: str) -> str:
    values = name.get_attributes_for_oid(oid)
    if len(values) != 1 or not isinstance(values[0].value, str) or not values[0].value:
        raise InvalidCertificateError(f"certificate: no {what} in the subject, or more than one")
    return values[0].value


def root_digest(root_pem: bytes) -> str:
    """Hex SHA-256 by which a join token names the root: over the PEM bytes of the whole bundle, as Swarm takes it.

    Over the whole bundle, so that nobody in the middle can add a root of their own to it.
    """
    return hashlib.sha256(root_pem).hexdigest()


class TrustRoot:
    """The root certificates in force: one, or two while the root is being rotated.

    Attributes:
        pem: the bundle, byte for byte as given (``digest`` covers it).
        certificates: the roots in it.
        digest: see ``root_digest``.
    """

    def __init__(self, pem: bytes) -> None:
        """Raises:
        InvalidCertificateError: no certificate, or one that is no authority.
        """
        self.pem = pem
        self.certificates: Sequence[x509.Certificate] = tuple(load_chain(pem))
        self.digest = root_digest(pem)
        for certificate in self.certificates:
            _check_authority(certificate)
        self._store = verification.Store(list(self.certificates))
        self._verified: dict[bytes, Identity] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrustRoot) and other.pem == self.pem

    def __hash__(self) -> int:
        return hash(self.pem)

    def verify_pem(self, chain_pem: bytes, now: datetime) -> Identity:
        """As ``verify``, for a PEM chain (leaf first). The same chain is verified once; its time is checked always."""
        key = hashlib.sha256(chain_pem).digest()
        identity = self._verified.get(key)
        if identity is not None:
            identity.check_time(now)
            return identity
        identity = self.verify(load_chain(chain_pem), now)
        self._note(key, identity)
        return identity

    def remember(self, chain_pem: bytes, identity: Identity, *, issuer: x509.Certificate) -> None:
        """``issuer``'s own key has just signed this chain, here: ``verify_pem`` need not find that out again.

        Of a root that is not in force nothing is remembered.
        """
        if issuer in self.certificates:
            self._note(hashlib.sha256(chain_pem).digest(), identity)

    def _note(self, key: bytes, identity: Identity) -> None:
        if len(self._verified) >= _CACHE_SIZE_MAX:
            self._verified.clear()
        self._verified[key] = identity

    def verify(self, chain: Sequence[x509.Certificate], now: datetime) -> Identity:
        """Believe a peer's certificate, or not.

        Args:
            chain: leaf first, then what leads from it to a root (cross-signed roots, while rotating).
            now: aware time of the check.

        Raises:
            CertificateExpiredError: outside its validity.
            UntrustedCertificateError: not signed by one of the roots, or an authority used as a node's certificate.
            InvalidCertificateError: subject not of our form.
        """
        leaf, *between = chain
        return self._verify(leaf, between, now, self._policy(now).build_client_verifier())

    def verify_manager(self, leaf: x509.Certificate, now: datetime) -> Identity:
        """Believe who answered on a connection that we opened, or not: a manager, by one of the roots themselves.

        What TLS asks of a server besides (that it holds the key) is the handshake's to show.

        Raises:
            As ``verify``; UntrustedCertificateError also when it is not a manager's.
        """
        verifier = self._policy(now).build_server_verifier(x509.DNSName(Role.MANAGER.value))
        identity = self._verify(leaf, (), now, verifier)
        if identity.role is not Role.MANAGER:
            raise UntrustedCertificateError(f"node {identity.node_id} is no manager")
        return identity

    def _policy(self, now: datetime) -> verification.PolicyBuilder:
        time = now.astimezone(UTC).replace(tzinfo=None)
        return verification.PolicyBuilder().store(self._store).time(time).max_chain_depth(2)

    def _verify(
        self,
        leaf: x509.Certificate,
        between: Sequence[x509.Certificate],
        now: datetime,
        verifier: verification.ClientVerifier | verification.ServerVerifier,
    ) -> Identity:
        identity = identity_of(leaf)
        identity.check_time(now)
        try:
            verifier.verify(leaf, [*between])
        except (verification.VerificationError, ValueError) as error:
            raise UntrustedCertificateError(
                f"certificate of node {identity.node_id} is not signed by this cluster's root: {error}"
            ) from error
        return identity


def _check_authority(certificate: x509.Certificate) -> None:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        key = certificate.public_key()
    except (ValueError, x509.ExtensionNotFound, UnsupportedAlgorithm) as error:
        raise InvalidCertificateError("root certificate: not a certificate authority") from error
    if not constraints.ca:
        raise InvalidCertificateError("root certificate: not a certificate authority")
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidCertificateError("root certificate: its key is not ECDSA")


def key_matches(certificate: x509.Certificate, key: PrivateKey) -> bool:
    """Whether ``certificate`` is for ``key``."""
    return certificate.public_key() == key.public_key()


def chain_to_pem(chain: Iterable[x509.Certificate]) -> bytes:
    """The certificates in order, in PEM."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in chain)
