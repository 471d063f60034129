"""Networks of the cluster: what may be made, what is chosen for one as it is made, what services may use (features A11).

Subnets and numbers are chosen in the transaction that makes the network, so that what is not to be had is refused there, not
found in a log later. Source: swarmkit ``manager/controlapi/network.go``, moby ``daemon/cluster/networks.go``.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable

from manager.allocator.networks import VNI_MAX, IPNetwork, NoRoomError, choose_subnets, choose_vni, subnets
from manager.control.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnimplementedError,
)
from manager.control.lookup import find
from manager.control.objects import Managed
from manager.control.validation import check_dns_name, check_size
from manager.model.networks import PREDEFINED_NETWORKS, cluster_networks, is_mesh
from manager.model.tasks import has_ended, is_live
from manager.store import NETWORKS, View, Working
from proto.objects_pb2 import Cluster, Network
from proto.specs_pb2 import IPAMConfig, NetworkSpec, ServiceSpec

INGRESS_NETWORK = "ingress"
OVERLAY = "overlay"
VNI_OPTION = "com.docker.network.driver.overlay.vxlanid_list"
MTU_OPTION = "com.docker.network.driver.mtu"
SUBNETS_MAX, AUXILIARY_MAX = 64, 1024
"""Each is compared with all others."""
MESH_PREFIX_MIN = 16
"""A node's number on the mesh has 16 bits (``worker.network.mesh_rules``)."""
MTU_MIN, MTU_MAX = 68, 65535
PREDEFINED_LABEL = "com.docker.swarm.predefined"
_OPTIONS = frozenset({VNI_OPTION, MTU_OPTION, "encrypted"})


def validate_network_spec(spec: NetworkSpec) -> None:
    """Raises: InvalidArgumentError, UnimplementedError, AlreadyExistsError."""
    check_size(spec)
    check_dns_name(spec.name)
    if spec.name in PREDEFINED_NETWORKS:
        raise AlreadyExistsError(f"network with name {spec.name} already exists")
    if PREDEFINED_LABEL in spec.labels:
        raise InvalidArgumentError(
            f"label {PREDEFINED_LABEL} is for internally created predefined networks and cannot be applied by users"
        )
    if spec.ingress and spec.attachable:
        raise InvalidArgumentError("ingress network cannot be attachable")
    if spec.ingress and spec.internal:
        raise InvalidArgumentError("ingress network cannot be internal")
    if spec.config_from:
        raise UnimplementedError("swarm networks from a configuration of each node are not served yet")
    _driver(spec)
    _ipam(spec)
    if spec.ingress:
        _mesh(spec)


def ingress_network(cluster: Cluster, network_id: str) -> Network:
    """The routing mesh's network as a new cluster has it; changes the cluster's last number."""
    network = Network(id=network_id, spec=NetworkSpec(name=INGRESS_NETWORK, ingress=True))
    _choose(network, (), cluster)
    return network


def resolve_networks(view: View, spec: ServiceSpec) -> None:
    """Write the IDs of the cluster's networks into a service's spec, in place of names.

    Raises:
        NotFoundError.
        InvalidArgumentError: a network that services cannot be on, or one named twice.
    """
    seen = set()
    for attachment in cluster_networks(spec):
        network = find(view, NETWORKS, attachment.target)
        if network.spec.ingress:
            raise InvalidArgumentError(
                f'Service cannot be explicitly attached to the ingress network "{network.spec.name}"'
            )
        if network.id in seen:
            raise InvalidArgumentError(f"network {network.spec.name} is named twice")
        seen.add(network.id)
        attachment.target = network.id
    if any(is_mesh(port) for port in spec.endpoint_spec.ports) and not any(each.spec.ingress for each in view.networks):
        raise FailedPreconditionError("service needs ingress network, but no ingress network is present")


def _complete(working: Working, network: Network) -> None:
    if network.spec.ingress and any(each.spec.ingress for each in working.networks):
        other = next(each for each in working.networks if each.spec.ingress)
        raise AlreadyExistsError(f"ingress network ({other.id}) is already present")
    cluster = Cluster()
    cluster.CopyFrom(working.cluster)
    _choose(network, working.networks, cluster)
    working.update(cluster)  # unchanged, too: of two that choose at once one has to choose again


def _choose(network: Network, others: Iterable[Network], cluster: Cluster) -> None:
    """Raises: InvalidArgumentError: what is wanted is taken, or nothing is left."""
    others = list(others)
    spec = network.spec
    used: list[IPNetwork] = [subnet for other in others for subnet in subnets(other)]
    try:
        network.ipam.CopyFrom(
            choose_subnets(spec, used, cluster.default_addr_pool, cluster.subnet_size, _unique_prefix(cluster.id))
        )
        numbers = {other.vni for other in others}
        wanted = spec.driver_configuration.options.get(VNI_OPTION, "")
        if wanted and int(wanted) in numbers:
            raise NoRoomError(f"VXLAN network identifier {wanted} is in use")
        network.vni = int(wanted) if wanted else choose_vni(cluster.last_vni, numbers)
    except NoRoomError as error:
        raise InvalidArgumentError(str(error)) from error
    if not wanted:
        cluster.last_vni = network.vni
    network.data_path_port = cluster.data_path_port
    network.driver_state.name = OVERLAY
    network.driver_state.options.update(spec.driver_configuration.options)
    network.driver_state.options[VNI_OPTION] = str(network.vni)


def _unique_prefix(cluster_id: str) -> str:
    """40 bits that are this cluster's (RFC 4193, section 3.2.2), and subnet numbers from 0."""
    digest = hashlib.sha256(cluster_id.encode()).digest()
    prefix = ipaddress.IPv6Address(b"\xfd" + digest[:5] + bytes(10))
    return f"{prefix}/48"


