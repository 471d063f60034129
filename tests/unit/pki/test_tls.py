"""Both ends of a connection to 2377, without sockets."""

from __future__ import annotations

import contextlib
import ssl

import pytest

from pki.certificates import Role
from pki.tls import listener_context, raft_client_context
from tests.unit.pki.support import Authority


def shaken_hands(client_context: ssl.SSLContext, server_context: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """The client's end, once each has had what the other said. Raises: ssl.SSLError: one refuses the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    server.write(b"x")
    assert client.read(1) == b"x"
    return client


def test_a_peer_comes_back_by_a_whole_handshake_alone() -> None:
    """A ticket would let it in on the word of a root that was dropped since."""
    authority = Authority()
    server, peer = authority.credentials(), authority.credentials()
    client = shaken_hands(raft_client_context(peer), listener_context(server), server.identity.node_id)
    assert client.version() == "TLSv1.3"
    assert client.session is not None
    assert not client.session.has_ticket


def test_a_manager_is_known_by_its_name_and_its_root() -> None:
    authority = Authority()
    server, peer = authority.credentials(), authority.credentials()
    for name in (server.identity.node_id, "swarm-manager"):
        assert shaken_hands(raft_client_context(peer), listener_context(server), name).version() == "TLSv1.3"
    refused = [
        (server, peer.identity.node_id),
        (authority.credentials(Role.WORKER), "swarm-manager"),
        (Authority().credentials(), "swarm-manager"),
    ]
    for other, name in refused:
        with pytest.raises(ssl.SSLCertVerificationError):
            shaken_hands(raft_client_context(peer), listener_context(other), name)
