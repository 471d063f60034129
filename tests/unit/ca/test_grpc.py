"""gRPC over real sockets: the table, removed and expired peers, certificates that change under open streams."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from structlog.testing import capture_logs

import proto.ca_pb2
import proto.control_pb2
import proto.dispatcher_pb2
import proto.health_pb2
import proto.raft_pb2
from manager import authorization as manager_authorization
from manager.authorization import (
    CALLS_AT_ONCE_MAX,
    REFUSALS_BURST,
    ROLES_BY_METHOD,
    AuthorizationInterceptor,
    LocalInterceptor,
    authorize,
    caller,
)
from manager.ca.server import CertificateServer
from manager.ca.service import NodeCAService
from manager.control.rpc import CHANNEL_OPTIONS
from pki.authority import RootCA
from pki.certificates import Identity, Role, TrustRoot, new_csr
from pki.errors import NodeCertificateExpiredError
from pki.grpc_credentials import (
    CONNECTIONS_MAX,
    REQUEST_SIZE_BYTES_MAX,
    STREAMS_MAX,
    RotatingChannel,
    channel_options,
    server_credentials,
    server_options,
)
from pki.keys import new_key
from pki.node_certificate import NodeCertificate, NodeCredentials
from pki.renewal import Renewer
from proto.ca_pb2 import IssueNodeCertificateRequest, RenewCertificateRequest, RenewCertificateResponse
from proto.ca_pb2_grpc import NodeCAStub, add_NodeCAServicer_to_server
from proto.specs_pb2 import NodeRole
from tests.unit.ca.support import SmallCluster, no_leader, small_cluster
from tests.unit.pki.support import Authority
from tests.waiting import until

DEADLINE_S = 60.0
NEW_LEADER_S = 30.0
"""So long a new leader waits for nodes that stay with the old one (docs/design/dispatcher.md)."""
ECHO = "/swarm.v1.Dispatcher/Session"
COUNT = "/swarm.v1.Dispatcher/Assignments"
MANAGERS_ONLY = "/swarm.v1.Control/GetCluster"
UNLISTED = "/swarm.v1.Control/Nonsense"


def services() -> dict[str, Any]:
    modules = (proto.ca_pb2, proto.control_pb2, proto.dispatcher_pb2, proto.health_pb2, proto.raft_pb2)
    return {service.full_name: service for module in modules for service in module.DESCRIPTOR.services_by_name.values()}


def test_every_rpc_has_a_row_and_every_row_an_rpc() -> None:
    methods = {f"/{name}/{method.name}" for name, service in services().items() for method in service.methods}
    assert methods == set(ROLES_BY_METHOD)
    assert all(ROLES_BY_METHOD.values())


def test_no_proto_with_a_service_is_forgotten() -> None:
    declared = {
        line.split()[1]
        for path in Path(proto.ca_pb2.__file__).parent.glob("*.proto")
        for line in path.read_text().splitlines()
        if line.startswith("service ")
    }
    assert declared == {name.rpartition(".")[2] for name in services()}


def test_workers_may_call_dispatcher_and_renewal_alone() -> None:
    """A2.01; the log broker is not there yet."""
    open_to_workers = {method for method, roles in ROLES_BY_METHOD.items() if Role.WORKER in roles}
    assert {method.split("/")[1] for method in open_to_workers} == {"swarm.v1.Dispatcher", "swarm.v1.NodeCA"}
    assert "/swarm.v1.NodeCA/IssueNodeCertificate" not in open_to_workers


def test_the_decision_explains_itself() -> None:
    authority = Authority()
    worker = authority.credentials(Role.WORKER).identity

    def reason(method: str, cluster_id: str = authority.cluster_id, removed: bool = False) -> str:
        denial = authorize(
            method,
            worker,
            cluster_id=cluster_id,
            is_removed=lambda node_id, serial: removed,
            is_demoted=lambda node_id: False,
        )
        return denial.message if denial else ""

    assert reason(ECHO) == ""
    assert reason(MANAGERS_ONLY).endswith(f"is a swarm-worker, {MANAGERS_ONLY} may be called by: swarm-manager")
    assert reason(ECHO, cluster_id="x") == f"node {worker.node_id} belongs to cluster {authority.cluster_id}, this is x"
    assert reason(ECHO, removed=True) == f"node {worker.node_id} was removed from the cluster"
    assert reason("/x/y") == "no role may call /x/y"


def test_a_demoted_node_is_no_manager_whatever_certificate_it_kept() -> None:
    authority = Authority()
    kept = authority.credentials(Role.MANAGER).identity

    def refused(method: str) -> bool:
        denial = authorize(
            method,
            kept,
            cluster_id=authority.cluster_id,
            is_removed=lambda node_id, serial: False,
            is_demoted=lambda node_id: node_id == kept.node_id,
        )
        return denial is not None

    assert {method for method in ROLES_BY_METHOD if refused(method)} == {
        method for method, roles in ROLES_BY_METHOD.items() if Role.WORKER not in roles
    }


# ------------------------------------------------------------- a server with one method of each kind


async def echo(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request + b" " + caller().node_id.encode()


async def count(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    for number in range(3):
        await context.write(f"{number} {caller().role.value}".encode())


async def who(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return caller().node_id.encode()


async def gather(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return b"".join([request async for request in requests])


async def many_bytes(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return bytes(int(request))


HANDLERS: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
    "Session": grpc.stream_stream_rpc_method_handler(echo),
    "Assignments": grpc.unary_stream_rpc_method_handler(count),
}
CONTROL: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
    "GetCluster": grpc.unary_unary_rpc_method_handler(who),
    "ListTasks": grpc.unary_unary_rpc_method_handler(many_bytes),
    "ListNodes": grpc.stream_unary_rpc_method_handler(gather),
    "Nonsense": grpc.unary_unary_rpc_method_handler(who),
}


@dataclass
class Manager:
    """A gRPC server on the loopback, with a certificate that may be changed."""

    directory: Path
    authority: Authority = field(default_factory=Authority)
    removed: set[str] = field(default_factory=set)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    trust_root: TrustRoot = field(init=False)
    source: NodeCertificate = field(init=False)
    server: grpc.aio.Server = field(init=False)
    target: str = ""
    options: list[tuple[str, str | int]] = field(default_factory=list)
    held: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def _hold(self) -> None:
        self.held += 1
        await self.go_on.wait()

    def __post_init__(self) -> None:
        self.trust_root = self.authority.root.trust_root()
        self.source = NodeCertificate.create(self.directory / "manager", self.authority.credentials())
        interceptor = AuthorizationInterceptor(
            trust_root=lambda: self.trust_root,
            cluster_id=self.authority.cluster_id,
            is_demoted=lambda node_id: False,
            is_removed=lambda node_id, serial: node_id in self.removed,
            clock=lambda: self.clock(),
            refusal_delay=self._hold,
        )
        self.server = grpc.aio.server(interceptors=[interceptor], options=self.options)
        self.server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler("swarm.v1.Dispatcher", HANDLERS),
                grpc.method_handlers_generic_handler("swarm.v1.Control", CONTROL),
            )
        )

    def node(self, role: Role = Role.WORKER, name: str = "node", authority: Authority | None = None) -> NodeCertificate:
        return NodeCertificate.create(self.directory / name, (authority or self.authority).credentials(role))


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    manager = Manager(tmp_path)
    port = manager.server.add_secure_port("127.0.0.1:0", server_credentials(manager.source))
    manager.target = f"127.0.0.1:{port}"
    await manager.server.start()
    yield manager
    await manager.server.stop(None)


@asynccontextmanager
async def channel(manager: Manager, source: NodeCertificate) -> AsyncIterator[RotatingChannel]:
    async with asyncio.timeout(DEADLINE_S), RotatingChannel(manager.target, source) as channel:
        yield channel


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details() or ""


async def test_every_kind_of_call_is_let_in_and_knows_its_caller(manager: Manager) -> None:
    source = manager.node(Role.MANAGER)
    async with channel(manager, source) as chan:
        assert await chan.unary_unary(MANAGERS_ONLY)(b"") == source.identity.node_id.encode()
        assert [item async for item in chan.unary_stream(COUNT)(b"")] == [b"%d swarm-manager" % n for n in range(3)]
        stream = chan.stream_stream(ECHO)()
        await stream.write(b"a")
        assert await stream.read() == b"a " + source.identity.node_id.encode()
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await chan.stream_unary("/swarm.v1.Control/ListNodes")(iter([b"x", b"y"])) == b"xy"


async def test_what_was_issued_here_is_not_verified_again_and_ends_in_time(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC gives a peer's certificate in the bytes in which it was issued."""
    source, stranger = manager.node(), manager.node(name="other")
    issued, root = source.current, manager.authority.root.certificate
    verified: list[str] = []
    verify = TrustRoot.verify

    def noted(self: TrustRoot, chain: Sequence[x509.Certificate], now: datetime) -> Identity:
        identity = verify(self, chain, now)
        verified.append(identity.node_id)
        return identity

    monkeypatch.setattr(TrustRoot, "verify", noted)
    manager.trust_root.remember(issued.chain_pem, issued.identity, issuer=root)
    manager.trust_root.remember(stranger.current.chain_pem, stranger.identity, issuer=Authority().root.certificate)
    for node in (source, stranger):
        async with channel(manager, node) as chan:
            assert len([item async for item in chan.unary_stream(COUNT)(b"")]) == 3
    assert verified == [stranger.identity.node_id]
    manager.clock = lambda: datetime.now(UTC) + timedelta(days=1)
    async with channel(manager, source) as chan:
        code, message = await refusal(chan.unary_stream(COUNT)(b"").read())
    assert (code, "expired" in message) == (grpc.StatusCode.UNAUTHENTICATED, True)


