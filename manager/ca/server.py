"""The certificate server: who gets a certificate, and what it says (features A1.15, A1.16, A2.01, A2.02, A2.09).

Two decisions, pure, and the object that carries them out over what the replicated store keeps (``CAState``):

- a node that joins gets the role of the token it shows, and an ID that it does not choose;
- a node that renews keeps its ID and gets the role that its object has, so promotion and demotion reach the
  certificate with the next renewal; a node without an object was removed and gets nothing.

Only the leader decides. Elsewhere the same question is passed on by ``forward``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import grpc
import structlog

from pki.authority import IssuedCertificate, RootCA
from pki.certificates import Identity, Role
from pki.errors import InvalidCertificateError
from pki.identifiers import new_id
from pki.node_certificate import utc_now
from pki.tokens import JoinTokens
from proto.ca_pb2 import (
    GetRootCACertificateResponse,
    IssueNodeCertificateRequest,
    IssueNodeCertificateResponse,
    ManagerAddress,
    RenewCertificateRequest,
    RenewCertificateResponse,
)
from proto.specs_pb2 import NodeAvailability, NodeRole

log = structlog.get_logger(__name__)

TOKEN_LENGTH_MAX = 256

NODE_ROLES: dict[Role, NodeRole.ValueType] = {
    Role.MANAGER: NodeRole.NODE_ROLE_MANAGER,
    Role.WORKER: NodeRole.NODE_ROLE_WORKER,
}


class CertificateRefusedError(Exception):
    """The certificate server says no, or not now.

    Attributes:
        code: INVALID_ARGUMENT (token, request), PERMISSION_DENIED (removed node) or UNAVAILABLE (try again).
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What the cluster's state says of a node that is part of it.

    Attributes:
        node_id: its ID.
        role: the role that its next certificate is to have: manager as soon as it is to become one (it needs the
            certificate to enter the Raft group), worker only when it has left that group.
    """

    node_id: str
    role: Role


@dataclass(frozen=True, slots=True)
class NewNode:
    """A node that is about to join: its object is made from this.

    Attributes:
        node_id: a fresh ID.
        role: by its token.
        availability: as it asked for; active if it did not.
        serial: serial number of its first certificate.
    """

    node_id: str
    role: Role
    availability: NodeAvailability.ValueType
    serial: int


class CAState(Protocol):
    """The cluster's state as far as the certificate server needs it. Called on the manager's main loop."""

    @property
    def is_leader(self) -> bool:
        """Whether decisions may be taken here."""

    @property
    def cluster_id(self) -> str: ...

    @property
    def root_ca(self) -> RootCA:
        """What to sign with."""

    @property
    def trust_root_pem(self) -> bytes:
        """The roots in force, as handed to nodes: what the digest in the tokens covers while none is being rotated.

        Any thread: strangers ask for it.
        """

    @property
    def join_tokens(self) -> JoinTokens: ...

    @property
    def certificate_lifetime(self) -> timedelta:
        """``Spec.CAConfig.NodeCertExpiry``."""

    @property
    def managers(self) -> Sequence[ManagerAddress]: ...

    def find_node(self, node_id: str) -> NodeRecord | None:
        """None when the node is unknown or was removed."""

    def is_removed(self, node_id: str, serial: int) -> bool:
        """Whether the certificate is one of a removed node (features A2.09)."""

    async def register_node(self, node: NewNode) -> None:
        """Commit the object of a node that joins; returns once it is in the log.

        Raises:
            CertificateRefusedError: UNAVAILABLE when it could not be committed (no quorum, leader lost).
        """

    async def record_renewal(self, identity: Identity) -> None:
        """Commit that a node holds a new certificate.

        Raises:
            CertificateRefusedError: as ``register_node``; PERMISSION_DENIED when the node went meanwhile.
        """


Forward = Callable[[IssueNodeCertificateRequest], Awaitable[IssueNodeCertificateResponse]]
"""Ask the leader (``NodeCA.IssueNodeCertificate``). Raises CertificateRefusedError with the leader's code and text."""

Remember = Callable[[IssuedCertificate, RootCA], None]
"""(what was issued, by which root)."""


def decide_join(token: str, tokens: JoinTokens) -> Role:
    """The role of a node that joins, which its token decides and nothing else.

    Raises:
        CertificateRefusedError: INVALID_ARGUMENT, in Swarm's words; a rotated token is like any wrong one.
    """
    role = tokens.role_of(token) if len(token) <= TOKEN_LENGTH_MAX else None
    if role is None:
        raise CertificateRefusedError(
            grpc.StatusCode.INVALID_ARGUMENT, "A valid join token is necessary to join this cluster"
        )
    return role


