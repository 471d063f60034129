"""What the authority signs and what a peer is believed (A2.01, D18)."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from pki.authority import ROOT_LIFETIME, RootCA
from pki.certificates import (
    CSR_SIZE_BYTES_MAX,
    Role,
    TrustRoot,
    check_cert_expiry,
    load_chain,
    new_csr,
    public_key_of_csr,
    root_digest,
)
from pki.errors import CertificateExpiredError, InvalidCertificateError, UntrustedCertificateError
from pki.keys import new_key
from tests.unit.pki.support import NOON, Authority


@pytest.fixture
def authority() -> Authority:
    return Authority(now=NOON)


def pem(request: x509.CertificateSigningRequest) -> bytes:
    return request.public_bytes(serialization.Encoding.PEM)


def subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def test_the_root_is_a_p256_authority_for_20_years() -> None:
    certificate = RootCA.create(NOON).certificate
    assert certificate.subject == subject("swarm-ca") == certificate.issuer
    assert certificate.not_valid_after_utc == NOON + ROOT_LIFETIME
    assert timedelta(days=20 * 365) == ROOT_LIFETIME
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)


def test_a_certificate_says_node_role_cluster_and_is_backdated_an_hour(authority: Authority) -> None:
    identity = authority.credentials(Role.WORKER, node_id="node", lifetime=timedelta(hours=2)).identity
    assert (identity.node_id, identity.role, identity.cluster_id) == ("node", Role.WORKER, authority.cluster_id)
    assert identity.not_before == NOON - timedelta(hours=1)
    assert identity.issued_at == NOON
    assert identity.not_after == NOON + timedelta(hours=2)


@pytest.mark.parametrize(
    ("role", "names"), [(Role.MANAGER, ["swarm-manager", "node", "swarm-ca"]), (Role.WORKER, ["swarm-worker", "node"])]
)
def test_the_names_are_the_roles(authority: Authority, role: Role, names: list[str]) -> None:
    (leaf,) = load_chain(authority.credentials(role, node_id="node").chain_pem)
    extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert extension.value.get_values_for_type(x509.DNSName) == names


def test_nothing_but_the_key_is_taken_from_a_request(authority: Authority) -> None:
    key = new_key()
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject("somebody-else"))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("swarm-manager")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    issued = authority.root.issue(
        pem(greedy), node_id="node", role=Role.WORKER, cluster_id="c", lifetime=timedelta(hours=1), now=NOON
    )
    (leaf,) = load_chain(issued.chain_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["swarm-worker", "node"]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert issued.identity.node_id == "node"
    assert leaf.public_key() == key.public_key()


def bad_requests() -> dict[str, bytes]:
    good = new_csr(new_key())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    tampered = bytearray(x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER))
    tampered[-1] ^= 1
    try:
        broken = pem(x509.load_der_x509_csr(bytes(tampered)))
    except ValueError:
        broken = b"unreadable"
    return {
        "empty": b"",
        "garbage": b"\xff\x00" * 100,
        "half": good[: len(good) // 2],
        "a certificate": RootCA.create(NOON).certificate_pem,
        "huge": good + b"\n" * CSR_SIZE_BYTES_MAX,
        "rsa": pem(builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256())),
        "p384": pem(builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256())),
        "wrong signature": broken,
    }


@pytest.mark.parametrize("name", list(bad_requests()))
def test_a_hostile_request_is_refused(name: str) -> None:
    with pytest.raises(InvalidCertificateError, match=r"^certificate request: "):
        public_key_of_csr(bad_requests()[name])


def test_a_certificate_never_outlives_its_root(authority: Authority) -> None:
    late = NOON + ROOT_LIFETIME - timedelta(minutes=5)
    credentials = authority.credentials(lifetime=timedelta(hours=1), now=late)
    assert credentials.identity.not_after == NOON + ROOT_LIFETIME
    with pytest.raises(CertificateExpiredError):
        authority.credentials(now=NOON + ROOT_LIFETIME)


def test_a_peer_is_believed_within_its_time_only(authority: Authority) -> None:
    credentials = authority.credentials(lifetime=timedelta(hours=1))
    root = authority.root.trust_root()
    for now in (NOON - timedelta(minutes=30), NOON, NOON + timedelta(minutes=59)):  # D18: a clock 30 min behind
        assert root.verify_pem(credentials.chain_pem, now) == credentials.identity
    for now in (NOON - timedelta(hours=2), NOON + timedelta(hours=1, seconds=1)):
        with pytest.raises(CertificateExpiredError):  # also from the cache
            root.verify_pem(credentials.chain_pem, now)


def test_a_peer_of_another_root_is_not_believed(authority: Authority) -> None:
    stranger = Authority(now=NOON).credentials()
    with pytest.raises(UntrustedCertificateError, match="not signed by this cluster's root"):
        authority.root.trust_root().verify_pem(stranger.chain_pem, NOON)


def test_a_self_made_certificate_with_our_names_is_not_believed(authority: Authority) -> None:
    """The impostor's root has the same name; only the key differs."""
    impostor = Authority(now=NOON, cluster_id=authority.cluster_id)
    forged = impostor.credentials(Role.MANAGER, node_id="node")
    with pytest.raises(UntrustedCertificateError):
        authority.root.trust_root().verify(
            [*load_chain(forged.chain_pem), *load_chain(impostor.root.certificate_pem)], NOON
        )


