"""What nodes and cluster tell of their roots (features A2.05): equal unless the root is being rotated."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key

from pki.certificates import TrustRoot
from pki.node_certificate import NodeCredentials
from pki.tls_info import cluster_tls_info, node_tls_info
from tests.unit.pki.support import Authority


def test_a_node_tells_what_its_cluster_tells() -> None:
    authority = Authority()
    root_pem = authority.root.certificate_pem
    told = node_tls_info(authority.credentials())
    assert told == cluster_tls_info(root_pem)
    assert told.trust_root == root_pem.decode()
    root = x509.load_pem_x509_certificate(root_pem)
    assert told.cert_issuer_subject == root.subject.public_bytes()
    assert load_der_public_key(told.cert_issuer_public_key) == root.public_key()


def test_while_the_root_is_rotated_a_node_names_who_signed_its_certificate() -> None:
    old, new = Authority(), Authority()
    bundle = new.root.certificate_pem + old.root.certificate_pem
    # Both roots have the same name, only the signature tells.
    of_old = _with_root(old.credentials(), bundle)
    of_new = _with_root(new.credentials(), bundle)
    assert (
        node_tls_info(of_old).cert_issuer_public_key
        == cluster_tls_info(old.root.certificate_pem).cert_issuer_public_key
    )
    assert node_tls_info(of_old) != cluster_tls_info(bundle)
    assert node_tls_info(of_new) == cluster_tls_info(bundle)


def _with_root(credentials: NodeCredentials, root_pem: bytes) -> NodeCredentials:
    return NodeCredentials(
        identity=credentials.identity,
        chain_pem=credentials.chain_pem,
        key_pem=credentials.key_pem,
        root=TrustRoot(root_pem),
    )