def decide_renewal(caller: Identity, node: NodeRecord | None, *, cluster_id: str, removed: bool) -> Role:
    """The role of a node that renews its certificate, which its object decides, not the certificate it has.

    Args:
        caller: who asks, verified.
        node: its object, None if there is none.
        cluster_id: the cluster we are.
        removed: whether the certificate is on the list of removed nodes.

    Raises:
        CertificateRefusedError: PERMISSION_DENIED.
    """
    if caller.cluster_id != cluster_id:
        raise CertificateRefusedError(
            grpc.StatusCode.PERMISSION_DENIED, f"node {caller.node_id} belongs to another cluster"
        )
    if removed or node is None:
        raise CertificateRefusedError(
            grpc.StatusCode.PERMISSION_DENIED, f"node {caller.node_id} was removed from the cluster"
        )
    return node.role


class CertificateServer:
    """Carries the decisions out. One for each manager, on its main loop."""

    def __init__(
        self,
        state: CAState,
        *,
        forward: Forward,
        remember: Remember = lambda _issued, _root: None,
        clock: Callable[[], datetime] = utc_now,
        new_node_id: Callable[[], str] = new_id,
    ) -> None:
        """
        Args:
            state: see ``CAState``.
            forward: passes a join on to the leader.
            remember: told of each certificate when it goes out to a node that joined, which will show it here.
            clock: aware time.
            new_node_id: makes IDs.
        """
        self._state, self._forward, self._clock, self._new_node_id = state, forward, clock, new_node_id
        self._remember = remember

    def root_certificate(self) -> GetRootCACertificateResponse:
        """The roots in force; for anybody: a node that joins compares their digest with its token. Any thread."""
        return GetRootCACertificateResponse(root_ca_pem=self._state.trust_root_pem)

    async def issue(
        self, request: IssueNodeCertificateRequest, *, forwarded: bool = False
    ) -> IssueNodeCertificateResponse:
        """Take a node into the cluster.

        The node's object is committed before the answer goes out, so a certificate is never in the world without one.
        An answer that gets lost leaves an object whose node never shows up (``Unknown``); joining again makes another.

        Args:
            request: token and CSR.
            forwarded: by another manager that took us for the leader. It is not passed on a second time: two
                managers that hold each other for the leader would play ping-pong.

        Raises:
            CertificateRefusedError: token or request no good, or not now.
        """
        if not self._state.is_leader:
            if forwarded:
                raise CertificateRefusedError(grpc.StatusCode.UNAVAILABLE, "this manager is not the leader")
            return await self._forward(request)
        state = self._state
        role = decide_join(request.token, state.join_tokens)
        availability = request.availability or NodeAvailability.NODE_AVAILABILITY_ACTIVE
        if availability not in NodeAvailability.values():
            raise CertificateRefusedError(grpc.StatusCode.INVALID_ARGUMENT, f"invalid availability {availability}")
        issued = self._sign(request.csr_pem, self._new_node_id(), role)
        identity = issued.identity
        await state.register_node(
            NewNode(
                node_id=identity.node_id,
                role=role,
                availability=availability,
                serial=identity.serial,
            )
        )
        self._remember(issued, state.root_ca)
        log.info("node.joined", node_id=identity.node_id, role=role.value, serial=f"{identity.serial:x}")
        return IssueNodeCertificateResponse(
            node_id=identity.node_id,
            role=NODE_ROLES[role],
            cluster_id=identity.cluster_id,
            certificate_chain_pem=issued.chain_pem,
            root_ca_pem=state.trust_root_pem,
            managers=state.managers,
        )

    async def renew(self, caller: Identity, request: RenewCertificateRequest) -> RenewCertificateResponse:
        """A new certificate for a node of the cluster, in the role that its object has.

        Raises:
            CertificateRefusedError: removed node, bad request, or not now (not the leader: the node asks another).
        """
        state = self._state
        if not state.is_leader:
            raise CertificateRefusedError(
                grpc.StatusCode.UNAVAILABLE, "this manager is not the leader, ask it for certificates"
            )
        role = decide_renewal(
            caller,
            state.find_node(caller.node_id),
            cluster_id=state.cluster_id,
            removed=state.is_removed(caller.node_id, caller.serial),
        )
        issued = self._sign(request.csr_pem, caller.node_id, role)
        await state.record_renewal(issued.identity)
        log.info("certificate.renewed", node_id=caller.node_id, role=role.value, serial=f"{issued.identity.serial:x}")
        return RenewCertificateResponse(
            role=NODE_ROLES[role], certificate_chain_pem=issued.chain_pem, root_ca_pem=state.trust_root_pem
        )

    def _sign(self, csr_pem: bytes, node_id: str, role: Role) -> IssuedCertificate:
        state = self._state
        try:
            return state.root_ca.issue(
                csr_pem,
                node_id=node_id,
                role=role,
                cluster_id=state.cluster_id,
                lifetime=state.certificate_lifetime,
                now=self._clock(),
            )
        except InvalidCertificateError as error:
            raise CertificateRefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
