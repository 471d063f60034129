"""The kinds of objects the store holds: their messages, their place in the log's schema, their indexes.

An index maps a key to the objects that have it; `keys` of an object must depend on the object alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from proto.objects_pb2 import Cluster, Config, Node, Secret, Service, SpecVersion, Task

StoredObject = Cluster | Node | Service | SpecVersion | Task | Secret | Config

TableName = Literal["clusters", "nodes", "services", "spec_versions", "tasks", "secrets", "configs"]

T = TypeVar("T", bound=StoredObject)

IndexKey = Hashable


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of stored object.

    Attributes:
        name: singular, as in the ``StoreObject`` oneof and in error messages.
        table: name of its table in a view and in a ``Change``.
        message: its message class.
        indexes: name of an index -> the keys of an object in it.
        unique: the index whose keys belong to one object each, or None.
    """

    name: str
    table: TableName
    message: type[StoredObject]
    indexes: Mapping[str, Callable[[Any], Collection[IndexKey]]]
    unique: str | None = None


def _service_name(service: Service) -> Collection[IndexKey]:
    # A service that its user has removed is there until its last task has stopped, but its name is free at once.
    return () if service.pending_delete else (service.spec.name,)


def _service_secrets(service: Service) -> Collection[IndexKey]:
    if service.pending_delete:
        return ()
    return {ref.secret_id for ref in service.spec.task_template.container_spec.secrets}


def _service_configs(service: Service) -> Collection[IndexKey]:
    if service.pending_delete:
        return ()
    return {ref.config_id for ref in service.spec.task_template.container_spec.configs}


KINDS: tuple[Kind, ...] = (
    Kind("cluster", "clusters", Cluster, {}),
    Kind("node", "nodes", Node, {"name": lambda node: _node_names(node)}),
    Kind(
        "service",
        "services",
        Service,
        {"name": _service_name, "secret": _service_secrets, "config": _service_configs},
        unique="name",
    ),
    Kind("spec_version", "spec_versions", SpecVersion, {"service": lambda version: (version.service_id,)}),
    Kind(
        "task",
        "tasks",
        Task,
        {
            "service": lambda task: (task.service_id,),
            "node": lambda task: (task.node_id,),
            "slot": lambda task: ((task.service_id, task.slot),),
            "service_node": lambda task: ((task.service_id, task.node_id),),
            "version": lambda task: ((task.service_id, task.spec_version),),
        },
    ),
    Kind("secret", "secrets", Secret, {"name": lambda secret: (secret.spec.name,)}, unique="name"),
    Kind("config", "configs", Config, {"name": lambda config: (config.spec.name,)}, unique="name"),
)

KIND_BY_NAME: Mapping[str, Kind] = {kind.name: kind for kind in KINDS}
KIND_BY_MESSAGE: Mapping[type[Any], Kind] = {kind.message: kind for kind in KINDS}


def _node_names(node: Node) -> Collection[IndexKey]:
    """A node answers to its host name and to the name its spec gives it, if any."""
    return {name for name in (node.description.hostname, node.spec.name) if name}


def kind_of(obj: StoredObject) -> Kind:
    """The kind of ``obj``. Raises: TypeError when it is no storable message."""
    try:
        return KIND_BY_MESSAGE[type(obj)]
    except KeyError:
        raise TypeError(f"not a storable object: {type(obj).__name__}") from None


def spec_version_id(service_id: str, spec_version: int) -> str:
    """ID of the ``SpecVersion`` that holds that version of a service's spec."""
    return f"{service_id}.{spec_version}"
