"""What a service's spec makes of its endpoint."""

from __future__ import annotations

from manager.model.networks import cluster_networks, is_mesh, wants_virtual_ips
from proto.objects_pb2 import Endpoint, Service
from proto.specs_pb2 import PortConfig


def endpoint_of(service: Service) -> Endpoint:
    """The endpoint as it follows from the spec, and from what the service was allocated.

    Ports in host mode need no allocation: what is wanted is what there is (or, for 0, what each node picks). A port of the
    routing mesh whose number was left open keeps the one it was given; with none yet, it is 0 here. Virtual IPs stay with
    the networks that are still wanted.
    """
    spec = service.spec
    wanted = {each.target for each in cluster_networks(spec)} if wants_virtual_ips(spec) else set()
    given: dict[tuple[str, int, int], list[PortConfig]] = {}
    for port in service.endpoint.ports:
        if is_mesh(port) and port.published_port:
            given.setdefault(_what(port), []).append(port)
    endpoint = Endpoint(spec=spec.endpoint_spec)
    for port in spec.endpoint_spec.ports:
        kept = given.get(_what(port)) if is_mesh(port) and not port.published_port else None
        endpoint.ports.append(kept.pop(0) if kept else port)
    endpoint.virtual_ips.extend(each for each in service.endpoint.virtual_ips if each.network_id in wanted)
    return endpoint


def lacks(service: Service) -> str:
    """What the service has not been given yet and its tasks cannot be without, for users; "" when it has everything."""
    if any(is_mesh(port) and not port.published_port for port in service.endpoint.ports):
        return "a port to be published on every node"
    if wants_virtual_ips(service.spec):
        has = {each.network_id for each in service.endpoint.virtual_ips}
        for each in cluster_networks(service.spec):
            if each.target not in has:
                return f"a virtual IP on network {each.target}"
    return ""


def _what(port: PortConfig) -> tuple[str, int, int]:
    return port.name, port.protocol, port.target_port
