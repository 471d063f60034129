"""A new cluster of one: what is refused, what is made, and an old cluster's state forced into a new one (A1.01, A1.14)."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import timedelta

import msgspec

from pki.authority import RootCA
from pki.certificates import CERT_EXPIRY_DEFAULT, Role, check_cert_expiry, root_digest
from pki.errors import PKIError
from pki.identifiers import new_id
from pki.node_certificate import NodeCertificate, issue_credentials, utc_now
from pki.tokens import JoinTokens
from proto import objects_pb2 as objects
from proto.ca_pb2 import ManagerAddress
from proto.node_pb2 import Bootstrap, LocalState
from proto.specs_pb2 import NodeRole
from worker.membership import local_state
from worker.membership.cluster_member import InitRequest, InvalidRequestError
from worker.membership.host import Host
from worker.membership.own_addresses import OwnAddresses, grpc_address
from worker.membership.state_folder import CERTIFICATES


class Founded(msgspec.Struct, frozen=True):
    """The first node of a new cluster, on disk already, and what its manager commits first."""

    state: LocalState
    certificate: NodeCertificate
    bootstrap: Bootstrap


def check_init(request: InitRequest) -> None:
    """Refuse what cannot be served, before anything is written (A1.01, A1.05, A1.06, A1.11). Raises: InvalidRequestError."""
    if request.spec.name not in ("", "default"):
        raise InvalidRequestError('swarm spec must be named "default"')
    if request.data_path_port and not 1024 <= request.data_path_port <= 49151:
        raise InvalidRequestError(
            f"invalid data path port number {request.data_path_port}, must be in the range 1024 - 49151"
        )
    _check_pools(request.default_addr_pool, request.subnet_size)
    if request.auto_lock_managers:
        raise InvalidRequestError("autolock is not served yet: init without --autolock")
    if request.spec.ca_config.external_cas:
        raise InvalidRequestError("external certificate authorities are not served yet")
    if expiry_ns := request.spec.ca_config.node_cert_expiry_ns:
        try:
            check_cert_expiry(timedelta(microseconds=expiry_ns // 1000))
        except (ValueError, PKIError) as error:
            raise InvalidRequestError(str(error)) from error


SUBNET_SIZE, SUBNET_SIZE_MIN, SUBNET_SIZE_MAX = 24, 16, 29
"""Prefix lengths of subnets: where none is said (features A1.06); of the routing mesh's at most; with room for some tasks."""


def _check_pools(pools: Sequence[str], subnet_size: int) -> None:
    networks = []
    for text in pools:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise InvalidRequestError(f"invalid CIDR address: {text}: {error}") from error
    for network in networks:
        if network.version != 4:
            raise InvalidRequestError(f"address pool {network}: want IPv4, as subnets of IPv6 need no pool")
        if (subnet_size or SUBNET_SIZE) < network.prefixlen:
            raise InvalidRequestError(
                f"subnet size {subnet_size or SUBNET_SIZE} is larger than the address pool {network}"
            )
    if subnet_size and not SUBNET_SIZE_MIN <= subnet_size <= SUBNET_SIZE_MAX:
        raise InvalidRequestError(f"subnet size {subnet_size}: want {SUBNET_SIZE_MIN} to {SUBNET_SIZE_MAX}")
    for index, network in enumerate(networks):
        for other in networks[index + 1 :]:
            if network.version == other.version and network.overlaps(other):
                raise InvalidRequestError(f"address pools {network} and {other} overlap")


def found_cluster(host: Host, request: InitRequest, addresses: OwnAddresses) -> Founded:
    """Keys, certificates and the first objects of a new cluster. Blocks: run in a thread.

    ``local_state.end_init`` is the caller's, once the manager has committed the objects.
    """
    local_state.begin_init(host.state_dir)
    now = utc_now()
    root = RootCA.create(now)
    cluster_id, node_id = new_id(), new_id()
    expiry = timedelta(microseconds=request.spec.ca_config.node_cert_expiry_ns // 1000) or CERT_EXPIRY_DEFAULT
    credentials = issue_credentials(
        root, node_id=node_id, role=Role.MANAGER, cluster_id=cluster_id, lifetime=expiry, now=now
    )
    certificate = NodeCertificate.create(host.state_dir / CERTIFICATES, credentials)
    grpc_addr = grpc_address(addresses.advertise)
    state = LocalState(
        node_id=node_id,
        cluster_id=cluster_id,
        availability=request.availability,
        managers=[ManagerAddress(node_id=node_id, grpc_addr=grpc_addr, raft_addr=addresses.advertise)],
        role=NodeRole.NODE_ROLE_MANAGER,
    )
    addresses.write_to(state)
    node = objects.Node(
        id=node_id,
        role=NodeRole.NODE_ROLE_MANAGER,
        raft_addr=addresses.advertise,
        grpc_addr=grpc_addr,
        certificate_serial=f"{credentials.identity.serial:x}",
        description=host.describe(),
    )
    node.spec.role = NodeRole.NODE_ROLE_MANAGER
    node.spec.availability = request.availability
    local_state.save(host.state_dir, state)
    bootstrap = Bootstrap(cluster=_first_cluster(cluster_id, request, root), node=node)
    return Founded(state, certificate, bootstrap)


def _first_cluster(cluster_id: str, request: InitRequest, root: RootCA) -> objects.Cluster:
    tokens = JoinTokens.new(root_digest(root.certificate_pem))
    cluster = objects.Cluster(
        id=cluster_id,
        spec=request.spec,
        default_addr_pool=request.default_addr_pool,
        subnet_size=request.subnet_size,
        data_path_port=request.data_path_port,
        root_ca=objects.RootCA(
            ca_cert_pem=root.certificate_pem,
            ca_key_pem=root.key_pem,
            join_tokens=objects.JoinTokens(worker=tokens.worker, manager=tokens.manager),
        ),
    )
    cluster.spec.encryption_config.auto_lock_managers = request.auto_lock_managers
    return cluster


def alone(old: LocalState, addresses: OwnAddresses | None) -> LocalState:
    """``old`` as the only manager of its cluster, at other addresses if any are given (--force-new-cluster, X22)."""
    state = LocalState()
    state.CopyFrom(old)
    if addresses is not None:
        addresses.write_to(state)
    del state.managers[:]
    grpc_addr = grpc_address(state.advertise_addr)
    state.managers.add(node_id=state.node_id, grpc_addr=grpc_addr, raft_addr=state.advertise_addr)
    return state
