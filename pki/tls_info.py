"""`TLSInfo` of the Engine API: which roots are trusted, and who issues certificates (features A2.05).

Clients compare a node's with the cluster's: equal is `Ready`, anything else `Needs Rotation`.

Source: swarmkit ``node/node.go``, ``ca/certificates.go`` (``IssuerInfo``): subject and public key of the issuer in DER.
"""

from __future__ import annotations

import functools

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pki.certificates import load_chain
from pki.node_certificate import NodeCredentials
from proto.objects_pb2 import TLSInfo


def cluster_tls_info(root_pem: bytes) -> TLSInfo:
    """What a cluster with these roots tells; of two, while the root is being rotated, the first issues.

    Raises:
        InvalidCertificateError: no PEM certificates.
    """
    return _tls_info(root_pem, b"")


def node_tls_info(credentials: NodeCredentials) -> TLSInfo:
    """What a node with these credentials tells."""
    return _tls_info(credentials.root.pem, credentials.chain_pem)


@functools.lru_cache(maxsize=8)
def _tls_info(root_pem: bytes, chain_pem: bytes) -> TLSInfo:
    roots = load_chain(root_pem)
    issuer = _issuer(load_chain(chain_pem), roots) if chain_pem else roots[0]
    return TLSInfo(
        trust_root=root_pem.decode("ascii"),
        cert_issuer_subject=issuer.subject.public_bytes(),
        cert_issuer_public_key=issuer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    )


def _issuer(chain: list[x509.Certificate], roots: list[x509.Certificate]) -> x509.Certificate:
    """Who signed the leaf. All roots of a cluster have one name, so it is the signature that tells."""
    leaf, *between = chain
    for candidate in (*between, *roots):
        try:
            leaf.verify_directly_issued_by(candidate)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return candidate
    return roots[0]
