"""Real members for tests: certificates, a listener on the raft thread's loop, a state machine that remembers."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import shutil
import ssl
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from manager.consensus.files import Files, OSFiles
from manager.consensus.port import ConsensusError, Entry, Member, NodeID
from manager.consensus.raft import RaftConsensus
from manager.consensus.sealed import KeyRing
from manager.consensus.settings import RaftConfig, SnapshotPolicy, Timing
from manager.consensus.transport import RAFT_ALPN
from tests.support_addresses import free_port as free_port
from tests.waiting import until

T = TypeVar("T")
KEY = b"k" * 32
FAST = Timing(
    heartbeat_period_s=0.05,
    election_timeout_s_min=0.3,
    election_timeout_s_max=0.6,
    check_quorum_s=0.5,
)
FOUNDER = Timing(heartbeat_period_s=0.05, election_timeout_s_min=0.3, election_timeout_s_max=0.6, check_quorum_s=4.0)
"""Alone it leads soon. As a leader it is in no hurry to give up: a busy machine stands still for a second or two."""
OTHERS = Timing(heartbeat_period_s=0.05, election_timeout_s_min=3.0, election_timeout_s_max=5.0, check_quorum_s=4.0)
"""Nor are these to take a leader for dead; the end of its connection tells them sooner when it is."""


class Register:
    """A state machine: the list of all entries, or of the last ``keep``."""

    def __init__(self, keep: int | None = None) -> None:
        self.entries: deque[tuple[int, bytes]] = deque(maxlen=keep)
        self.restored: list[int] = []
        self.loaded_by: set[int] = set()  # threads
        self.restored_by: set[int] = set()

    def apply(self, entries: Sequence[Entry]) -> Sequence[object]:
        results: list[object] = []
        for entry in entries:
            if entry.data == b"break":
                raise RuntimeError("told to break")
            self.entries.append((entry.index, entry.data))
            results.append(ValueError("refused") if entry.data == b"refuse" else len(self.entries))
        return results

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        view = list(self.entries)
        return lambda: iter([msgspec.msgpack.encode(view[start : start + 1000]) for start in range(0, len(view), 1000)])

    def load(self, chunks: Iterable[bytes], index: int) -> Callable[[], None]:
        loaded: list[tuple[int, bytes]] = []
        for chunk in chunks:
            loaded += msgspec.msgpack.decode(chunk, type=list[tuple[int, bytes]])
        self.loaded_by.add(threading.get_ident())

        def install() -> None:
            self.entries.clear()
            self.entries += loaded
            self.restored.append(index)
            self.restored_by.add(threading.get_ident())

        return install

    @property
    def data(self) -> list[bytes]:
        return [data for _, data in self.entries]


class Authority:
    """A cluster root and the certificates it signed, as PEM files in ``folder``."""

    def __init__(self, folder: Path, *, issues: bool = True) -> None:
        self.folder = folder
        if not issues:
            return
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test root")])
        self._root = self._sign(name, name, self._key.public_key(), ca=True)
        (folder / "root.pem").write_bytes(self._root.public_bytes(serialization.Encoding.PEM))

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Of another process: trusts and uses what is in ``folder``, issues nothing."""
        return cls(folder, issues=False)

    def issue(self, node_id: str, role: str = "swarm-manager") -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, node_id),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            ]
        )
        certificate = self._sign(subject, self._root.subject, key.public_key(), ca=False, node_id=node_id)
        path = self.folder / f"{node_id}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def _sign(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, ca: bool, node_id: str = ""
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False).add_extension(
                x509.SubjectAlternativeName([x509.DNSName(node_id), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
        return builder.sign(self._key, hashes.SHA256())

    def client(self, pem: Path) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return self._finish(context, pem)

    def server(self, pem: Path) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._finish(context, pem)

    def _finish(self, context: ssl.SSLContext, pem: Path) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.folder / "root.pem")
        context.load_cert_chain(pem)
        context.set_alpn_protocols([RAFT_ALPN])
        return context


class NotAManagerError(ConsensusError):
    pass


def peer_identity(connection: ssl.SSLObject) -> NodeID:
    certificate = connection.getpeercert(binary_form=True)
    if certificate is None:
        raise NotAManagerError("no certificate")
    subject = x509.load_der_x509_certificate(certificate).subject
    unit = subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)[0].value
    if unit != "swarm-manager":
        raise NotAManagerError(f"{unit!r} is no manager")
    return NodeID(str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value))


@dataclass
class Node:
    """A member, its listener and its state machine."""

    consensus: RaftConsensus
    machine: Register
    server: asyncio.Server | None = None
    failures: list[BaseException] = field(default_factory=list)

    @property
    def node_id(self) -> NodeID:
        return self.consensus.node_id


