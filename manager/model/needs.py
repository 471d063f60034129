"""What a task asks of its node, read from its service's spec once per version."""

from __future__ import annotations

from dataclasses import dataclass

from manager.model.constraints import Constraint, ConstraintError, parse_cached
from proto.specs_pb2 import PORT_PROTOCOL_TCP, PUBLISH_MODE_HOST, PortConfig, Resources, ServiceSpec

HostPort = tuple[int, int]
"""Protocol (``PortProtocol``) and published port."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Everything the filters, the ranking and the bookkeeping of nodes want to know of a task.

    Attributes:
        nano_cpus: reserved, in 1e-9 CPU.
        memory_bytes: reserved.
        generic: reserved generic resources, (kind, count).
        host_ports: fixed ports of the node it takes.
        constraints: None when they cannot be read (control refuses such a spec): no node satisfies them.
        platforms: (architecture, OS) its image is made for, normalised, "" meaning any; empty when unknown.
        max_replicas: per node, 0 for no limit.
        volume_plugins: names of the volume drivers of its mounts, without ``local``.
        log_plugin: name of its log driver, or "".
        spread: descriptors of the placement preferences that are understood, in order.
    """

    nano_cpus: int = 0
    memory_bytes: int = 0
    generic: tuple[tuple[str, int], ...] = ()
    host_ports: tuple[HostPort, ...] = ()
    constraints: tuple[Constraint, ...] | None = ()
    platforms: tuple[tuple[str, str], ...] = ()
    max_replicas: int = 0
    volume_plugins: tuple[str, ...] = ()
    log_plugin: str = ""
    spread: tuple[str, ...] = ()


NOTHING_NEEDED = Needs()


def needs_of(spec: ServiceSpec) -> Needs:
    """The needs of a task made from ``spec``."""
    template = spec.task_template
    reservations = template.resources.reservations
    placement = template.placement
    constraints: tuple[Constraint, ...] | None
    try:
        constraints = parse_cached(tuple(placement.constraints))
    except ConstraintError:
        constraints = None
    return Needs(
        nano_cpus=reservations.nano_cpus,
        memory_bytes=reservations.memory_bytes,
        generic=_generic(reservations),
        host_ports=tuple(_host_port(port) for port in spec.endpoint_spec.ports if _takes_host_port(port)),
        constraints=constraints,
        platforms=tuple((normal_architecture(p.architecture), p.os) for p in placement.platforms),
        max_replicas=placement.max_replicas,
        volume_plugins=_volume_plugins(spec),
        log_plugin=template.log_driver.name if template.log_driver.name != "none" else "",
        spread=tuple(p.spread.spread_descriptor for p in placement.preferences if p.HasField("spread")),
    )


def _generic(reservations: Resources) -> tuple[tuple[str, int], ...]:
    """So many of each kind; a kind that is named several times is wanted in sum."""
    counts: dict[str, int] = {}
    for resource in reservations.generic_resources:
        if resource.HasField("discrete"):
            counts[resource.discrete.kind] = counts.get(resource.discrete.kind, 0) + resource.discrete.value
    return tuple(counts.items())


def normal_architecture(architecture: str) -> str:
    """Two names for one thing: ``x86_64`` is ``amd64``, ``aarch64`` is ``arm64``."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(architecture, architecture)


def _takes_host_port(port: PortConfig) -> bool:
    return port.publish_mode == PUBLISH_MODE_HOST and port.published_port != 0


def _host_port(port: PortConfig) -> HostPort:
    return (port.protocol or PORT_PROTOCOL_TCP, port.published_port)


def _volume_plugins(spec: ServiceSpec) -> tuple[str, ...]:
    names = (
        mount.volume_options.driver_config.name
        for mount in spec.task_template.container_spec.mounts
        if mount.type == "volume"
    )
    return tuple(name for name in names if name not in ("", "local"))
