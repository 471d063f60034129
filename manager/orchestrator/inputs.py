"""What a look at a whole service goes by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from manager.model.dirty import DirtyCheck
from manager.model.inputs import MissingOf, NewID, Nodes, SpecOf
from proto.objects_pb2 import Service, Task


@dataclass(frozen=True)
class ServiceInputs:
    """Everything it goes by.

    Attributes:
        tasks: every task of the service, in any state and order.
        limit: slots to change at most this time; ``look_at_service`` says that there is more to do.
    """

    service: Service
    tasks: Iterable[Task]
    check: DirtyCheck
    nodes: Nodes
    spec_of: SpecOf
    missing_of: MissingOf
    now: float
    new_id: NewID
    limit: int