async def test_a_worker_is_kept_out_of_what_is_the_managers(manager: Manager) -> None:
    async with channel(manager, manager.node()) as chan:
        code, message = await refusal(chan.unary_unary(MANAGERS_ONLY)(b""))
        assert (code, "may be called by: swarm-manager" in message) == (grpc.StatusCode.PERMISSION_DENIED, True)
        code, message = await refusal(chan.unary_unary(UNLISTED)(b""))
        assert (code, message) == (grpc.StatusCode.PERMISSION_DENIED, f"no role may call {UNLISTED}")
        code, _ = await refusal(chan.unary_unary("/swarm.v1.Control/NotServed")(b""))
        assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_peer_that_is_refused_again_and_again_fills_no_log(manager: Manager) -> None:
    with capture_logs() as lines:
        async with channel(manager, manager.node()) as chan:
            for _ in range(50):
                await refusal(chan.unary_unary(MANAGERS_ONLY)(b""))
    assert [line["event"] for line in lines].count("call.refused") == 1


async def test_a_peer_that_is_refused_again_and_again_has_to_wait(manager: Manager) -> None:
    async with channel(manager, manager.node()) as chan, channel(manager, manager.node(Role.MANAGER, "good")) as good:
        calls = {
            asyncio.ensure_future(refusal(chan.unary_unary(MANAGERS_ONLY)(b""))) for _ in range(REFUSALS_BURST + 40)
        }
        await until(lambda: manager.held >= 20)
        assert sum(call.done() for call in calls) < len(calls)
        assert await good.unary_unary(MANAGERS_ONLY)(b"")  # who may call waits for nobody
        manager.go_on.set()
        answers = await asyncio.gather(*calls)
    assert {code for code, _ in answers} == {grpc.StatusCode.PERMISSION_DENIED}


