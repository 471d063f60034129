"""A service's spec and its versions: what the next one is, what a rollback makes of it, what tasks keep of it.

Version numbers only rise, with every change of the spec, a rollback included: a number names one content for ever, and
the tasks of a rollout are told from earlier ones of an equal spec. (Those are not replaced: what makes a task stale is
another content, not another number.)

The spec is there twice on purpose: in the service, where the API and the orchestrators look, and as a ``SpecVersion``,
which tasks name.
"""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from manager.model.defaults import comparable
from manager.model.endpoints import endpoint_of
from proto.objects_pb2 import UPDATE_STATE_ROLLBACK_STARTED, Service, SpecVersion, UpdateStatus
from proto.specs_pb2 import ServiceSpec


def copy_service(service: Service) -> Service:
    copy = Service()
    copy.CopyFrom(service)
    return copy


def first_version(service_id: str, spec: ServiceSpec) -> Service:
    """A service as it begins."""
    service = Service(id=service_id, spec=spec, spec_version=1)
    service.endpoint.CopyFrom(endpoint_of(service))
    return service


def means_the_same(spec: ServiceSpec, other: ServiceSpec) -> bool:
    """Whether two specs ask for the same; one of them may write defaults out, or the image's name in another way."""
    return spec == other or comparable(spec) == comparable(other)


def with_spec(service: Service, spec: ServiceSpec) -> Service:
    """A copy of the service after an update to ``spec``.

    An update that changes nothing keeps the way back: the previous spec stays, and what is recorded of the last update
    (one that is paused stays paused). What it writes out is kept, in a version of its own.
    """
    if not means_the_same(service.spec, spec):
        return next_version(service, spec)
    same = copy_service(service)
    if service.spec != spec:
        same.spec.CopyFrom(spec)
        same.spec_version = service.spec_version + 1
        same.ClearField("rollout")
        same.endpoint.CopyFrom(endpoint_of(same))
    return same


def next_version(service: Service, spec: ServiceSpec) -> Service:
    """A copy with another spec; the present one is the previous one now.

    What was recorded of an update of the present version goes: another one begins, if tasks have to change at all.
    """
    changed = copy_service(service)
    changed.previous_spec.CopyFrom(service.spec)
    changed.previous_spec_version = service.spec_version
    changed.spec.CopyFrom(spec)
    changed.spec_version = service.spec_version + 1
    changed.ClearField("rollout")
    changed.ClearField("update_status")
    changed.endpoint.CopyFrom(endpoint_of(changed))
    return changed


def rolled_back(service: Service, message: str, *, started_at: Timestamp, returns: bool) -> Service:
    """A copy that goes back to its previous spec, as a version of its own.

    Args:
        service: has a previous spec.
        message: of its update status.
        started_at: since when the update status is under way.
        returns: whether a second rollback comes back to the present spec (features A5.08); otherwise there is nothing
            to roll back to, for what is left has just failed.
    """
    changed = next_version(service, service.previous_spec)
    if not returns:
        changed.ClearField("previous_spec")
        changed.previous_spec_version = 0
    changed.update_status.CopyFrom(
        UpdateStatus(state=UPDATE_STATE_ROLLBACK_STARTED, started_at=started_at, message=message)
    )
    return changed


def spec_version_id(service_id: str, spec_version: int) -> str:
    """ID of the ``SpecVersion`` that holds that version of a service's spec."""
    return f"{service_id}.{spec_version}"


def present_version(service: Service) -> SpecVersion:
    """What is kept of the present spec for the tasks that are made from it. Written by the reconcile loop alone."""
    return SpecVersion(
        id=spec_version_id(service.id, service.spec_version),
        service_id=service.id,
        spec_version=service.spec_version,
        spec=service.spec,
    )
