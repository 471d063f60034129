"""Services. One that its user has removed (``pending_delete``) is there until its last task has stopped, but answers to
no name or ID prefix, holds no name and uses no secret, config or network.
"""

from __future__ import annotations

from collections.abc import Collection

from manager.model.networks import cluster_networks
from manager.store.kinds.configs import CONFIGS
from manager.store.kinds.kind import Kind, Reference
from manager.store.kinds.networks import NETWORKS
from manager.store.kinds.secrets import SECRETS
from manager.store.tables import Table
from proto.objects_pb2 import Service


class ServiceTable(Table[Service]):
    """Services; ``find`` and ``by_name`` leave out those their user has removed."""

    __slots__ = ()

    def publishing(self, port: int) -> Collection[Service]:
        """Those that publish a port of this number, as asked for or as given."""
        return self._rows.lookup("published port", port)

    def _is_findable(self, obj: Service) -> bool:
        return not obj.pending_delete


def _names(service: Service) -> Collection[str]:
    return () if service.pending_delete else (service.spec.name,)


def _published_ports(service: Service) -> Collection[int]:
    if service.pending_delete:
        return ()
    ports = (*service.spec.endpoint_spec.ports, *service.endpoint.ports)
    return {port.published_port for port in ports if port.published_port}


def _secrets(service: Service) -> Collection[tuple[str, str]]:
    if service.pending_delete:
        return ()
    return [(ref.secret_id, ref.secret_name) for ref in service.spec.task_template.container_spec.secrets]


def _configs(service: Service) -> Collection[tuple[str, str]]:
    if service.pending_delete:
        return ()
    return [(ref.config_id, ref.config_name) for ref in service.spec.task_template.container_spec.configs]


def _networks(service: Service) -> Collection[tuple[str, str]]:
    if service.pending_delete:
        return ()
    return [(each.target, each.target) for each in cluster_networks(service.spec)]


SERVICES = Kind(
    name="service",
    plural="services",
    message=Service,
    table=ServiceTable,
    names=_names,
    unique_names=True,
    labels=lambda service: service.spec.labels,
    indexes={"published port": _published_ports},
    references=(Reference(SECRETS, _secrets), Reference(CONFIGS, _configs), Reference(NETWORKS, _networks)),
)
