"""A cluster of one manager, and its 2377 on the loopback, for tests of the certificate server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc

from manager.ca.server import CertificateRefusedError, CertificateServer
from manager.ca.service import JoinService
from manager.ca.state import StoreCAState
from manager.consensus.inprocess import InProcessConsensus
from manager.listener import Limits, Listener
from pki.certificates import Role
from pki.node_certificate import NodeCertificate
from pki.tokens import JoinTokens
from proto.ca_pb2 import IssueNodeCertificateRequest, IssueNodeCertificateResponse, ManagerAddress
from proto.control_pb2 import RemoveNodeRequest, UpdateClusterRequest
from proto.objects_pb2 import Node
from proto.specs_pb2 import NodeRole
from tests.unit.control.managed import Managed, make_cluster, running_manager
from tests.unit.pki.support import Authority

LIMITS = Limits()
MANAGER = ManagerAddress(node_id="m", grpc_addr="127.0.0.1:7946", raft_addr="127.0.0.1:2377")


class Log(InProcessConsensus):
    """Commits nothing while ``quorum`` is cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.quorum = asyncio.Event()
        self.quorum.set()

    async def propose(self, data: bytes, *, timeout_s: float = 20.0, command_id: bytes | None = None) -> object:
        await self.quorum.wait()
        return await super().propose(data, timeout_s=timeout_s, command_id=command_id)


@dataclass(frozen=True)
class SmallCluster:
    """A manager's store and control service, what its certificate server reads of them, and who signs there."""

    authority: Authority
    log: Log
    managed: Managed
    state: StoreCAState

    @property
    def join_tokens(self) -> JoinTokens:
        return self.state.join_tokens

    @property
    def nodes(self) -> Sequence[Node]:
        return list(self.managed.store.view.nodes)

    def get_node(self, node_id: str) -> Node:
        return self.managed.store.view.nodes.find(node_id)

    async def add_node(self, node_id: str, role: NodeRole.ValueType) -> None:
        """A node that has come and was told to be ``role``."""
        await self.managed.add_node(node_id, role=role)

    async def remove_node(self, node_id: str) -> None:
        await self.managed.call("RemoveNode", RemoveNodeRequest(ref=node_id, force=True))

    async def rotate_worker_token(self) -> None:
        cluster = self.managed.store.view.cluster
        request = UpdateClusterRequest(version=cluster.version.index, spec=cluster.spec, rotate_worker_token=True)
        await self.managed.call("UpdateCluster", request)


@asynccontextmanager
async def small_cluster(
    authority: Authority, *, certificate_lifetime: timedelta = timedelta(hours=1)
) -> AsyncIterator[SmallCluster]:
    """A cluster of one manager that leads, which ``authority`` signs for and no node has joined."""
    cluster = make_cluster()
    cluster.id = authority.cluster_id
    tokens = JoinTokens.new(authority.root.trust_root().digest)
    kept = cluster.root_ca
    kept.ca_cert_pem, kept.ca_key_pem = authority.root.certificate_pem, authority.root.key_pem
    kept.join_tokens.worker, kept.join_tokens.manager = tokens.worker, tokens.manager
    cluster.spec.ca_config.node_cert_expiry_ns = int(certificate_lifetime.total_seconds()) * 10**9
    log = Log()
    async with running_manager(cluster=cluster, consensus=log) as managed:
        state = StoreCAState(
            managed.store, log, authority.cluster_id, managers=lambda: [MANAGER], trust_root_pem=lambda: b""
        )
        yield SmallCluster(authority, log, managed, state)


async def no_leader(request: IssueNodeCertificateRequest) -> IssueNodeCertificateResponse:
    raise CertificateRefusedError(grpc.StatusCode.UNAVAILABLE, "the swarm does not have a leader")


async def no_raft(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node_id: str) -> None:
    raise AssertionError(f"{node_id} reached the Raft transport")


@asynccontextmanager
async def manager(
    directory: Path,
    cluster: SmallCluster,
    *,
    forward: Callable[[IssueNodeCertificateRequest], Awaitable[IssueNodeCertificateResponse]] = no_leader,
    raft_accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]] = no_raft,
    is_member: Callable[[str], bool] = lambda _network: False,
    limits: Limits = LIMITS,
    role: Role = Role.MANAGER,
    authority: Authority | None = None,
) -> AsyncIterator[tuple[Listener, NodeCertificate, CertificateServer]]:
    """A listener on a free port of the loopback, over ``cluster``."""
    source = NodeCertificate.create(directory, (authority or cluster.authority).credentials(role))
    server = CertificateServer(cluster.state, forward=forward)
    listener = Listener(
        source,
        join=JoinService(server, asyncio.get_running_loop()),
        raft_accept=raft_accept,
        refuses_manager=cluster.state.refuses_manager,
        is_member=is_member,
        limits=limits,
    )
    await listener.start("127.0.0.1", 0)
    try:
        yield listener, source, server
    finally:
        await listener.close()