async def test_nothing_is_read_of_a_call_that_is_not_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many calls, over however many connections: half a message each was kept, 5 MiB."""
    monkeypatch.setattr(manager_authorization, "REFUSALS_BURST", 1)  # the second one has to wait
    monkeypatch.setattr(manager_authorization, "REFUSALS_RATE_S", 0.0)
    manager = Manager(tmp_path, options=server_options())
    port = manager.server.add_secure_port("127.0.0.1:0", server_credentials(manager.source))
    manager.target = f"127.0.0.1:{port}"
    await manager.server.start()
    try:
        async with channel(manager, manager.node()) as chan:
            await refusal(chan.unary_unary(MANAGERS_ONLY)(b""))
            call = chan.stream_unary(MANAGERS_ONLY)()
            writing = asyncio.ensure_future(call.write(bytes(REQUEST_SIZE_BYTES_MAX - 1000)))
            await until(lambda: manager.held == 1)
            is_read = writing.done()
            manager.go_on.set()
            assert not is_read
            assert (await refusal(call))[0] is grpc.StatusCode.PERMISSION_DENIED
            await asyncio.wait([writing])
            writing.exception()
    finally:
        await manager.server.stop(None)


async def test_a_request_that_comes_by_halves_is_not_waited_for(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_authorization, "REQUEST_TIMEOUT_S", 0.1)
    async with channel(manager, manager.node(Role.MANAGER)) as chan:
        call = chan.stream_unary(MANAGERS_ONLY)()
        assert await refusal(call) == (grpc.StatusCode.INVALID_ARGUMENT, "the request did not come")


async def test_a_node_has_so_many_calls_under_way_and_no_more(manager: Manager) -> None:
    most = CALLS_AT_ONCE_MAX[Role.WORKER]
    async with channel(manager, manager.node()) as chan, channel(manager, manager.node(name="other")) as other:
        streams = [chan.stream_stream(ECHO)() for _ in range(most)]
        for stream in streams:
            await stream.write(b"a")
            assert await stream.read()
        code, message = await refusal(chan.stream_stream(ECHO)().read())
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert message.endswith(f"has {most} calls under way")
        assert [item async for item in other.unary_stream(COUNT)(b"")]
        await streams[0].done_writing()
        assert await streams[0].read() is grpc.aio.EOF
        assert [item async for item in chan.unary_stream(COUNT)(b"")]


def _option(name: str) -> object:
    (value,) = (value for key, value in server_options() if key == name)  # a second one would be without effect
    return value


def test_what_a_peer_may_take_up_before_it_is_authorised_is_bounded() -> None:
    """gRPC makes a call's stream before any of our code sees it."""
    assert _option("grpc.max_receive_message_length") == REQUEST_SIZE_BYTES_MAX
    assert _option("grpc.max_concurrent_streams") == STREAMS_MAX
    assert _option("grpc.max_allowed_incoming_connections") == CONNECTIONS_MAX
    names = [name for name, _ in server_options()]
    assert len(names) == len(set(names))


