"""TLS contexts for everything that is not gRPC: the 2377 listener, Raft streams, joining (architecture section 7).

TLS 1.3 and nothing else. A context is made for one set of credentials and thrown away with it: loading a new pair
into a live context would work, but a root that is to be trusted no longer cannot be taken out of one. Whoever
accepts or connects asks ``TLSContexts`` at that moment; connections made before live on.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable

from cryptography import x509

from pki.certificates import Identity, Role, TrustRoot, chain_to_pem, identity_of, load_chain
from pki.errors import UntrustedCertificateError
from pki.node_certificate import NodeCertificate, NodeCredentials

JOIN_ALPN = "swarm-join/1"
RAFT_ALPN = "swarm-raft/1"


def listener_context(credentials: NodeCredentials) -> ssl.SSLContext:
    """For 2377: a client certificate is asked for and, if there is one, must be by our root; who needs one, checks."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, credentials)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols([RAFT_ALPN, JOIN_ALPN])
    # A ticket would let a peer come back on the word of an earlier handshake, past a root that was dropped since.
    context.num_tickets = 0
    return context


def raft_client_context(credentials: NodeCredentials) -> ssl.SSLContext:
    """For a connection to another manager: ``server_hostname`` is its node ID, or ``swarm-manager`` for any."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, credentials)
    context.set_alpn_protocols([RAFT_ALPN])
    return context


def join_context() -> ssl.SSLContext:
    """For joining: we know no root yet, so this believes anybody. Nothing secret may pass before ``peer_certificate`` has
    been believed, by a root that the token names: the handshake has shown that the peer holds its key.
    """
    context = _bare_context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([JOIN_ALPN])
    return context


class TLSContexts:
    """The contexts for the newest credentials, made when first asked for after a change.

    One for each event loop or thread that asks: an object of this class is not shared between threads.
    """

    def __init__(self, source: NodeCertificate) -> None:
        self.source = source
        self._made: dict[Callable[[NodeCredentials], ssl.SSLContext], tuple[NodeCredentials, ssl.SSLContext]] = {}

    def listener(self) -> ssl.SSLContext:
        """See ``listener_context``."""
        return self._get(listener_context)

    def raft_client(self) -> ssl.SSLContext:
        """See ``raft_client_context``."""
        return self._get(raft_client_context)

    def _get(self, make: Callable[[NodeCredentials], ssl.SSLContext]) -> ssl.SSLContext:
        credentials = self.source.current
        made = self._made.get(make)
        if made is None or made[0] is not credentials:
            made = self._made[make] = (credentials, make(credentials))
        return made[1]


def peer_certificate(connection: ssl.SSLObject | ssl.SSLSocket) -> x509.Certificate | None:
    """What the other end of a connection whose handshake is done has shown, and holds the key of; None if nothing.

    Whether it is believed is another matter: that depends on the context.
    """
    der = connection.getpeercert(binary_form=True)
    return None if der is None else load_chain(ssl.DER_cert_to_PEM_cert(der).encode())[0]


def peer_identity(connection: ssl.SSLObject | ssl.SSLSocket) -> Identity | None:
    """Who is at the other end of a connection whose handshake is done, None if it showed no certificate.

    The handshake has verified the certificate against the roots of the context, cross-signed ones included; the
    caller still has to check cluster, role and whether the node was removed (``require_manager``).

    Raises:
        InvalidCertificateError: verified, but its subject is not of our form.
    """
    certificate = peer_certificate(connection)
    return None if certificate is None else identity_of(certificate)


def require_manager(identity: Identity | None, cluster_id: str) -> Identity:
    """Refuse a peer that is not a manager of the cluster.

    Raises:
        UntrustedCertificateError: no certificate, or of another cluster, or of a worker.
    """
    if identity is None:
        raise UntrustedCertificateError("peer showed no certificate")
    if identity.cluster_id != cluster_id:
        raise UntrustedCertificateError(
            f"node {identity.node_id} belongs to cluster {identity.cluster_id}, not {cluster_id}"
        )
    if identity.role is not Role.MANAGER:
        raise UntrustedCertificateError(f"node {identity.node_id} is no manager")
    return identity


def _bare_context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _context(protocol: ssl._SSLMethod, credentials: NodeCredentials) -> ssl.SSLContext:
    context = _bare_context(protocol)
    _trust(context, credentials.root)
    # The ssl module takes a key from a path alone. This one names memory, so that the clear key is never on a disk.
    descriptor = os.memfd_create("swarm-node", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(credentials.key_pem + credentials.chain_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def _trust(context: ssl.SSLContext, root: TrustRoot) -> None:
    context.load_verify_locations(cadata=chain_to_pem(root.certificates).decode("ascii"))
