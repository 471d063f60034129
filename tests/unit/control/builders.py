"""Specs to start from."""

from __future__ import annotations

from proto.specs_pb2 import ConfigSpec, NodeAvailability, NodeRole, NodeSpec, SecretSpec, ServiceSpec


def service_spec(name: str = "web", *, image: str = "busybox:1", replicas: int = 2) -> ServiceSpec:
    spec = ServiceSpec(name=name)
    spec.task_template.container_spec.image = image
    spec.mode.replicated.replicas = replicas
    return spec


def global_spec(name: str = "web") -> ServiceSpec:
    spec = service_spec(name)
    getattr(spec.mode, "global").SetInParent()
    return spec


def secret_spec(name: str = "password", data: bytes = b"hunter2") -> SecretSpec:
    return SecretSpec(name=name, data=data)


def config_spec(name: str = "settings", data: bytes = b"a=1") -> ConfigSpec:
    return ConfigSpec(name=name, data=data)


def node_spec(
    *,
    role: NodeRole.ValueType = NodeRole.NODE_ROLE_WORKER,
    availability: NodeAvailability.ValueType = NodeAvailability.NODE_AVAILABILITY_ACTIVE,
) -> NodeSpec:
    return NodeSpec(role=role, availability=availability)