_NOISY = """
import socket, sys, threading
from concurrent import futures
from pathlib import Path
from api.startup import configure_logging
configure_logging("info")
import grpc
from pki.grpc_credentials import server_credentials, server_options
from pki.node_certificate import NodeCertificate
server = grpc.server(futures.ThreadPoolExecutor(1), options=server_options())
port = server.add_secure_port("127.0.0.1:0", server_credentials(NodeCertificate.load(Path(sys.argv[1]))))
server.start()
for text in [b"GET / HTTP/1.1\\r\\n\\r\\n", bytes(500), b"\\x16\\x03\\x01\\x00\\x05hello"] * 10:
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(text)
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(4096):
            pass
server.stop(None).wait()
"""


def test_a_stranger_writes_no_lines_of_grpcs_own(tmp_path: Path) -> None:
    """It tells of each handshake that fails, 4000 a second of one host: who reaches the port would fill the log."""
    source = NodeCertificate.create(tmp_path / "node", Authority().credentials())
    command = [sys.executable, "-c", _NOISY, str(source.directory)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=DEADLINE_S, check=True)
    assert (done.stdout, done.stderr) == ("", "")


async def test_answers_may_be_larger_than_requests_also_between_managers(tmp_path: Path) -> None:
    """As a follower asks the leader: what the options say has to be what happens."""
    manager = Manager(tmp_path, options=server_options())
    port = manager.server.add_secure_port("127.0.0.1:0", server_credentials(manager.source))
    await manager.server.start()
    try:
        source = manager.node(Role.MANAGER)
        async with RotatingChannel(f"127.0.0.1:{port}", source, CHANNEL_OPTIONS) as chan:
            answer = await chan.unary_unary("/swarm.v1.Control/ListTasks")(b"%d" % (100 * 1024 * 1024))
            assert len(answer) == 100 * 1024 * 1024
            code, _ = await refusal(chan.unary_unary("/swarm.v1.Control/ListTasks")(bytes(REQUEST_SIZE_BYTES_MAX + 1)))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        await manager.server.stop(None)


