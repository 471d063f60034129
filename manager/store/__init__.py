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
from manager.store.kinds import StoredObject, TableName, spec_version_id
from manager.store.store import Store
from manager.store.tables import Table
from manager.store.views import View, Working
from manager.store.watch import Change, Resync, Watch

__all__ = [
    "AmbiguousReferenceError",
    "Change",
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
    "TableName",
    "TransactionTooLargeError",
    "View",
    "Watch",
    "Working",
    "spec_version_id",
]
