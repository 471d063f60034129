"""A cluster's state in a dictionary, and a manager's 2377 on the loopback, for tests of the certificate server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import grpc

from manager.ca.server import CertificateRefusedError, CertificateServer, NewNode, NodeRecord
from manager.ca.service import JoinService
from manager.listener import Limits, Listener
from pki.authority import RootCA
from pki.certificates import Identity, Role
from pki.node_certificate import NodeCertificate
from pki.tokens import JoinTokens
from proto.ca_pb2 import IssueNodeCertificateRequest, IssueNodeCertificateResponse, ManagerAddress
from tests.unit.pki.support import Authority

LIMITS = Limits()


@dataclass
class MemoryState:
    """``manager.ca.server.CAState`` in memory."""

    authority: Authority
    is_leader: bool = True
    certificate_lifetime: timedelta = timedelta(hours=1)
    nodes: dict[str, NodeRecord] = field(default_factory=dict)
    joined: list[NewNode] = field(default_factory=list)
    renewed: list[Identity] = field(default_factory=list)
    removed: set[str] = field(default_factory=set)
    join_tokens: JoinTokens = field(init=False)
    quorum: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.join_tokens = JoinTokens.new(self.authority.root.trust_root().digest)
        self.quorum.set()

    @property
    def cluster_id(self) -> str:
        return self.authority.cluster_id

    @property
    def root_ca(self) -> RootCA:
        return self.authority.root

    @property
    def trust_root_pem(self) -> bytes:
        return self.authority.root.certificate_pem

    @property
    def managers(self) -> Sequence[ManagerAddress]:
        return [ManagerAddress(node_id="m", grpc_addr="127.0.0.1:7946", raft_addr="127.0.0.1:2377")]

    def find_node(self, node_id: str) -> NodeRecord | None:
        return self.nodes.get(node_id)

    def refuses_manager(self, identity: Identity) -> bool:
        return self.is_removed(identity.node_id, identity.serial)

    def is_removed(self, node_id: str, serial: int) -> bool:
        return node_id in self.removed

    async def register_node(self, node: NewNode) -> None:
        await self.quorum.wait()
        self.joined.append(node)
        self.nodes[node.node_id] = NodeRecord(node.node_id, node.role)

    async def record_renewal(self, identity: Identity) -> None:
        self.renewed.append(identity)


async def no_leader(request: IssueNodeCertificateRequest) -> IssueNodeCertificateResponse:
    raise CertificateRefusedError(grpc.StatusCode.UNAVAILABLE, "the swarm does not have a leader")


async def no_raft(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node_id: str) -> None:
    raise AssertionError(f"{node_id} reached the Raft transport")


@asynccontextmanager
async def manager(
    directory: Path,
    state: MemoryState,
    *,
    forward: Callable[[IssueNodeCertificateRequest], Awaitable[IssueNodeCertificateResponse]] = no_leader,
    raft_accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]] = no_raft,
    is_member: Callable[[str], bool] = lambda _network: False,
    limits: Limits = LIMITS,
    role: Role = Role.MANAGER,
    authority: Authority | None = None,
) -> AsyncIterator[tuple[Listener, NodeCertificate, CertificateServer]]:
    """A listener on a free port of the loopback, over ``state``."""
    source = NodeCertificate.create(directory, (authority or state.authority).credentials(role))
    server = CertificateServer(state, forward=forward)
    listener = Listener(
        source,
        join=JoinService(server, asyncio.get_running_loop()),
        raft_accept=raft_accept,
        refuses_manager=state.refuses_manager,
        is_member=is_member,
        limits=limits,
    )
    await listener.start("127.0.0.1", 0)
    try:
        yield listener, source, server
    finally:
        await listener.close()