async def test_streams_are_refused_as_well(manager: Manager) -> None:
    source = manager.node()
    manager.removed.add(source.identity.node_id)
    async with channel(manager, source) as chan:
        for call in (chan.stream_stream(ECHO)(), chan.unary_stream(COUNT)(b"")):
            code, message = await refusal(call.read())
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert message == f"node {source.identity.node_id} was removed from the cluster"


async def test_a_removed_or_expired_node_is_refused_on_the_connection_it_has(manager: Manager) -> None:
    source = manager.node(Role.MANAGER)
    async with channel(manager, source) as chan:
        call = chan.unary_unary(MANAGERS_ONLY)
        await call(b"")
        manager.removed.add(source.identity.node_id)
        assert (await refusal(call(b"")))[0] is grpc.StatusCode.PERMISSION_DENIED
        manager.removed.clear()
        await call(b"")
        manager.clock = lambda: datetime.now(UTC) + timedelta(hours=2)
        code, message = await refusal(call(b""))
        assert (code, "expired at" in message) == (grpc.StatusCode.UNAUTHENTICATED, True)


async def test_another_cluster_under_the_same_root_is_refused(manager: Manager) -> None:
    other = Authority()
    other.root = manager.authority.root
    async with channel(manager, manager.node(Role.MANAGER, authority=other)) as chan:
        code, message = await refusal(chan.unary_unary(MANAGERS_ONLY)(b""))
        assert (code, "belongs to cluster" in message) == (grpc.StatusCode.PERMISSION_DENIED, True)


async def test_strangers_do_not_get_through_the_handshake(manager: Manager) -> None:
    stranger = manager.node(Role.MANAGER, authority=Authority(cluster_id=manager.authority.cluster_id))
    bundle = manager.authority.root.certificate_pem + stranger.current.root.pem
    stranger.replace_root(bundle)  # the stranger believes us; that does not help it
    async with channel(manager, stranger) as chan:
        assert (await refusal(chan.unary_unary(MANAGERS_ONLY)(b"")))[0] is grpc.StatusCode.UNAVAILABLE
    anonymous = grpc.ssl_channel_credentials(manager.authority.root.certificate_pem)
    options = [("grpc.ssl_target_name_override", "swarm-manager")]
    async with grpc.aio.secure_channel(manager.target, anonymous, options=options) as plain:
        anonymous_call: Any = plain.unary_unary(MANAGERS_ONLY)
        assert (await refusal(anonymous_call(b"")))[0] is grpc.StatusCode.UNAVAILABLE


async def test_a_client_talks_to_managers_alone(manager: Manager) -> None:
    manager.source.replace(manager.authority.credentials(Role.WORKER))
    async with channel(manager, manager.node()) as chan:
        assert (await refusal(chan.unary_stream(COUNT)(b"").read()))[0] is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_runs_on_while_both_ends_change_their_certificates(manager: Manager) -> None:
    source = manager.node(Role.MANAGER)
    async with channel(manager, source) as chan:
        stream = chan.stream_stream(ECHO)()
        await stream.write(b"a")
        await stream.read()
        node_id = source.identity.node_id
        for _ in range(3):
            manager.source.replace(manager.authority.credentials())
            source.replace(manager.authority.credentials(Role.MANAGER, node_id=node_id))
            assert await chan.unary_unary(MANAGERS_ONLY)(b"") == node_id.encode()
            await stream.write(b"b")
            assert await stream.read() == b"b " + node_id.encode()
        assert chan._generation == 3  # new calls have moved each time
        while len(chan._draining) > 1:
            await asyncio.sleep(0.01)
        assert len(chan._draining) == 1  # the one with the stream; the idle ones are closed
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await chan._draining.wait(timeout_s=10)


