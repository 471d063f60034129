"""What a service's spec makes of its endpoint."""

from __future__ import annotations

from proto.objects_pb2 import Endpoint, Service
from proto.specs_pb2 import PUBLISH_MODE_HOST


def endpoint_of(service: Service) -> Endpoint:
    """The endpoint as it follows from the spec, and from what the service was allocated.

    Ports in host mode need no allocation: what is wanted is what there is (or, for 0, what each node picks). Ports of
    the routing mesh are left as they are.
    """
    endpoint = Endpoint()
    endpoint.CopyFrom(service.endpoint)
    endpoint.spec.CopyFrom(service.spec.endpoint_spec)
    mesh = [port for port in service.endpoint.ports if port.publish_mode != PUBLISH_MODE_HOST]
    del endpoint.ports[:]
    endpoint.ports.extend(port for port in service.spec.endpoint_spec.ports if port.publish_mode == PUBLISH_MODE_HOST)
    endpoint.ports.extend(mesh)
    return endpoint
