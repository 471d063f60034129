"""Joining over a real socket: digest before secret, hostile peers, certificates that change meanwhile (A1.15)."""

from __future__ import annotations

import asyncio
import queue
import ssl
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

import manager.ca.service
import manager.listener
from base.rate_limit import RateLimit
from manager.ca.server import NODE_ROLES, CertificateServer
from manager.ca.service import JoinService
from manager.listener import Limits, Listener, source_network
from pki.certificates import Role
from pki.errors import (
    FingerprintMismatchError,
    FrameError,
    InvalidCertificateError,
    JoinRefusedError,
    JoinUnreachableError,
)
from pki.join import JoinServerProtocol, encode_frame
from pki.join_client import join_cluster
from pki.node_certificate import NodeCertificate
from pki.tls import JOIN_ALPN, join_context, listener_context, raft_client_context
from pki.tokens import new_token
from proto.ca_pb2 import GetRootCACertificateResponse, JoinRequest, JoinResponse
from proto.specs_pb2 import NodeAvailability, NodeRole
from tests.unit.ca import support
from tests.unit.ca.support import SmallCluster
from tests.unit.pki.support import Authority
from tests.waiting import until

DEADLINE_S = 30.0


@pytest.mark.parametrize("role", list(Role))
async def test_the_token_makes_the_role(tmp_path: Path, cluster: SmallCluster, role: Role) -> None:
    token = cluster.join_tokens.manager if role is Role.MANAGER else cluster.join_tokens.worker
    async with support.manager(tmp_path, cluster) as (listener, _, _):
        result = await join_cluster(
            [f"127.0.0.1:{listener.port}"], token, availability=NodeAvailability.NODE_AVAILABILITY_DRAIN
        )
    identity = result.credentials.identity
    assert (identity.role, identity.cluster_id) == (role, cluster.authority.cluster_id)
    (node,) = cluster.nodes
    assert (node.id, node.spec.role) == (identity.node_id, NODE_ROLES[role])
    assert node.spec.availability == NodeAvailability.NODE_AVAILABILITY_DRAIN
    assert [manager.raft_addr for manager in result.managers] == ["127.0.0.1:2377"]
    saved = NodeCertificate.create(tmp_path / "joined", result.credentials)
    assert saved.current == result.credentials


async def test_a_rotated_token_is_refused_in_swarms_words(tmp_path: Path, cluster: SmallCluster) -> None:
    old = cluster.join_tokens.worker
    await cluster.rotate_worker_token()
    async with support.manager(tmp_path, cluster) as (listener, _, _):
        with pytest.raises(
            JoinRefusedError, match=r"^A valid join token is necessary to join this cluster$"
        ) as refusal:
            await join_cluster([f"127.0.0.1:{listener.port}"], old)
    assert refusal.value.code == 3
    assert cluster.nodes == []


