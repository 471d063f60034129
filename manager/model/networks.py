"""Networks: which of them a task is on, and what a service asks of them."""

from __future__ import annotations

from collections.abc import Iterator

from proto.specs_pb2 import ENDPOINT_MODE_DNSRR, PUBLISH_MODE_HOST, NetworkAttachmentConfig, PortConfig, ServiceSpec

PREDEFINED_NETWORKS = frozenset({"bridge", "host", "none"})
"""Every node has its own of that name; nothing of them is decided for it."""


def is_of_the_node(target: str) -> bool:
    """Whether a network's name or ID is that of a predefined one, which is each node's own."""
    return target in PREDEFINED_NETWORKS


def cluster_networks(spec: ServiceSpec) -> Iterator[NetworkAttachmentConfig]:
    """The networks of the cluster that the tasks of a service are on, in the order of the spec."""
    return (each for each in spec.task_template.networks if not is_of_the_node(each.target))


def wants_virtual_ips(spec: ServiceSpec) -> bool:
    """Whether the service has an address of its own on each of its networks, not those of its tasks alone."""
    return spec.endpoint_spec.mode != ENDPOINT_MODE_DNSRR


def is_mesh(port: PortConfig) -> bool:
    """Whether a port is published on every node."""
    return port.publish_mode != PUBLISH_MODE_HOST
