"""The cluster's certificate authority: a root key and what it signs. Only managers hold one."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pki.certificates import (
    BACKDATE,
    ROOT_COMMON_NAME,
    Identity,
    Role,
    TrustRoot,
    chain_to_pem,
    identity_of,
    key_matches,
    load_chain,
    public_key_of_csr,
)
from pki.errors import CertificateExpiredError, InvalidCertificateError
from pki.keys import PrivateKey, key_from_pem, key_to_pem, new_key

ROOT_LIFETIME = timedelta(days=20 * 365)


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


_NO_AUTHORITY = x509.BasicConstraints(ca=False, path_length=None)
_NODE_KEY_USAGE = _key_usage(sign_certificates=False)
_NODE_EXTENDED_KEY_USAGE = x509.ExtendedKeyUsage((ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH))


class _Issuer(msgspec.Struct, frozen=True):
    """What every certificate says of the root that signs it, read once."""

    name: x509.Name
    not_before: datetime
    not_after: datetime
    key_identifier: x509.AuthorityKeyIdentifier


class IssuedCertificate(msgspec.Struct, frozen=True):
    """What the authority gives out.

    Attributes:
        chain_pem: the leaf, then intermediates if any.
        identity: what the leaf says.
    """

    chain_pem: bytes
    identity: Identity


@dataclass(frozen=True)
class RootCA:
    """A root certificate with its private key.

    Attributes:
        certificate_pem: the signing root certificate.
        intermediates_pem: what is sent along with every certificate issued; while the root is being rotated, the
            new root cross-signed by the old one, so that nodes which know only the old root accept the new ones.
    """

    certificate_pem: bytes
    key: PrivateKey = field(repr=False)
    intermediates_pem: bytes = b""

    @classmethod
    def create(cls, now: datetime, lifetime: timedelta = ROOT_LIFETIME) -> RootCA:
        """A new self-signed root: ECDSA on P-256, CN swarm-ca, 20 years.

        Args:
            now: aware time; validity begins an hour earlier.
        """
        key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ROOT_COMMON_NAME)])
        certificate = _authority_certificate(
            name, key.public_key(), issuer=name, signer=key, now=now, not_after=now + lifetime, path_length=1
        )
        return cls(certificate_pem=chain_to_pem([certificate]), key=key)

    @classmethod
    def from_pem(cls, certificate_pem: bytes, key_pem: bytes, intermediates_pem: bytes = b"") -> RootCA:
        """Read back what ``certificate_pem`` and ``key_pem`` gave.

        Raises:
            InvalidCertificateError: not an authority's certificate, not a P-256 key, or not of one pair.
            LockedError: the key is encrypted.
        """
        (certificate, *more) = TrustRoot(certificate_pem).certificates
        if more:
            raise InvalidCertificateError("root certificate: more than one to sign with")
        key = key_from_pem(key_pem)
        if not key_matches(certificate, key):
            raise InvalidCertificateError("root certificate: the key is not the certificate's")
        if intermediates_pem:
            load_chain(intermediates_pem)
        return cls(certificate_pem=certificate_pem, key=key, intermediates_pem=intermediates_pem)

    @property
    def key_pem(self) -> bytes:
        """The private key in PEM, clear: it goes into the store, which is encrypted as a whole."""
        return key_to_pem(self.key)

    @cached_property
    def certificate(self) -> x509.Certificate:
        return load_chain(self.certificate_pem)[0]

    @cached_property
    def _issuer(self) -> _Issuer:
        root = self.certificate
        return _Issuer(
            root.subject, root.not_valid_before_utc, root.not_valid_after_utc, _authority_key_identifier(root)
        )

    def trust_root(self) -> TrustRoot:
        """This root as something to verify with; a caller that verifies often keeps it."""
        return TrustRoot(self.certificate_pem)

    def issue(
        self, csr_pem: bytes, *, node_id: str, role: Role, cluster_id: str, lifetime: timedelta, now: datetime
    ) -> IssuedCertificate:
        """Sign a node certificate.

        Args:
            csr_pem: the node's request; only its public key is used.
            lifetime: counted from ``now`` and cut at the end of the root.
            now: aware time of issue; validity begins an hour earlier.

        Raises:
            InvalidCertificateError: the request is not acceptable, see ``public_key_of_csr``.
            CertificateExpiredError: the root itself is at its end.
        """
        public_key = public_key_of_csr(csr_pem)
        issuer = self._issuer
        if now >= issuer.not_after:
            raise CertificateExpiredError(f"root certificate expired at {issuer.not_after.isoformat()}")
        leaf = (
            x509.CertificateBuilder()
            .subject_name(_node_name(node_id, role, cluster_id))
            .issuer_name(issuer.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - BACKDATE, issuer.not_before))
            .not_valid_after(min(now + lifetime, issuer.not_after))
            .add_extension(_NO_AUTHORITY, critical=True)
            .add_extension(_NODE_KEY_USAGE, critical=True)
            .add_extension(_NODE_EXTENDED_KEY_USAGE, critical=False)
            .add_extension(x509.SubjectAlternativeName(_node_names(node_id, role)), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(issuer.key_identifier, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return IssuedCertificate(
            chain_pem=chain_to_pem([leaf]) + self.intermediates_pem,
            identity=identity_of(leaf),
        )

    def cross_sign(self, new_root_pem: bytes, now: datetime) -> bytes:
        """Sign another root's name and key with this one (PEM): the bridge over which a rotation walks (A2.04).

        Raises:
            InvalidCertificateError: ``new_root_pem`` is not one authority's certificate.
        """
        (new_root, *_) = TrustRoot(new_root_pem).certificates
        key = new_root.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)  # TrustRoot took no other
        certificate = _authority_certificate(
            new_root.subject,
            key,
            issuer=self.certificate.subject,
            signer=self.key,
            now=now,
            not_after=min(new_root.not_valid_after_utc, self.certificate.not_valid_after_utc),
            path_length=0,
        )
        return chain_to_pem([certificate])


def _node_name(node_id: str, role: Role, cluster_id: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_id),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role.value),
            x509.NameAttribute(NameOID.COMMON_NAME, node_id),
        ]
    )


def _node_names(node_id: str, role: Role) -> list[x509.GeneralName]:
    """The role, by which clients check that they talk to a manager; the node; for managers the authority's name."""
    names = [role.value, node_id]
    if role is Role.MANAGER:
        names.append(ROOT_COMMON_NAME)
    return [x509.DNSName(name) for name in names]


def _authority_certificate(
    name: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    issuer: x509.Name,
    signer: PrivateKey,
    now: datetime,
    not_after: datetime,
    path_length: int,
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _authority_key_identifier(root: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Point at the root by its own identifier, which a root that a user brings may have made in another way."""
    try:
        identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = root.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)  # TrustRoot took no other
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