async def test_a_token_of_another_cluster_fails_before_the_secret_leaves(
    cluster: SmallCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer records every byte that it decrypts: the secret must not be among them."""
    heard = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = JoinServerProtocol()
        while data := await reader.read(4096):
            heard.extend(data)
            for _ in protocol.receive(data):
                root = GetRootCACertificateResponse(root_ca_pem=cluster.state.trust_root_pem)
                writer.write(encode_frame(JoinResponse(get_root_ca_certificate=root)))
        writer.close()

    context = listener_context(cluster.authority.credentials())
    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    token = new_token(Authority().root.trust_root().digest)
    expected = cluster.authority.root.trust_root().digest
    try:
        with pytest.raises(FingerprintMismatchError, match="remote CA does not match fingerprint") as error:
            await join_cluster([f"127.0.0.1:{server.sockets[0].getsockname()[1]}"], token)
    finally:
        server.close()
    assert error.value.expected != expected
    assert token.rsplit("-", 1)[1].encode() not in heard
    assert JoinRequest.FromString(bytes(heard[4:])).WhichOneof("request") == "get_root_ca_certificate"


async def test_an_impostor_that_knows_the_root_certificate_gets_no_secret(
    tmp_path: Path, cluster: SmallCluster
) -> None:
    """The root certificate is public: whoever serves it must also hold a certificate by it."""
    impostor = Authority(cluster_id=cluster.authority.cluster_id)
    async with support.manager(tmp_path, cluster, authority=impostor) as (listener, _, _):
        with pytest.raises(InvalidCertificateError, match="is no manager of the cluster of this token"):
            await join_cluster([f"127.0.0.1:{listener.port}"], cluster.join_tokens.worker)
    assert cluster.nodes == []


@pytest.mark.parametrize("role", ["another root's manager", "a worker"])
async def test_who_shows_the_right_root_and_is_no_manager_hears_no_secret(cluster: SmallCluster, role: str) -> None:
    """All is said on one connection, which began with anybody: the token leaves only when its other end is believed."""
    heard = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = JoinServerProtocol()
        while data := await reader.read(4096):
            heard.extend(data)
            for _ in protocol.receive(data):
                root = GetRootCACertificateResponse(root_ca_pem=cluster.state.trust_root_pem)
                writer.write(encode_frame(JoinResponse(get_root_ca_certificate=root)))
        writer.close()

    impostor = Authority(cluster_id=cluster.authority.cluster_id, now=cluster.authority.now)
    shown = cluster.authority.credentials(Role.WORKER) if role == "a worker" else impostor.credentials()
    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=listener_context(shown))
    token = cluster.join_tokens.worker
    try:
        with pytest.raises(InvalidCertificateError, match="is no manager of the cluster of this token"):
            await join_cluster([f"127.0.0.1:{server.sockets[0].getsockname()[1]}"], token)
    finally:
        server.close()
    assert token.rsplit("-", 1)[1].encode() not in heard
    assert JoinRequest.FromString(bytes(heard[4:])).WhichOneof("request") == "get_root_ca_certificate"


async def test_a_worker_cannot_pose_as_a_manager(tmp_path: Path, cluster: SmallCluster) -> None:
    async with support.manager(tmp_path, cluster, role=Role.WORKER) as (listener, _, _):
        with pytest.raises(InvalidCertificateError, match="is no manager of the cluster of this token"):
            await join_cluster([f"127.0.0.1:{listener.port}"], cluster.join_tokens.worker)
    assert cluster.nodes == []


@pytest.mark.parametrize(
    ("ahead", "said"),
    [(timedelta(hours=2), "is not valid before"), (timedelta(hours=-2), "expired at")],
)
async def test_clocks_that_differ_are_asked_after(
    tmp_path: Path, cluster: SmallCluster, ahead: timedelta, said: str
) -> None:
    cluster.authority.now += ahead
    async with support.manager(tmp_path, cluster) as (listener, _, _):
        with pytest.raises(InvalidCertificateError) as refused:
            await join_cluster([f"127.0.0.1:{listener.port}"], cluster.join_tokens.worker)
    assert said in str(refused.value)
    assert str(refused.value).endswith("do the clocks of this host and of the manager agree?")


async def test_the_next_address_is_tried_when_one_does_not_answer(tmp_path: Path, cluster: SmallCluster) -> None:
    async with support.manager(tmp_path, cluster) as (listener, _, _):
        await join_cluster(["127.0.0.1:1", f"127.0.0.1:{listener.port}"], cluster.join_tokens.worker)
    with pytest.raises(JoinUnreachableError, match=r"could not connect to 127.0.0.1:1"):
        await join_cluster(["127.0.0.1:1"], cluster.join_tokens.worker)
    assert len(cluster.nodes) == 1


async def test_a_follower_without_a_leader_says_so(tmp_path: Path, cluster: SmallCluster) -> None:
    cluster.log.lose_leadership()
    async with support.manager(tmp_path, cluster) as (listener, _, _):
        with pytest.raises(JoinUnreachableError, match="the swarm does not have a leader"):
            await join_cluster([f"127.0.0.1:{listener.port}"], cluster.join_tokens.worker)


async def test_without_a_quorum_a_join_ends_by_time(
    tmp_path: Path, cluster: SmallCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager.ca.service, "DECISION_TIMEOUT_S", 0.1)
    cluster.log.quorum.clear()
    async with support.manager(tmp_path, cluster) as (listener, _, _):
        with pytest.raises(JoinUnreachableError, match="did not decide in time"):
            await join_cluster([f"127.0.0.1:{listener.port}"], cluster.join_tokens.worker)
    assert cluster.nodes == []


async def test_something_else_on_the_port_is_told_apart(cluster: SmallCluster) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    context = listener_context(cluster.authority.credentials())
    context.set_alpn_protocols(["h2"])
    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context)
    try:
        with pytest.raises((FrameError, JoinUnreachableError)):
            await join_cluster([f"127.0.0.1:{server.sockets[0].getsockname()[1]}"], cluster.join_tokens.worker)
    finally:
        server.close()


# ------------------------------------------------------------- hostile peers


async def connect(
    port: int, context: ssl.SSLContext, server_hostname: str = "swarm-manager"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=server_hostname)


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        try:
            return await reader.read()
        except (OSError, ssl.SSLError):
            return b""


async def test_a_huge_frame_is_answered_and_cut_off(tmp_path: Path, cluster: SmallCluster) -> None:
    async with support.manager(tmp_path, cluster) as (listener, _, _):
        reader, writer = await connect(listener.port, join_context())
        writer.write(b"\x7f\xff\xff\xff" + b"x" * 1000)
        answer = JoinResponse.FromString((await read_to_end(reader))[4:])
        assert "frame of 2147483647 bytes" in answer.error.message
        writer.close()


async def test_slow_peers_are_cut_off_and_leave_room(
    tmp_path: Path, cluster: SmallCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(strangers_per_address_max=2)
    async with support.manager(tmp_path, cluster, limits=limits) as (listener, _, _):
        with monkeypatch.context() as patch:
            patch.setattr(manager.ca.service, "REQUEST_TIMEOUT_S", 0.2)
            dripping, dripping_writer = await connect(listener.port, join_context())
            patch.setattr(manager.listener, "HANDSHAKE_TIMEOUT_S", 0.2)
            dripping_writer.write(b"\x00")  # a handshake, then a quarter of a length
            silent, silent_writer = await asyncio.open_connection("127.0.0.1", listener.port)  # no handshake
            third, third_writer = await asyncio.open_connection("127.0.0.1", listener.port)
            assert await read_to_end(third) == b""  # one too many from this address
            assert await read_to_end(silent) == b""
            assert await read_to_end(dripping) == b""
        for writer in (silent_writer, dripping_writer, third_writer):
            writer.close()
        await until(lambda: not listener._strangers)
        await join_cluster([f"127.0.0.1:{listener.port}"], cluster.join_tokens.worker)


async def test_garbage_instead_of_a_handshake_harms_nobody(tmp_path: Path, cluster: SmallCluster) -> None:
    async with support.manager(tmp_path, cluster) as (listener, _, _):
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 100, b"\x80\x04\x95"):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(garbage)
            writer.write_eof()
            await read_to_end(reader)
            writer.close()
        await join_cluster([f"127.0.0.1:{listener.port}"], cluster.join_tokens.worker)


async def test_strangers_that_come_again_and_again_fill_no_log(tmp_path: Path, cluster: SmallCluster) -> None:
    limits = Limits(burst_per_address=20, rate_per_address_s=0.0)
    async with support.manager(tmp_path, cluster, limits=limits) as (listener, _, _):
        with capture_logs() as lines:
            for _ in range(40):
                reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                await read_to_end(reader)
                writer.close()
            await until(lambda: not listener._strangers)
    events = [line["event"] for line in lines]
    assert (events.count("connection.failed"), events.count("connection.refused")) == (1, 1)


async def test_older_tls_is_refused(tmp_path: Path, cluster: SmallCluster) -> None:
    context = join_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with support.manager(tmp_path, cluster) as (listener, _, _):
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await connect(listener.port, context)


async def test_only_managers_of_this_cluster_reach_raft(tmp_path: Path, cluster: SmallCluster) -> None:
    reached: list[str] = []

    async def raft_accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node_id: str) -> None:
        reached.append(node_id)
        writer.write(b"welcome")
        await writer.drain()
        await reader.read()

    authority = cluster.authority
    peers = {
        "manager": authority.credentials(),
        "worker": authority.credentials(Role.WORKER),
        "removed": authority.credentials(),
        "other cluster, our root": Authority(now=authority.now).credentials(),
        "other root": Authority(cluster_id=cluster.authority.cluster_id).credentials(),
    }
    await cluster.add_node(peers["removed"].identity.node_id, NodeRole.NODE_ROLE_WORKER)
    await cluster.remove_node(peers["removed"].identity.node_id)
    async with support.manager(tmp_path, cluster, raft_accept=raft_accept) as (listener, _, _):
        for name, credentials in peers.items():
            context = raft_client_context(credentials)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # a hostile client does not care who we are
            reader, writer = await connect(listener.port, context)
            writer.write(b"hello")
            writer.transport.set_write_buffer_limits(0)
            try:
                async with asyncio.timeout(DEADLINE_S):
                    first = await reader.read(7)
            except (OSError, ssl.SSLError):
                first = b""
            assert first == (b"welcome" if name == "manager" else b""), name
            writer.close()
        context = join_context()
        context.set_alpn_protocols(["swarm-raft/1"])  # no certificate at all
        reader, writer = await connect(listener.port, context)
        assert await read_to_end(reader) == b""
        writer.close()
    assert reached == [peers["manager"].identity.node_id]


async def test_streams_live_through_a_renewal_and_new_ones_see_it(tmp_path: Path, cluster: SmallCluster) -> None:
    async def raft_accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node_id: str) -> None:
        while data := await reader.read(100):
            writer.write(data)

    async with support.manager(tmp_path, cluster, raft_accept=raft_accept) as (listener, source, _):
        context = raft_client_context(cluster.authority.credentials())
        reader, writer = await connect(listener.port, context)
        before = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
        source.replace(cluster.authority.credentials(node_id=source.identity.node_id))
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        _, fresh = await connect(listener.port, context)
        after = fresh.get_extra_info("ssl_object").getpeercert()["serialNumber"]
        assert int(before, 16) != int(after, 16) == source.identity.serial
        writer.close()
        fresh.close()


async def test_a_manager_is_reached_by_its_node_id(tmp_path: Path, cluster: SmallCluster) -> None:
    """What the Raft transport checks: that it talks to the member it means."""
    async with support.manager(tmp_path, cluster) as (listener, source, _):
        context = raft_client_context(cluster.authority.credentials())
        context.set_alpn_protocols([JOIN_ALPN])
        _, writer = await connect(listener.port, context, source.identity.node_id)
        writer.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(listener.port, context, "somebodyelse")


@given(st.lists(st.floats(0, 0.5), max_size=200))
def test_an_address_gets_its_burst_and_then_its_rate(pauses_s: list[float]) -> None:
    limit, now_s, taken = RateLimit(burst=5, rate_s=2.0), 0.0, 0
    for pause_s in pauses_s:
        now_s += pause_s
        taken += limit.take("a", now_s)
    assert min(len(pauses_s), 5) <= taken <= 5 + 2.0 * now_s
    assert limit.take("b", now_s)


def test_who_has_used_up_its_own_gets_no_more_by_coming_from_everywhere() -> None:
    limit = RateLimit(burst=5, rate_s=0.001)
    assert all(limit.take("a", 0.0) for _ in range(5))
    for number in range(20_000):
        limit.take(f"other {number}", 0.0)
    assert not limit.take("a", 0.0)
    assert len(limit._buckets) <= 4096


async def test_an_address_that_connects_too_often_waits(tmp_path: Path, cluster: SmallCluster) -> None:
    limits = Limits(burst_per_address=1, rate_per_address_s=0.0)  # all of a join is one connection
    async with support.manager(tmp_path, cluster, limits=limits) as (listener, _, _):
        await join_cluster([f"127.0.0.1:{listener.port}"], cluster.join_tokens.worker)
        with pytest.raises(JoinUnreachableError):
            await join_cluster([f"127.0.0.1:{listener.port}"], cluster.join_tokens.worker)


async def test_many_addresses_together_wait_as_well(tmp_path: Path, cluster: SmallCluster) -> None:
    """Whoever has an IPv6 /48 has 65536 addresses in this sense, and handshakes are made on Raft's thread."""
    limits = Limits(burst=1, rate_s=0.0)
    async with support.manager(tmp_path, cluster, limits=limits) as (listener, _, _):
        await join_cluster([f"127.0.0.1:{listener.port}"], cluster.join_tokens.worker)
        with capture_logs() as lines:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, local_addr=("127.0.0.2", 0))
            assert await read_to_end(reader) == b""
        writer.close()
    assert [(line["event"], line["peer"]) for line in lines] == [("connection.refused", "127.0.0.2")]