async def test_a_new_role_counts_on_the_next_call(manager: Manager) -> None:
    source = manager.node(Role.WORKER)
    async with channel(manager, source) as chan:
        call = chan.unary_unary(MANAGERS_ONLY)
        assert (await refusal(call(b"")))[0] is grpc.StatusCode.PERMISSION_DENIED
        source.replace(manager.authority.credentials(Role.MANAGER, node_id=source.identity.node_id))
        assert await call(b"") == source.identity.node_id.encode()


async def test_a_root_is_changed_without_losing_a_node_and_the_dropped_one_is_refused(manager: Manager) -> None:
    """CA1, then CA1 + CA2, then CA2: as a rotation goes, with the new root cross-signed by the old one."""
    old = manager.authority
    stays, late = manager.node(Role.MANAGER, "stays"), manager.node(Role.MANAGER, "late")
    new = Authority(cluster_id=old.cluster_id)
    bridge = old.root.cross_sign(new.root.certificate_pem, old.now)
    signer = Authority(cluster_id=old.cluster_id)
    signer.root = RootCA(certificate_pem=new.root.certificate_pem, key=new.root.key, intermediates_pem=bridge)
    both = TrustRoot(old.root.certificate_pem + new.root.certificate_pem)

    def reissued(holder: NodeCertificate, root: TrustRoot) -> NodeCredentials:
        key = new_key()
        issued = signer.root.issue(
            new_csr(key),
            node_id=holder.identity.node_id,
            role=Role.MANAGER,
            cluster_id=old.cluster_id,
            lifetime=timedelta(hours=1),
            now=old.now,
        )
        return NodeCredentials.verified(chain_pem=issued.chain_pem, key=key, root=root)

    async with channel(manager, stays) as chan, channel(manager, late) as late_chan:
        call, late_call = chan.unary_unary(MANAGERS_ONLY), late_chan.unary_unary(MANAGERS_ONLY)
        await call(b"")
        await late_call(b"")
        stays.replace(reissued(stays, old.root.trust_root()))  # a node is new, the manager knows only the old root
        await call(b"")
        manager.trust_root = both
        manager.source.replace(reissued(manager.source, both))
        await late_call(b"")
        stays.replace_root(both.pem)
        await call(b"")
        manager.trust_root = new.root.trust_root()
        manager.source.replace_root(new.root.certificate_pem)
        stays.replace_root(new.root.certificate_pem)
        await call(b"")
        assert (await refusal(late_call(b"")))[0] is grpc.StatusCode.UNAUTHENTICATED  # on its old connection
    async with channel(manager, late) as late_chan:
        assert (await refusal(late_chan.unary_unary(MANAGERS_ONLY)(b"")))[0] is grpc.StatusCode.UNAVAILABLE


# ------------------------------------------------------------- NodeCA


async def test_certificates_of_seconds_renew_over_grpc_under_an_open_stream(tmp_path: Path) -> None:
    """The whole circle: Renewer -> NodeCA.RenewCertificate -> new pair on disk -> new connections, old stream.

    A machine that stands still for two seconds is too late for the quick way: then everything has five times as long.
    """
    try:
        await _renew_under_a_stream(tmp_path / "quick", timedelta(seconds=4))
    except* (NodeCertificateExpiredError, grpc.aio.AioRpcError):
        await _renew_under_a_stream(tmp_path / "slow", timedelta(seconds=20))


