"""The replicated object store: tables with indexes, versions, transactions, watches (docs/design/store.md)."""

from manager.store.errors import (
    AmbiguousReferenceError,
    MutatedObjectError,
    NameConflictError,
    ObjectExistsError,
    ObjectInUseError,
    ObjectNotFoundError,
    SequenceConflictError,
    SnapshotError,
    StoreError,
    TransactionTooLargeError,
)
from manager.store.kinds import (
    CLUSTERS,
    CONFIGS,
    KINDS,
    NETWORKS,
    NODES,
    SECRETS,
    SERVICES,
    SPEC_VERSIONS,
    TASKS,
    Kind,
    Kinds,
)
from manager.store.objects import StoredObject
from manager.store.store import Store
from manager.store.tables import Table
from manager.store.views import View, Working
from manager.store.watch import Change, Resync, Watch

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
    "AmbiguousReferenceError",
    "Change",
    "Kind",
    "Kinds",
    "MutatedObjectError",
    "NameConflictError",
    "ObjectExistsError",
    "ObjectInUseError",
    "ObjectNotFoundError",
    "Resync",
    "SequenceConflictError",
    "SnapshotError",
    "Store",
    "StoreError",
    "StoredObject",
    "Table",
    "TransactionTooLargeError",
    "View",
    "Watch",
    "Working",
]
