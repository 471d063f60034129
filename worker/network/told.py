"""What the managers say of networks, as messages, put into what the data plane and the resolver take. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from base.times import rfc3339
from proto.dispatcher_pb2 import NetworkPeer, NetworkService
from proto.objects_pb2 import Network as ClusterNetwork
from proto.specs_pb2 import PortConfig, PortProtocol
from runtime.kernel.network import IPAddress
from runtime.network_types import IPAM, IPAMConfig
from runtime.networks.driver import Network, Pool
from runtime.resolver.port import Holder, NamedPort
from worker.network.types import Backend, BalancedService, PeerEndpoint

SERVICES = "services"
"""The source of what the resolver is told here."""


def engine_network(network: ClusterNetwork) -> Network:
    """As the engine keeps it, under the cluster's ID and settled."""
    spec, configs = network.spec, network.ipam.configs
    return Network(
        ID=network.id,
        Name=spec.name,
        Driver=network.driver_state.name,
        Created=rfc3339(network.created_at.ToNanoseconds()),
        Scope="swarm",
        Options=dict(network.driver_state.options),
        Labels=dict(spec.labels),
        EnableIPv4=not spec.ipv4_disabled,
        EnableIPv6=spec.ipv6_enabled,
        Internal=spec.internal,
        Attachable=spec.attachable,
        Ingress=spec.ingress,
        IPAM=IPAM(
            Driver=network.ipam.driver.name,
            Config=[
                IPAMConfig(
                    Subnet=config.subnet,
                    IPRange=config.range,
                    Gateway=config.gateway,
                    AuxiliaryAddresses=dict(config.auxiliary_addresses),
                )
                for config in configs
            ],
        ),
        Pools=[Pool(Subnet=config.subnet, Gateway=config.gateway) for config in configs],
        Settled=True,
    )


def addresses(texts: Iterable[str]) -> tuple[IPAddress, ...]:
    """Without the prefix lengths, IPv4 first. Raises ValueError."""
    found = [ipaddress.ip_interface(text).ip for text in texts]
    return tuple(sorted(found, key=lambda address: address.version))


def peer_endpoint(peer: NetworkPeer) -> PeerEndpoint | None:
    """Where the data plane finds a task; None when what was said is no address."""
    try:
        found = addresses(peer.addresses)
        return PeerEndpoint(found, ipaddress.ip_address(peer.node_addr)) if found else None
    except ValueError:
        return None


def balanced(service: NetworkService, peers: Iterable[NetworkPeer]) -> Iterator[BalancedService]:
    """A service's virtual IPs, with its tasks: those that may be given no connections keep what they have (weight 0)."""
    found = [(address, int(peer.ready)) for peer in peers for address in _parsed(peer.addresses)]
    found.sort(key=lambda each: int(each[0]))
    for vip in _parsed(service.virtual_ips):
        backends = tuple(Backend(address, weight) for address, weight in found if address.version == vip.version)
        yield BalancedService(vip, backends)


def service_holder(service: NetworkService) -> Holder | None:
    """Who answers to a service's names; None where its tasks do themselves."""
    vips = _parsed(service.virtual_ips)
    return _holder(service.service_id, service_names(service), vips, service.ports) if vips else None


def task_holder(peer: NetworkPeer, service: NetworkService | None) -> Holder | None:
    """Who answers to a task's names, and to the service's in DNS round robin; None while it may not be called."""
    found = _parsed(peer.addresses)
    if not peer.ready or not found:
        return None
    names = [peer.name, peer.name.rpartition(".")[0]]
    ports: Iterable[PortConfig] = ()
    if service is not None:
        names += [f"tasks.{name}" for name in service_names(service)]
        if not service.virtual_ips:
            names += service_names(service)
            ports = service.ports
    return _holder(peer.task_id, names, found, ports)


def service_names(service: NetworkService) -> list[str]:
    """Its own and its aliases."""
    return [service.name, *service.aliases]


def _holder(holder_id: str, names: Iterable[str], found: Iterable[IPAddress], ports: Iterable[PortConfig]) -> Holder:
    return Holder(
        source=SERVICES,
        id=holder_id,
        names=tuple(dict.fromkeys(name for name in names if name)),
        addresses=tuple(map(str, found)),
        ports=tuple(
            NamedPort(port.name, protocol_word(port.protocol), port.target_port) for port in ports if port.name
        ),
    )


def protocol_word(protocol: PortProtocol.ValueType) -> str:
    """tcp, udp or sctp."""
    return PortProtocol.Name(protocol).removeprefix("PORT_PROTOCOL_").lower()


def _parsed(texts: Iterable[str]) -> tuple[IPAddress, ...]:
    """What of it are addresses."""
    try:
        return addresses(texts)
    except ValueError:
        return ()
