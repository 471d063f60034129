"""Whether a task still is what its service asks for, or must be replaced.

A change of placement alone leaves a task where its node still matches; new registry credentials alone leave a task
that has its image already. Labels, replicas, update and rollback settings are no part of a task at all. Neither is it a
change to write a default out: clients that read a spec with ``?insertDefaults=true`` and send it back with another
number of replicas (docker-py's ``Service.scale``) leave the tasks alone, and so do those that write the image's name in
another way.

Source: swarmkit ``manager/orchestrator/task.go`` (``IsTaskDirty``); features A5.06.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from manager.model import constraints
from manager.model.defaults import comparable
from proto.objects_pb2 import TASK_STATE_READY, TASK_STATE_RUNNING, Node, Service, SpecVersion, Task
from proto.specs_pb2 import ServiceSpec, TaskSpec


class SpecVersions(Protocol):
    """Where older versions of specs are looked up (``View.spec_versions``)."""

    def of(self, service_id: str, spec_version: int) -> SpecVersion | None: ...


@dataclass(frozen=True, slots=True)
class Difference:
    """How a version of a spec differs from the present one, in what concerns tasks.

    ``rest`` is everything but placement and registry credentials, the endpoint included.
    """

    rest: bool
    placement: bool
    registry_auth: bool


@dataclass
class DirtyCheck:
    """The question for the tasks of one service; each version of its spec is compared once.

    Attributes:
        spec_versions: must hold the versions that tasks were made from; without its version a task counts as dirty.
        differences: what was found so far; may be handed on to the next check by the same spec.
    """

    service: Service
    spec_versions: SpecVersions
    differences: dict[int, Difference] = field(default_factory=dict)

    def is_dirty(self, task: Task, node: Node | None) -> bool:
        """Whether ``task`` must be replaced to follow its service's present spec.

        Args:
            task: of the service, in whatever state.
            node: the node it is assigned to, or None when it has none or the node is gone.
        """
        if task.spec_version == self.service.spec_version:
            return False
        difference = self._difference(task.spec_version)
        if difference is None or difference.rest:
            return True
        if difference.registry_auth and not _has_its_image(task):
            return True
        return difference.placement and not self._node_matches(node)

    def is_same(self, spec_version: int) -> bool:
        """Whether no task of that version is dirty, whatever became of it and wherever it is."""
        if spec_version == self.service.spec_version:
            return True
        found = self._difference(spec_version)
        return found is not None and not (found.rest or found.placement or found.registry_auth)

    def _difference(self, spec_version: int) -> Difference | None:
        found = self.differences.get(spec_version)
        if found is None:
            kept = self.spec_versions.of(self.service.id, spec_version)
            if kept is not None:
                found = self.differences[spec_version] = _compare(kept.spec, self.service.spec)
        return found

    def _node_matches(self, node: Node | None) -> bool:
        if node is None:
            return False
        placement = self.service.spec.task_template.placement
        return constraints.node_matches(constraints.parse_cached(tuple(placement.constraints)), node)


def _has_its_image(task: Task) -> bool:
    return task.desired_state <= TASK_STATE_RUNNING and TASK_STATE_READY <= task.status.state <= TASK_STATE_RUNNING


def _compare(before: ServiceSpec, after: ServiceSpec) -> Difference:
    old, new = comparable(before), comparable(after)
    return Difference(
        rest=_without_placement_and_auth(old) != _without_placement_and_auth(new)
        or old.endpoint_spec != new.endpoint_spec,
        placement=old.task_template.placement != new.task_template.placement,
        registry_auth=old.task_template.registry_auth != new.task_template.registry_auth,
    )


def _without_placement_and_auth(spec: ServiceSpec) -> TaskSpec:
    bare = TaskSpec()
    bare.CopyFrom(spec.task_template)
    bare.ClearField("placement")
    bare.ClearField("registry_auth")
    return bare