async def test_a_manager_of_the_group_waits_for_no_stranger(tmp_path: Path, cluster: SmallCluster) -> None:
    """Else a flood of strangers keeps a manager whose connection broke out of the group."""
    limits = Limits(burst=1, rate_s=0.0)
    async with support.manager(tmp_path, cluster, limits=limits, is_member="127.0.0.1".__eq__) as (listener, _, _):
        for _ in range(3):
            await join_cluster([f"127.0.0.1:{listener.port}"], cluster.join_tokens.worker)


def test_an_ipv6_host_counts_as_its_network() -> None:
    assert source_network("10.0.0.1") == "10.0.0.1"
    assert source_network("2001:db8::1") == source_network("2001:db8::ffff:1") == "2001:db8::/64"
    assert source_network("fe80::1%eth0") == "fe80::/64"


async def test_the_listener_lives_on_a_thread_of_its_own(tmp_path: Path, cluster: SmallCluster) -> None:
    """As in a manager: TLS on the Raft thread, the decision on the main loop."""
    decided_on: list[int] = []
    cluster.managed.store.on_change(lambda changes: decided_on.append(threading.get_ident()))
    server = CertificateServer(cluster.state, forward=support.no_leader)
    join = JoinService(server, asyncio.get_running_loop())
    source = NodeCertificate.create(tmp_path, cluster.authority.credentials())
    ports: queue.Queue[int] = queue.Queue()
    raft_loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def raft_thread() -> None:
        listener = Listener(
            source, join=join, raft_accept=support.no_raft, refuses_manager=cluster.state.refuses_manager
        )
        await listener.start("127.0.0.1", 0)
        ports.put(listener.port)
        await stop.wait()
        await listener.close()

    thread = threading.Thread(target=lambda: raft_loop.run_until_complete(raft_thread()))
    thread.start()
    try:
        port = await asyncio.to_thread(ports.get, timeout=DEADLINE_S)
        await join_cluster([f"127.0.0.1:{port}"], cluster.join_tokens.worker)
    finally:
        raft_loop.call_soon_threadsafe(stop.set)
        await asyncio.to_thread(thread.join, DEADLINE_S)
        raft_loop.close()
    assert decided_on == [threading.get_ident()]


async def test_a_port_in_use_is_named(tmp_path: Path, cluster: SmallCluster) -> None:
    async with support.manager(tmp_path, cluster) as (listener, _, _):
        with pytest.raises(OSError, match=rf"cannot listen on 127.0.0.1:{listener.port}: Address already in use"):
            await listener.start("127.0.0.1", listener.port)


async def test_every_address_of_the_host_is_served(tmp_path: Path, cluster: SmallCluster) -> None:
    async with support.manager(tmp_path, cluster) as (_, source, server):
        join = JoinService(server, asyncio.get_running_loop())
        everywhere = Listener(
            source, join=join, raft_accept=support.no_raft, refuses_manager=cluster.state.refuses_manager
        )
        await everywhere.start("", 0)
        await join_cluster([f"127.0.0.1:{everywhere.port}"], cluster.join_tokens.worker)
        await everywhere.close()
