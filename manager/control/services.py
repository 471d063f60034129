"""Services: create, update, roll back, remove, count (features A5, A8.11, A8.12, W06, W11).

Each function changes a transaction under construction and reads no clock and makes no ID itself: both come in.

A spec is stored twice on purpose: in the service, where the API and the orchestrator look, and as a ``SpecVersion``,
which tasks name. Versions count up from 1 with every change, a roll-back included: a number names one content for ever,
and the tasks of a rollout are told from earlier ones of an equal spec. (Those are not replaced: what makes a task stale
is another content, not another number.)
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from manager.control.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidRequestError,
    UnimplementedError,
)
from manager.control.lookup import check_version
from manager.model.modes import mode_of
from manager.model.times import from_timestamp
from manager.model.transitions import with_desired
from manager.store import View, Working
from manager.store.kinds import spec_version_id
from proto.control_pb2 import ServiceStatus
from proto.objects_pb2 import Node, NodeState, Service, SpecVersion, TaskState, UpdateState, UpdateStatus
from proto.specs_pb2 import PublishMode, ServiceSpec


def create_service(working: Working, spec: ServiceSpec, *, service_id: str, now: Timestamp) -> Service:
    """Add a service of a valid, normalised spec.

    Raises:
        AlreadyExistsError: the name is in use.
        InvalidArgumentError: a secret, config or port it wants is not to be had.
    """
    if working.services.by_name(spec.name) is not None:
        raise AlreadyExistsError(f"name conflicts with an existing object: service {spec.name} already exists")
    _check_references(working, spec)
    check_port_conflicts(working, spec, service_id="")
    service = Service(id=service_id, spec=spec, spec_version=1)
    _set_endpoint(service)
    _stamp(service, now, created=True)
    working.create(service)
    _store_spec_version(working, service, now)
    return service


def update_service(working: Working, service: Service, spec: ServiceSpec, *, version: int, now: Timestamp) -> Service:
    """Give a service another spec; the present one becomes the previous one.

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
    _check_references(working, spec)
    if mode_of(service.spec) is not mode_of(spec):
        raise UnimplementedError("service mode change is not allowed")
    if service.spec.name != spec.name:
        raise UnimplementedError("renaming services is not supported")
    if spec.endpoint_spec != service.spec.endpoint_spec:
        check_port_conflicts(working, spec, service_id=service.id)
    changed = _with_next_spec(service, spec, now)
    changed.ClearField("update_status")
    working.update(changed)
    _store_spec_version(working, changed, now)
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
    changed = _with_next_spec(service, service.previous_spec, now)
    changed.update_status.CopyFrom(
        UpdateStatus(
            state=UpdateState.UPDATE_STATE_ROLLBACK_STARTED, started_at=now, message="manually requested rollback"
        )
    )
    working.update(changed)
    _store_spec_version(working, changed, now)
    return changed


def remove_service(working: Working, service: Service, *, now: Timestamp, tasks_max: int) -> None:
    """Mark a service removed and its tasks to be removed; the objects go when the last task has stopped (A5.09).

    Args:
        tasks_max: so many tasks at most in this transaction; the orchestrator sees to the others.
    """
    changed = _changed(service, now)
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


def service_status(view: View, service: Service) -> ServiceStatus:
    """How many tasks run, and how many should: the REPLICAS column (features W11).

    What a node that is down ran last is not known to run, and has been replaced (SwarmKit counts it).
    """
    wanted = mode_of(service.spec).wanted_tasks
    status = ServiceStatus(desired_tasks=wanted(service.spec) if wanted is not None else 0)
    for task in view.tasks.by_service(service.id):
        if task.status.state == TaskState.TASK_STATE_RUNNING and not _is_down(view.nodes.get(task.node_id)):
            status.running_tasks += 1
        if wanted is None and task.desired_state == TaskState.TASK_STATE_RUNNING:
            status.desired_tasks += 1
    return status


def _is_down(node: Node | None) -> bool:
    return node is not None and node.status.state == NodeState.NODE_STATE_DOWN


def warnings_of(spec: ServiceSpec, previous: ServiceSpec | None) -> list[str]:
    """What the user should know of a service that was accepted (features X21)."""
    if previous is not None and previous.endpoint_spec == spec.endpoint_spec:
        return []
    ports = [
        f"{port.published_port or port.target_port}"
        for port in spec.endpoint_spec.ports
        if port.publish_mode == PublishMode.PUBLISH_MODE_HOST
    ]
    if not ports:
        return []
    return [
        f"published on all addresses (0.0.0.0) of the nodes that run the tasks: port {', '.join(ports)}; "
        "an IP address given with a port is dropped by the client and has no effect"
    ]


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
    for service in view.services:
        if service.id == service_id or service.pending_delete:
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
    container = spec.task_template.container_spec
    missing_secrets = []
    for reference in container.secrets:
        secret = view.secrets.get(reference.secret_id)
        if secret is None or secret.spec.name != reference.secret_name:
            missing_secrets.append(reference.secret_name)
    _refuse_missing("secret", missing_secrets)
    missing_configs = []
    for config_reference in container.configs:
        config = view.configs.get(config_reference.config_id)
        if config is None or config.spec.name != config_reference.config_name:
            missing_configs.append(config_reference.config_name)
    _refuse_missing("config", missing_configs)


def _refuse_missing(kind: str, names: list[str]) -> None:
    if names:
        raise InvalidArgumentError(f"{kind}{'s' if len(names) > 1 else ''} not found: {', '.join(names)}")


def _with_next_spec(service: Service, spec: ServiceSpec, now: Timestamp) -> Service:
    """A copy of the next spec version; the updater begins its record of the rollout anew."""
    changed = _changed(service, now)
    changed.previous_spec.CopyFrom(service.spec)
    changed.previous_spec_version = service.spec_version
    changed.spec.CopyFrom(spec)
    changed.spec_version = service.spec_version + 1
    changed.ClearField("rollout")
    _set_endpoint(changed)
    return changed


def _changed(service: Service, now: Timestamp) -> Service:
    copy = Service()
    copy.CopyFrom(service)
    _stamp(copy, now, created=False)
    return copy


def _set_endpoint(service: Service) -> None:
    """Ports in host mode need no allocation: what is wanted is what there is (or, for 0, what each node picks)."""
    service.endpoint.spec.CopyFrom(service.spec.endpoint_spec)
    del service.endpoint.ports[:]
    service.endpoint.ports.extend(
        port for port in service.spec.endpoint_spec.ports if port.publish_mode == PublishMode.PUBLISH_MODE_HOST
    )


def _stamp(item: Service | SpecVersion, now: Timestamp, *, created: bool) -> None:
    if created:
        item.created_at.CopyFrom(now)
    item.updated_at.CopyFrom(now)


def _store_spec_version(working: Working, service: Service, now: Timestamp) -> None:
    version = SpecVersion(
        id=spec_version_id(service.id, service.spec_version),
        service_id=service.id,
        spec_version=service.spec_version,
        spec=service.spec,
    )
    _stamp(version, now, created=True)
    working.create(version)


def visible(services: Iterable[Service]) -> list[Service]:
    """Those that were not removed."""
    return [service for service in services if not service.pending_delete]
