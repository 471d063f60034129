"""What a decision is handed beside messages and the time: where it looks things up, and where new IDs come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from proto.objects_pb2 import Node, Task
from proto.specs_pb2 import ServiceSpec

NewID = Callable[[], str]


class Nodes(Protocol):
    """Nodes by ID: a view's table, or a plain dict."""

    def get(self, node_id: str, /) -> Node | None: ...

    def values(self) -> Iterable[Node]: ...


class SpecOf(Protocol):
    """The spec a task was made from; None when that version is not kept any more."""

    def __call__(self, task: Task, /) -> ServiceSpec | None: ...


class MissingOf(Protocol):
    """What a spec names and is not there any more ("the secret x"); "" when it is all there."""

    def __call__(self, spec: ServiceSpec, /) -> str: ...
