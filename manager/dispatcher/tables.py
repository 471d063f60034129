"""The store's current view, in the shape assignments are made from."""

from __future__ import annotations

from collections.abc import Iterable

from manager.store import Store
from proto.objects_pb2 import Config, Secret, SpecVersion, Task


class ViewTables:
    """``manager.dispatcher.assignments.Tables`` on a store; always the newest committed state."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def task(self, task_id: str) -> Task | None:
        return self._store.view.tasks.get(task_id)

    def tasks_of_node(self, node_id: str) -> Iterable[Task]:
        return self._store.view.tasks.by_node(node_id)

    def spec_version(self, spec_version_id: str) -> SpecVersion | None:
        return self._store.view.spec_versions.get(spec_version_id)

    def secret(self, secret_id: str) -> Secret | None:
        return self._store.view.secrets.get(secret_id)

    def config(self, config_id: str) -> Config | None:
        return self._store.view.configs.get(config_id)
