"""Services: create, update, roll back, remove, count (features A5, A8.11, A8.12, W06, W11).

Each function changes a transaction under construction and reads no clock and makes no ID itself: both come in. What a
change of the spec makes of a service is ``model.versions``.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from manager.control.counts import TaskCounts
from manager.control.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidRequestError,
    UnimplementedError,
)
from manager.control.lookup import check_version
from manager.control.networks import resolve_networks
from manager.model.defaults import restart_rules
from manager.model.modes import mode_of
from manager.model.times import from_timestamp
from manager.model.transitions import with_desired
from manager.model.versions import copy_service, first_version, means_the_same, rolled_back, with_spec
from manager.store import SERVICES, View, Working
from proto.control_pb2 import ServiceStatus
from proto.objects_pb2 import Service, TaskState, UpdateState
from proto.specs_pb2 import PublishMode, RestartCondition, ServiceSpec


def create_service(working: Working, spec: ServiceSpec, *, service_id: str) -> Service:
    """Add a service of a valid, normalised spec.

    Raises:
        AlreadyExistsError: the name is in use.
        InvalidArgumentError: a secret, config or port it wants is not to be had.
    """
    if working.services.by_name(spec.name) is not None:
        raise AlreadyExistsError(f"name conflicts with an existing object: service {spec.name} already exists")
    resolve_networks(working, spec)
    _check_references(working, spec)
    check_port_conflicts(working, spec, service_id="")
    service = first_version(service_id, spec)
    working.create(service)
    return service


def update_service(working: Working, service: Service, spec: ServiceSpec, *, version: int) -> Service:
    """Give a service another spec; the present one becomes the previous one, unless that changes nothing.

    Args:
        service: as stored.
        spec: valid and normalised.
        version: the ``Version.Index`` that the caller read (W06).

    Raises:
        OutOfSequenceError: the service has another version now.
        UnimplementedError: the name or the mode differs.
        InvalidArgumentError: a secret, config or port it wants is not to be had.
    """
    check_version(service, version)
    resolve_networks(working, spec)
    _check_references(working, spec)
    if mode_of(service.spec) is not mode_of(spec):
        raise UnimplementedError("service mode change is not allowed")
    if service.spec.name != spec.name:
        raise UnimplementedError("renaming services is not supported")
    if spec.endpoint_spec != service.spec.endpoint_spec:
        check_port_conflicts(working, spec, service_id=service.id)
    changed = with_spec(service, spec)
    working.update(changed)
    return changed


def roll_back_service(working: Working, service: Service, *, version: int, now: Timestamp) -> Service:
    """Swap the present and the previous spec; a second time swaps them back (features A5.08).

    Raises:
        OutOfSequenceError: the service has another version now.
        FailedPreconditionError: there is no previous spec.
        InvalidArgumentError: a secret, config or port it wants is not to be had any more.
    """
    check_version(service, version)
    if not service.HasField("previous_spec"):
        raise FailedPreconditionError(f"service {service.id} does not have a previous spec")
    _check_references(working, service.previous_spec)
    if service.previous_spec.endpoint_spec != service.spec.endpoint_spec:
        check_port_conflicts(working, service.previous_spec, service_id=service.id)
    changed = rolled_back(service, "manually requested rollback", started_at=now, returns=True)
    working.update(changed)
    return changed


def remove_service(working: Working, service: Service, *, now: Timestamp, tasks_max: int) -> None:
    """Mark a service removed and its tasks to be removed; the objects go when the last task has stopped (A5.09).

    Args:
        tasks_max: so many tasks at most in this transaction; the orchestrator sees to the others.
    """
    changed = copy_service(service)
    changed.pending_delete = True
    working.update(changed)
    for task in list(working.tasks.by_service(service.id))[:tasks_max]:
        if task.desired_state < TaskState.TASK_STATE_REMOVE:
            working.update(with_desired(task, TaskState.TASK_STATE_REMOVE, from_timestamp(now)))


def registry_auth_of(service: Service, given: str, *, from_previous: bool) -> str:
    """The credentials an update keeps: those given, else those of the present or the previous spec (A2.11).

    Raises:
        InvalidRequestError: the previous spec's are wanted and there is none.
    """
    if given:
        return given
    if not from_previous:
        return service.spec.task_template.registry_auth
    if not service.HasField("previous_spec"):
        raise InvalidRequestError("service does not have a previous spec")
    return service.previous_spec.task_template.registry_auth


def service_status(service: Service, counts: TaskCounts) -> ServiceStatus:
    """How many tasks run, and how many should: the REPLICAS column (features W11)."""
    wanted = mode_of(service.spec).wanted_tasks
    desired = wanted(service.spec) if wanted is not None else counts.wanted.get(service.id, 0)
    return ServiceStatus(desired_tasks=desired, running_tasks=counts.running.get(service.id, 0))


def warnings_of(service: Service, before: ServiceSpec | None) -> list[str]:
    """What the user should know of a service that was accepted (features X21).

    Args:
        service: as it is now.
        before: its spec until then; None when it was made. What has not changed is not told again.
    """
    found = [
        _stays_paused(service, before),
        _host_ports(service.spec, before),
        _endless_restarts(service.spec, before),
        _more_restarts_than_are_counted(service.spec, before),
    ]
    return [text for text in found if text]


def _stays_paused(service: Service, before: ServiceSpec | None) -> str:
    paused = service.update_status.state in (UpdateState.UPDATE_STATE_PAUSED, UpdateState.UPDATE_STATE_ROLLBACK_PAUSED)
    if before is None or not paused or not means_the_same(before, service.spec):
        return ""
    what = "rollback" if service.update_status.state == UpdateState.UPDATE_STATE_ROLLBACK_PAUSED else "update"
    return (
        f"nothing was changed, and the {what} of the service stays paused: change what made it fail, go on with "
        '"service update --force", or go back with "service rollback"'
    )


def _host_ports(spec: ServiceSpec, before: ServiceSpec | None) -> str:
    if before is not None and before.endpoint_spec == spec.endpoint_spec:
        return ""
    ports = [
        f"{port.published_port or port.target_port}"
        for port in spec.endpoint_spec.ports
        if port.publish_mode == PublishMode.PUBLISH_MODE_HOST
    ]
    if not ports:
        return ""
    return (
        f"published on all addresses (0.0.0.0) of the nodes that run the tasks: port {', '.join(ports)}; "
        "an IP address given with a port is dropped by the client and has no effect"
    )


def _more_restarts_than_are_counted(spec: ServiceSpec, before: ServiceSpec | None) -> str:
    """Restarts within a window are remembered one by one."""
    policy, counted = spec.task_template.restart_policy, restart_rules(spec.task_template).max_attempts
    same = before is not None and before.task_template.restart_policy == policy
    if same or policy.max_attempts == counted:
        return ""
    return (
        f"of the {policy.max_attempts} restarts that are allowed within the window, {counted} are counted: a task is not "
        "restarted again after as many"
    )


def _endless_restarts(spec: ServiceSpec, before: ServiceSpec | None) -> str:
    """Restarts are a delay and a run apart, so a window may be too short to ever hold as many as are allowed."""
    rules = restart_rules(spec.task_template)
    if before is not None and restart_rules(before.task_template) == rules:
        return ""
    if rules.condition == RestartCondition.RESTART_CONDITION_NONE or not rules.max_attempts or not rules.window_s:
        return ""
    fills_after_s = rules.max_attempts * rules.delay_s
    if rules.window_s > fills_after_s:
        return ""
    return (
        f"the maximum of {rules.max_attempts} restarts will never be reached: they are at least {rules.delay_s:g} s (the "
        f"restart delay) apart, and a window of {rules.window_s:g} s holds fewer; want a window longer than "
        f"{fills_after_s:g} s and the time that the tasks run, or none"
    )


# ---------------------------------------------------------------- parts


def check_port_conflicts(view: View, spec: ServiceSpec, *, service_id: str) -> None:
    """Refuse an ingress port that another service has, in either mode (features A5.17).

    The same host port on two services is fine: the scheduler keeps them on different nodes.

    Raises:
        InvalidArgumentError.
    """
    wanted = {
        (port.published_port, port.protocol): port.publish_mode
        for port in spec.endpoint_spec.ports
        if port.published_port
    }
    if not wanted:
        return
    candidates = {service.id: service for number, _ in wanted for service in view.services.publishing(number)}
    for service in candidates.values():
        if service.id == service_id:
            continue
        for port in (*service.spec.endpoint_spec.ports, *service.endpoint.ports):
            mode = wanted.get((port.published_port, port.protocol))
            taken_by_ingress = port.publish_mode == PublishMode.PUBLISH_MODE_INGRESS
            if mode is None or not (taken_by_ingress or mode == PublishMode.PUBLISH_MODE_INGRESS):
                continue
            how = "an ingress" if taken_by_ingress else "a host-published"
            raise InvalidArgumentError(
                f"port '{port.published_port}' is already in use by service '{service.spec.name}' ({service.id}) "
                f"as {how} port"
            )


def _check_references(view: View, spec: ServiceSpec) -> None:
    missing: dict[str, list[str]] = {}
    for kind, name in view.missing(SERVICES, Service(spec=spec)):
        missing.setdefault(kind.name, []).append(name)
    for kind_name, names in missing.items():
        raise InvalidArgumentError(f"{kind_name}{'s' if len(names) > 1 else ''} not found: {', '.join(names)}")


def visible(services: Iterable[Service]) -> list[Service]:
    """Those that were not removed."""
    return [service for service in services if not service.pending_delete]
