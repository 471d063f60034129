"""The certificate server's decisions (A1.15, A1.16, A2.02, A2.09), and what it does when it is not the leader."""

from __future__ import annotations

import grpc
import pytest

from manager.ca.server import CertificateRefusedError, CertificateServer, NodeRecord, decide_join, decide_renewal
from pki.certificates import Role, load_chain, new_csr
from pki.identifiers import is_id
from pki.keys import new_key
from pki.tokens import JoinTokens, replace_secret
from proto.ca_pb2 import IssueNodeCertificateRequest, IssueNodeCertificateResponse, RenewCertificateRequest
from proto.specs_pb2 import NodeAvailability, NodeRole
from tests.unit.ca.support import SmallCluster, no_leader
from tests.unit.pki.support import Authority


def issue_request(token: str) -> IssueNodeCertificateRequest:
    return IssueNodeCertificateRequest(csr_pem=new_csr(new_key()), token=token)


def test_only_a_token_in_force_lets_in() -> None:
    tokens = JoinTokens.new("0" * 64)
    rotated = JoinTokens(worker=replace_secret(tokens.worker), manager=tokens.manager)
    assert decide_join(tokens.worker, tokens) is Role.WORKER
    assert decide_join(tokens.manager, rotated) is Role.MANAGER
    for token in ("", "x" * 10_000, tokens.worker):
        with pytest.raises(CertificateRefusedError, match=r"^A valid join token is necessary to join this cluster$"):
            decide_join(token, rotated)


def test_a_renewal_takes_the_role_of_the_nodes_object() -> None:
    authority = Authority()
    worker = authority.credentials(Role.WORKER).identity
    promoted = NodeRecord(worker.node_id, Role.MANAGER)
    assert decide_renewal(worker, promoted, cluster_id=authority.cluster_id, removed=False) is Role.MANAGER
    manager = authority.credentials(Role.MANAGER).identity
    demoted = NodeRecord(manager.node_id, Role.WORKER)
    assert decide_renewal(manager, demoted, cluster_id=authority.cluster_id, removed=False) is Role.WORKER


def test_a_removed_or_foreign_node_gets_no_renewal() -> None:
    authority = Authority()
    caller = authority.credentials().identity
    node = NodeRecord(caller.node_id, Role.MANAGER)
    for record, removed, cluster_id in (
        (None, False, authority.cluster_id),
        (node, True, authority.cluster_id),
        (node, False, "x"),
    ):
        with pytest.raises(CertificateRefusedError) as refusal:
            decide_renewal(caller, record, cluster_id=cluster_id, removed=removed)
        assert refusal.value.code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_joining_node_gets_an_id_it_did_not_choose_and_an_object(cluster: SmallCluster) -> None:
    server = CertificateServer(cluster.state, forward=no_leader)
    answer = await server.issue(issue_request(cluster.join_tokens.manager))
    identity = cluster.authority.root.trust_root().verify_pem(answer.certificate_chain_pem, cluster.authority.now)
    assert is_id(answer.node_id)
    assert (identity.node_id, identity.role, answer.role) == (answer.node_id, Role.MANAGER, NodeRole.NODE_ROLE_MANAGER)
    (node,) = cluster.nodes
    assert (node.id, node.spec.role) == (answer.node_id, NodeRole.NODE_ROLE_MANAGER)
    assert node.certificate_serial == f"{identity.serial:x}"
    assert node.spec.availability == NodeAvailability.NODE_AVAILABILITY_ACTIVE
    assert [manager.node_id for manager in answer.managers] == ["m"]


@pytest.mark.parametrize("csr", [b"", b"garbage", b"\x00" * 20_000])
async def test_a_bad_request_leaves_no_object(cluster: SmallCluster, csr: bytes) -> None:
    server = CertificateServer(cluster.state, forward=no_leader)
    with pytest.raises(CertificateRefusedError) as refusal:
        await server.issue(IssueNodeCertificateRequest(csr_pem=csr, token=cluster.join_tokens.worker))
    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert cluster.nodes == []


async def test_an_availability_that_does_not_exist_is_refused(cluster: SmallCluster) -> None:
    request = issue_request(cluster.join_tokens.worker)
    request.MergeFromString(b"\x18\x63")  # field 3, value 99
    with pytest.raises(CertificateRefusedError, match="invalid availability 99"):
        await CertificateServer(cluster.state, forward=no_leader).issue(request)


async def test_a_follower_passes_a_join_on_once(cluster: SmallCluster) -> None:
    cluster.log.lose_leadership()
    passed_on: list[IssueNodeCertificateRequest] = []

    async def forward(request: IssueNodeCertificateRequest) -> IssueNodeCertificateResponse:
        passed_on.append(request)
        return IssueNodeCertificateResponse(node_id="from the leader")

    server = CertificateServer(cluster.state, forward=forward)
    request = issue_request(cluster.join_tokens.worker)
    assert (await server.issue(request)).node_id == "from the leader"
    assert passed_on == [request]
    with pytest.raises(CertificateRefusedError, match="not the leader"):
        await server.issue(request, forwarded=True)
    assert cluster.nodes == []


async def test_a_renewal_keeps_the_id(cluster: SmallCluster) -> None:
    server = CertificateServer(cluster.state, forward=no_leader)
    caller = cluster.authority.credentials(Role.WORKER).identity
    await cluster.add_node(caller.node_id, NodeRole.NODE_ROLE_MANAGER)
    answer = await server.renew(caller, RenewCertificateRequest(csr_pem=new_csr(new_key())))
    identity = cluster.authority.root.trust_root().verify(
        load_chain(answer.certificate_chain_pem), cluster.authority.now
    )
    assert (identity.node_id, identity.role) == (caller.node_id, Role.MANAGER)
    assert cluster.get_node(caller.node_id).certificate_serial == f"{identity.serial:x}"
    await cluster.remove_node(caller.node_id)
    with pytest.raises(CertificateRefusedError, match="was removed"):
        await server.renew(caller, RenewCertificateRequest(csr_pem=new_csr(new_key())))
    cluster.log.lose_leadership()
    with pytest.raises(CertificateRefusedError, match="not the leader"):
        await server.renew(caller, RenewCertificateRequest(csr_pem=new_csr(new_key())))