async def _renew_under_a_stream(directory: Path, lifetime: timedelta) -> None:
    manager = Manager(directory)
    async with small_cluster(manager.authority, certificate_lifetime=lifetime) as cluster:
        await _renew_in(cluster, manager, directory, lifetime)


async def _renew_in(cluster: SmallCluster, manager: Manager, directory: Path, lifetime: timedelta) -> None:
    add_NodeCAServicer_to_server(NodeCAService(CertificateServer(cluster.state, forward=no_leader)), manager.server)
    port = manager.server.add_secure_port("127.0.0.1:0", server_credentials(manager.source))
    manager.target = f"127.0.0.1:{port}"
    await manager.server.start()
    short = manager.authority.credentials(Role.WORKER, lifetime=lifetime)
    source = NodeCertificate.create(directory / "node", short)
    node_id = source.identity.node_id
    await cluster.add_node(node_id, NodeRole.NODE_ROLE_WORKER)
    serials: set[str] = set()
    try:
        async with channel(manager, source) as chan:
            stub = NodeCAStub(chan)

            async def renew(csr_pem: bytes) -> RenewCertificateResponse:
                return await stub.RenewCertificate(
                    RenewCertificateRequest(csr_pem=csr_pem), timeout=lifetime.total_seconds()
                )

            stream = chan.stream_stream(ECHO)()
            async with asyncio.TaskGroup() as group:
                running = group.create_task(Renewer(source, renew, chance=lambda: 0.0).run())
                while len(serials) < 2 or datetime.now(UTC) <= short.identity.not_after:
                    await stream.write(b"beat")
                    assert await stream.read() == b"beat " + node_id.encode()
                    await asyncio.sleep(0.02)
                    serials |= {cluster.get_node(node_id).certificate_serial} - {""}
                running.cancel()
            code, _ = await refusal(stub.IssueNodeCertificate(IssueNodeCertificateRequest()))
            assert code is grpc.StatusCode.PERMISSION_DENIED
            await cluster.remove_node(node_id)
            code, message = await refusal(stub.RenewCertificate(RenewCertificateRequest(csr_pem=b"")))
            assert (code, message) == (
                grpc.StatusCode.PERMISSION_DENIED,
                f"node {node_id} was removed from the cluster",
            )
    finally:
        await manager.server.stop(None)


async def test_the_unix_socket_is_the_managers_own(tmp_path: Path) -> None:
    own: Identity = Authority().credentials().identity
    server = grpc.aio.server(interceptors=[LocalInterceptor(lambda: own)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("swarm.v1.Control", CONTROL),))
    server.add_insecure_port(f"unix:{tmp_path}/manager.sock")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/manager.sock") as chan:
            call: Any = chan.unary_unary(MANAGERS_ONLY)
            unlisted: Any = chan.unary_unary(UNLISTED)
            assert await call(b"") == own.node_id.encode()
            assert (await refusal(unlisted(b"")))[0] is grpc.StatusCode.PERMISSION_DENIED
    finally:
        await server.stop(None)


def test_there_is_no_caller_outside_a_call() -> None:
    with pytest.raises(LookupError):
        caller()


async def test_a_process_that_answers_nothing_while_its_kernel_does_is_left() -> None:
    """Before a new leader gives up the nodes that stay with the old one. All times a tenth of what they are."""
    over = asyncio.Event()

    async def stand_still(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            bytes.fromhex("000000040000000000")
        )  # its settings, all that a client must have heard (RFC 9113, 6.5)
        await over.wait()
        writer.close()

    options = [
        (name, value // 10 if isinstance(value, int) and ("keepalive" in name or "ping_timeout" in name) else value)
        for name, value in channel_options()
    ]
    server = await asyncio.start_server(stand_still, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream("/swarm.v1.Dispatcher/Session")()
        await call.write(b"")
        try:
            async with asyncio.timeout(NEW_LEADER_S):
                with pytest.raises(grpc.aio.AioRpcError, match="ping timeout"):
                    await call.read()
        finally:
            call.cancel()
            over.set()