def test_a_node_certificate_signs_nobody(authority: Authority) -> None:
    key = new_key()
    csr = new_csr(key)
    terms = {"role": Role.WORKER, "cluster_id": authority.cluster_id, "lifetime": timedelta(hours=1), "now": NOON}
    worker = authority.root.issue(csr, node_id="w", **terms)  # type: ignore[arg-type]
    forger = RootCA(certificate_pem=worker.chain_pem, key=key)
    forged = forger.issue(new_csr(new_key()), node_id="m", **{**terms, "role": Role.MANAGER})  # type: ignore[arg-type]
    with pytest.raises(UntrustedCertificateError):
        authority.root.trust_root().verify(load_chain(forged.chain_pem + worker.chain_pem), NOON)


def test_the_root_is_no_node(authority: Authority) -> None:
    with pytest.raises(InvalidCertificateError):
        authority.root.trust_root().verify_pem(authority.root.certificate_pem, NOON)


def test_cross_signing_lets_old_nodes_believe_new_certificates(authority: Authority) -> None:
    new_root = RootCA.create(NOON)
    bridge = authority.root.cross_sign(new_root.certificate_pem, NOON)
    rotated = RootCA.from_pem(new_root.certificate_pem, new_root.key_pem, bridge)
    issued = rotated.issue(
        new_csr(new_key()), node_id="n", role=Role.WORKER, cluster_id="c", lifetime=timedelta(hours=1), now=NOON
    )
    for root in (
        authority.root.trust_root(),
        new_root.trust_root(),
        TrustRoot(authority.root.certificate_pem + new_root.certificate_pem),
    ):
        assert root.verify_pem(issued.chain_pem, NOON) == issued.identity
    with pytest.raises(UntrustedCertificateError):
        authority.root.trust_root().verify(load_chain(issued.chain_pem)[:1], NOON)
    with pytest.raises(UntrustedCertificateError):  # a root that was dropped
        new_root.trust_root().verify_pem(authority.credentials().chain_pem, NOON)


def test_root_and_key_must_be_one_pair(authority: Authority) -> None:
    other = RootCA.create(NOON)
    with pytest.raises(InvalidCertificateError, match="the key is not the certificate's"):
        RootCA.from_pem(authority.root.certificate_pem, other.key_pem)
    with pytest.raises(InvalidCertificateError):
        RootCA.from_pem(authority.root.certificate_pem, authority.root.key_pem, b"garbage")
    again = RootCA.from_pem(authority.root.certificate_pem, authority.root.key_pem)
    assert again.certificate_pem == authority.root.certificate_pem


@pytest.mark.parametrize("text", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_root_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidCertificateError):
        TrustRoot(text)


def test_a_node_certificate_is_no_root(authority: Authority) -> None:
    with pytest.raises(InvalidCertificateError, match="not a certificate authority"):
        TrustRoot(authority.credentials().chain_pem)


def test_the_digest_covers_the_whole_bundle(authority: Authority) -> None:
    ours = authority.root.certificate_pem
    assert root_digest(ours + RootCA.create(NOON).certificate_pem) != root_digest(ours)
    assert authority.root.trust_root().digest == root_digest(ours)


def test_cert_expiry_is_an_hour_at_least() -> None:
    check_cert_expiry(timedelta(hours=1))
    with pytest.raises(ValueError, match="minimum certificate expiry time is: 1h0m0s"):
        check_cert_expiry(timedelta(minutes=30))