class Cluster:
    """Members on ports of ``host``; ``close`` stops them all. ``timing`` is that of "a" and of the others, if not given."""

    def __init__(
        self,
        folder: Path,
        timing: Timing | None = None,
        *,
        authority: Authority | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.folder, self.timing, self.host = folder, timing, host
        self.authority = authority or Authority(folder)
        self.keep: int | None = None
        self.refuses: Callable[[NodeID], bool] = lambda _node_id: False
        self.claims: dict[str, bytes] = {}
        self.hellos: Counter[str] = Counter()
        self.why_copy: Callable[[NodeID, bytes], str] = lambda _node_id, _claim: ""
        self.nodes: dict[str, Node] = {}
        self.ports: dict[str, int] = {}
        self.policy: dict[str, SnapshotPolicy] = {}

    async def start(
        self,
        name: str,
        *,
        join: bool = False,
        force_new_cluster: bool = False,
        files: Files | None = None,
        copy_of: str = "",
    ) -> Node:
        """Start (again) the member ``name``, or one that has a copy of another's files."""
        node_id = NodeID(copy_of or name)
        pem = self.folder / f"{node_id}.pem"
        if not pem.exists():
            self.authority.issue(node_id)
        if copy_of:
            shutil.copytree(self.folder / f"state-{copy_of}", self.folder / f"state-{name}")
        port = self.ports.get(name) or free_port(self.host)
        self.ports[name] = port
        config = RaftConfig(
            node_id=node_id,
            address=f"{self.host}:{port}",
            folder=self.folder / f"state-{name}",
            keys=KeyRing(KEY),
            client_ssl=lambda: self.authority.client(pem),
            peer_identity=self._identity,
            claim=lambda: self._claim(name),
            why_copy=lambda node_id, claim: self.why_copy(node_id, claim),
            join=join,
            force_new_cluster=force_new_cluster,
            timing=self.timing or (FOUNDER if name == "a" else OTHERS),
            policy=self.policy.setdefault(name, SnapshotPolicy()),
            files=files or OSFiles(),
        )
        node = Node(RaftConsensus(config), Register(self.keep))
        node.consensus.on_failure(node.failures.append)
        await node.consensus.start(node.machine)
        await self._on_raft_loop(node, self._listen(node, self.authority.server(pem), port))
        self.nodes[name] = node
        return node

    def _claim(self, name: str) -> bytes:
        self.hellos[name] += 1
        return self.claims.get(name, b"")

    def _identity(self, connection: ssl.SSLObject) -> NodeID:
        node_id = peer_identity(connection)
        if self.refuses(node_id):
            raise NotAManagerError(f"{node_id} was removed")
        return node_id

    async def form(self, count: int) -> list[Node]:
        """A founded group of ``count`` voters, named a, b, c, ..."""
        first = await self.start("a")
        await until(lambda: first.consensus.leader.is_leader)
        for name in "bcdefg"[: count - 1]:
            await self.enter(name, leader=first)
        return [self.nodes[name] for name in "abcdefg"[:count]]

    async def enter(self, name: str, *, leader: Node) -> Node:
        """A member that begins with nothing becomes a voter, by the steps of a manager that joins."""
        node = await self.start(name, join=True)
        await node.consensus.admit(await leader.consensus.admission())
        await leader.consensus.add_member(Member(node.node_id, f"{self.host}:{self.ports[name]}"))
        return node

    async def leader(self, *, deadline_s: float = 30.0) -> Node:
        await until(lambda: self._leaders() != [], deadline_s=deadline_s)
        return self._leaders()[-1]

    def _leaders(self) -> list[Node]:
        leading = [node for node in self.nodes.values() if node.consensus.leader.is_leader]
        return sorted(leading, key=lambda node: node.consensus.leader.term)

    async def stop(self, name: str, *, transfer: bool = True) -> None:
        node = self.nodes.pop(name)
        if not node.consensus.loop.is_closed():
            await self._on_raft_loop(node, self._unlisten(node))
        await node.consensus.stop(transfer=transfer)

    async def close(self) -> None:
        for name in list(self.nodes):
            await self.stop(name, transfer=False)

    async def _listen(self, node: Node, context: ssl.SSLContext, port: int) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                peer = self._identity(writer.get_extra_info("ssl_object"))
            except ConsensusError:
                writer.transport.abort()
                return
            await node.consensus.accept(reader, writer, peer)

        node.server = await asyncio.start_server(serve, self.host, port, ssl=context)

    @staticmethod
    async def _unlisten(node: Node) -> None:
        if node.server is not None:
            node.server.close()

    @staticmethod
    async def _on_raft_loop(node: Node, work: Coroutine[object, object, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, node.consensus.loop))
