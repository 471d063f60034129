"""The kinds of objects the store holds: one file each, and this table of them (docs/design/store.md says how to add one)."""

from __future__ import annotations

from manager.store.kinds.clusters import CLUSTERS
from manager.store.kinds.configs import CONFIGS
from manager.store.kinds.kind import AnyKind, Assigned, Kind, Kinds, Reference, UnknownKindError
from manager.store.kinds.networks import NETWORKS
from manager.store.kinds.nodes import NODES, NodeTable
from manager.store.kinds.secrets import SECRETS
from manager.store.kinds.services import SERVICES, ServiceTable
from manager.store.kinds.spec_versions import SPEC_VERSIONS, SpecVersionTable
from manager.store.kinds.tasks import TASKS, TaskTable

__all__ = [
    "CLUSTERS",
    "CONFIGS",
    "KINDS",
    "NETWORKS",
    "NODES",
    "SECRETS",
    "SERVICES",
    "SPEC_VERSIONS",
    "TASKS",
    "AnyKind",
    "Assigned",
    "Kind",
    "Kinds",
    "NodeTable",
    "Reference",
    "ServiceTable",
    "SpecVersionTable",
    "TaskTable",
    "UnknownKindError",
]

KINDS = Kinds(CLUSTERS, NODES, SERVICES, SPEC_VERSIONS, TASKS, SECRETS, CONFIGS, NETWORKS)