def _removable(working: Working, network: Network) -> None:
    if not network.spec.ingress:
        # Those of a spec before the present one: they stay, or a rollback brings them back.
        tasks = (task for task in working.tasks if is_live(task) and not has_ended(task))
        for task in tasks:
            if any(each.network_id == network.id for each in task.networks_attachments):
                raise FailedPreconditionError(f"network {network.spec.name} is in use by task {task.id}")
        return
    users = [
        each.spec.name
        for each in working.services
        if not each.pending_delete and any(map(is_mesh, each.endpoint.ports))
    ]
    if users:
        raise FailedPreconditionError(
            f"ingress network cannot be removed because service {', '.join(sorted(users))} depends on it"
        )


def _driver(spec: NetworkSpec) -> None:
    driver = spec.driver_configuration
    if driver.name not in ("", OVERLAY):
        raise UnimplementedError(f"networks of driver {driver.name} are not served in swarm scope yet")
    if "dsr" in driver.options:
        raise UnimplementedError("the option dsr of overlay networks is not served")
    for name in driver.options:
        if name.startswith("com.docker.network.") and name not in _OPTIONS:
            raise InvalidArgumentError(f"invalid driver option {name}: an overlay has no such option")
    if "encrypted" in driver.options and driver.options["encrypted"].lower() not in ("false", "0"):
        raise UnimplementedError("encrypted overlay networks are not served yet")
    _number(driver.options.get(MTU_OPTION, ""), MTU_OPTION, MTU_MIN, MTU_MAX)
    _number(driver.options.get(VNI_OPTION, ""), VNI_OPTION, 1, VNI_MAX)


def _number(text: str, option: str, smallest: int, largest: int) -> None:
    if text and not (text.isascii() and text.isdigit() and len(text) < 9 and smallest <= int(text) <= largest):
        raise InvalidArgumentError(f"invalid {option}: {text[:20]!r}, want a number from {smallest} to {largest}")


def _ipam(spec: NetworkSpec) -> None:
    if spec.ipv4_disabled and not spec.ipv6_enabled:
        raise InvalidArgumentError("IPv4 or IPv6 must be enabled")
    if spec.ipam_options.driver.name not in ("", "default"):
        raise UnimplementedError(f"addresses by the driver {spec.ipam_options.driver.name} are not served yet")
    if spec.ipam_options.driver.options:
        raise InvalidArgumentError("ipam configuration: the default driver has no options")
    if len(spec.ipam_options.configs) > SUBNETS_MAX:
        raise InvalidArgumentError(
            f"ipam configuration: {len(spec.ipam_options.configs)} subnets, at most {SUBNETS_MAX}"
        )
    for config in spec.ipam_options.configs:
        _ipam_config(config, spec)


def _ipam_config(config: IPAMConfig, spec: NetworkSpec) -> None:
    try:
        subnet = ipaddress.ip_network(config.subnet)
    except ValueError:
        raise InvalidArgumentError(f"ipam configuration: invalid subnet {config.subnet}") from None
    if "%" in config.subnet or subnet.is_multicast or subnet.is_loopback or subnet.network_address.is_unspecified:
        raise InvalidArgumentError(f"ipam configuration: {config.subnet} is no subnet of hosts")
    if len(config.auxiliary_addresses) > AUXILIARY_MAX:
        raise InvalidArgumentError(f"ipam configuration: at most {AUXILIARY_MAX} auxiliary addresses")
    if subnet.version == 6 and not spec.ipv6_enabled:
        raise InvalidArgumentError(f"ipam configuration: subnet {subnet} wants a network with IPv6 enabled")
    if subnet.version == 4 and spec.ipv4_disabled:
        raise InvalidArgumentError(f"ipam configuration: subnet {subnet} wants a network with IPv4 enabled")
    if subnet.num_addresses < 4:
        raise InvalidArgumentError(f"ipam configuration: subnet {subnet} is too small")
    if config.range:
        try:
            inside = ipaddress.ip_network(config.range)
        except ValueError:
            raise InvalidArgumentError(f"ipam configuration: invalid range {config.range}") from None
        if inside.version != subnet.version or inside[0] not in subnet or inside[-1] not in subnet:
            raise InvalidArgumentError(f"ipam configuration: range {inside} is not in the subnet {subnet}")
    addresses = {
        "gateway": config.gateway,
        **{f"auxiliary address {k}": v for k, v in config.auxiliary_addresses.items()},
    }
    for what, text in addresses.items():
        if not text and what == "gateway":
            continue
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise InvalidArgumentError(f"ipam configuration: invalid {what} {text}") from None
        if "%" in text or address not in subnet:
            raise InvalidArgumentError(f"ipam configuration: {what} {address} does not belong to the subnet {subnet}")


def _mesh(spec: NetworkSpec) -> None:
    """What every node can make of it: one IPv4 subnet, an address a node."""
    subnets = [ipaddress.ip_network(config.subnet) for config in spec.ipam_options.configs]
    if spec.ipv4_disabled or spec.ipv6_enabled or len(subnets) > 1:
        raise InvalidArgumentError("ingress network wants IPv4 and one subnet")
    if any(subnet.prefixlen < MESH_PREFIX_MIN for subnet in subnets):
        raise InvalidArgumentError(f"ipam configuration: ingress network wants a subnet of at most /{MESH_PREFIX_MIN}")


def _unchangeable(changed: Network, wanted: Network) -> None:
    raise UnimplementedError("networks cannot be changed")


MANAGED_NETWORKS = Managed[Network](
    NETWORKS,
    validate=lambda network: validate_network_spec(network.spec),
    change=_unchangeable,
    complete=_complete,
    removable=_removable,
)
