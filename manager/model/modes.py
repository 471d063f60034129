"""The modes of services, one row each: what the managers have to know of a mode is asked here.

What an orchestrator does for a mode is ``orchestrator.modes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from manager.model import defaults
from proto.objects_pb2 import Task
from proto.specs_pb2 import ServiceSpec


@dataclass(frozen=True, slots=True)
class Mode:
    """One mode.

    Attributes:
        name: of its field in ``ServiceMode``.
        per_node: its tasks are bound to nodes, one each; otherwise they have numbered slots.
        wanted_tasks: how many tasks a spec asks for; None: that is up to the nodes.
        served: services of it may be created; others are left alone.
    """

    name: str
    per_node: bool
    wanted_tasks: Callable[[ServiceSpec], int] | None
    served: bool

    def slot_of(self, task: Task) -> int | str:
        """The slot a task takes: its number, or the ID of its node."""
        return task.node_id if self.per_node else task.slot

    @property
    def word(self) -> str:
        """As users write it: ``replicated-job``."""
        return self.name.replace("_", "-")


REPLICATED = Mode("replicated", per_node=False, wanted_tasks=defaults.replicas, served=True)
GLOBAL = Mode("global", per_node=True, wanted_tasks=None, served=True)
REPLICATED_JOB = Mode("replicated_job", per_node=False, wanted_tasks=None, served=False)
GLOBAL_JOB = Mode("global_job", per_node=True, wanted_tasks=None, served=False)

MODES: Mapping[str, Mode] = {mode.name: mode for mode in (REPLICATED, GLOBAL, REPLICATED_JOB, GLOBAL_JOB)}


def mode_of(spec: ServiceSpec) -> Mode:
    """The mode of a spec; replicated where it names none."""
    return MODES[spec.mode.WhichOneof("mode") or REPLICATED.name]
