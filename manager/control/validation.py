"""Whether a spec can be right, whatever the state of the cluster (features A3.16, A5, A7.01, A8.04 to A8.10).

Pure: a message in, nothing out, or the first thing wrong raised with the words of SwarmKit where it has some. What the
Engine API knows but this version does not do is refused here, too (``UnimplementedError``), so that nothing a user
asks for is dropped in silence.

Source: swarmkit ``manager/controlapi/service.go``, ``common.go``; moby ``daemon/cluster/convert``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf.message import Message

from base.image_reference import InvalidReferenceError, parse_reference
from manager.control.errors import InvalidArgumentError, InvalidRequestError, UnimplementedError
from manager.model.constraints import ConstraintError
from manager.model.constraints import parse as parse_constraints
from manager.model.defaults import PROGRESS_DEADLINE_LABEL, progress_deadline_s
from manager.model.modes import mode_of
from proto.objects_pb2 import Cluster
from proto.specs_pb2 import (
    ClusterSpec,
    ConfigSpec,
    ContainerSpec,
    EndpointMode,
    EndpointSpec,
    HealthConfig,
    NodeAvailability,
    NodeRole,
    NodeSpec,
    PortProtocol,
    PublishMode,
    Resources,
    RestartPolicy,
    SecretSpec,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)

DNS_NAME_LENGTH_MAX = 63
PAYLOAD_NAME_LENGTH_MAX = 64
SECRET_SIZE_BYTES_MAX = 500 * 1024
"""Exclusive, as in SwarmKit."""
CONFIG_SIZE_BYTES_MAX = 1000 * 1024
"""Exclusive, as in SwarmKit."""
SPEC_SIZE_BYTES_MAX = 1_000_000
"""Of every spec; the data of secrets and configs has limits of its own. An object is written again with what managers add,
a service with its previous spec, and has to fit into a log entry (``ENTRY_SIZE_BYTES_MAX``) whatever becomes of it: what
does not is an entry that no leader can go on from."""
PREFERENCES_MAX = 32
"""The scheduler goes through as many levels of nodes, one inside the other."""
REPLICAS_MAX = 1_000_000
"""Each is an object of some 500 bytes on every manager: a number mistyped is not to fill their memory."""
NANO_CPUS_MIN = 1_000_000
MEMORY_BYTES_MIN = 4 * 1024 * 1024
MINIMUM_DURATION_NS = 1_000_000
CERTIFICATE_EXPIRY_NS_MIN = 3600 * 10**9
HEARTBEAT_PERIOD_NS_MIN, HEARTBEAT_PERIOD_NS_MAX = 100 * 1_000_000, 24 * 3600 * 10**9
"""Below, every node is late and all tasks move; far above, the period that a session is told does not fit its field."""
# The published patterns ((?:[-_]*[A-Za-z0-9]+)* and the like) take exponential time on a hostile name in a
# backtracking engine; these accept the same names in linear time.
_DNS_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?", re.ASCII)
_PAYLOAD_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?", re.ASCII)


def check_size(spec: Message, *, data: bytes = b"") -> None:
    """Hold a spec to ``SPEC_SIZE_BYTES_MAX``, its ``data`` not counted. Raises: InvalidArgumentError."""
    if (size_bytes := spec.ByteSize() - len(data)) > SPEC_SIZE_BYTES_MAX:
        raise InvalidArgumentError(f"spec too large: {size_bytes} bytes, at most {SPEC_SIZE_BYTES_MAX}")


# ---------------------------------------------------------------- service


def validate_service_spec(spec: ServiceSpec) -> None:
    """Check a service's spec, defaults filled in (``manager.model.defaults.normalize_service_spec``).

    Raises:
        InvalidArgumentError, UnimplementedError.
    """
    check_size(spec)
    check_dns_name(spec.name)
    _mode(spec)
    _update_config(spec.update_config)
    _update_config(spec.rollback_config)
    if PROGRESS_DEADLINE_LABEL in spec.labels and progress_deadline_s(spec) is None:
        raise InvalidArgumentError(
            f'invalid value of the label {PROGRESS_DEADLINE_LABEL}: want a time like "5m" or "90s"'
        )
    _task_spec(spec.task_template)
    _endpoint_spec(spec.endpoint_spec)


def check_dns_name(name: str) -> None:
    """Raises: InvalidArgumentError: not a name that could be part of one in DNS, or too long for that."""
    if not name:
        raise InvalidArgumentError("meta: name must be provided")
    if not _DNS_NAME.fullmatch(name):
        raise InvalidArgumentError("name must be valid as a DNS name component")
    if len(name) > DNS_NAME_LENGTH_MAX:
        raise InvalidArgumentError(f"name must be {DNS_NAME_LENGTH_MAX} characters or fewer")


def _mode(spec: ServiceSpec) -> None:
    if spec.mode.WhichOneof("mode") is None:
        raise InvalidArgumentError("Unrecognized service mode")
    mode = mode_of(spec)
    if not mode.served:
        raise UnimplementedError(f"services of mode {mode.word} are not served yet")
    if spec.mode.replicated.replicas > REPLICAS_MAX:
        raise InvalidArgumentError(
            f"a service has at most {REPLICAS_MAX} replicas, not {spec.mode.replicated.replicas}"
        )


def _update_config(config: UpdateConfig) -> None:
    if config.delay_ns < 0:
        raise InvalidArgumentError("TaskSpec: update-delay cannot be negative")
    if config.monitor_ns < 0:
        raise InvalidArgumentError("TaskSpec: update-monitor cannot be negative")
    if not 0 <= config.max_failure_ratio <= 1:
        raise InvalidArgumentError("TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1")


def _task_spec(spec: TaskSpec) -> None:
    _resources(spec.resources.limits, reservations=False)
    _resources(spec.resources.reservations, reservations=True)
    if spec.resources.HasField("memory_swappiness") and not -1 <= spec.resources.memory_swappiness <= 100:
        raise InvalidArgumentError(
            f"invalid memory swappiness: {spec.resources.memory_swappiness}, want 0..100, or -1 for the default"
        )
    _restart_policy(spec.restart_policy)
    _placement(spec)
    _runtime(spec)
    _container_spec(spec.container_spec)


def _runtime(spec: TaskSpec) -> None:
    if spec.runtime in ("plugin", "attachment"):
        raise UnimplementedError(f"tasks of runtime {spec.runtime} are not served yet")
    if spec.runtime not in ("", "container"):
        raise InvalidArgumentError(f'unsupported runtime type: "{spec.runtime}"')
    if not spec.HasField("container_spec"):
        raise InvalidArgumentError("TaskSpec: missing runtime")


def _resources(resources: Resources, *, reservations: bool) -> None:
    if resources.nano_cpus and resources.nano_cpus < NANO_CPUS_MIN:
        raise InvalidArgumentError(f"invalid cpu value {resources.nano_cpus / 1e9:g}: Must be at least 0.001")
    if resources.memory_bytes and resources.memory_bytes < MEMORY_BYTES_MIN:
        raise InvalidArgumentError(f"invalid memory value {resources.memory_bytes}: Must be at least 4MiB")
    if resources.pids < 0:
        raise InvalidArgumentError(f"invalid pids value {resources.pids}: Must not be negative")
    if resources.generic_resources and not reservations:
        raise InvalidArgumentError("generic resources can be reserved, not limited")
    for generic in resources.generic_resources:
        if generic.WhichOneof("resource") != "discrete":
            raise InvalidArgumentError("generic resources are reserved by their number (DiscreteResourceSpec)")
        if not generic.discrete.kind or generic.discrete.value < 0:
            raise InvalidArgumentError("a generic resource wants a kind and a number that is not negative")


def _restart_policy(policy: RestartPolicy) -> None:
    if policy.delay_ns < 0:
        raise InvalidArgumentError("TaskSpec: restart-delay cannot be negative")
    if policy.window_ns < 0:
        raise InvalidArgumentError("TaskSpec: restart-window cannot be negative")


def _placement(spec: TaskSpec) -> None:
    try:
        parse_constraints(list(spec.placement.constraints))
    except ConstraintError as error:
        raise InvalidArgumentError(str(error)) from error
    if len(spec.placement.preferences) > PREFERENCES_MAX:
        raise InvalidArgumentError(
            f"too many placement preferences: {len(spec.placement.preferences)}, at most {PREFERENCES_MAX}"
        )


def _endpoint_spec(spec: EndpointSpec) -> None:
    published: set[tuple[int, PortProtocol.ValueType]] = set()
    for port in spec.ports:
        ingress = port.publish_mode != PublishMode.PUBLISH_MODE_HOST
        if ingress and spec.mode == EndpointMode.ENDPOINT_MODE_DNSRR:
            raise InvalidArgumentError("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
        if not 1 <= port.target_port <= 65535 or port.published_port > 65535:
            raise InvalidArgumentError(
                f"EndpointSpec: invalid port {port.published_port}:{port.target_port}, want numbers up to 65535"
            )
        if not port.published_port:
            continue
        key = (port.published_port, port.protocol)
        if key in published:
            raise InvalidArgumentError("EndpointSpec: duplicate published ports provided")
        published.add(key)


# ---------------------------------------------------------------- container


def _container_spec(spec: ContainerSpec) -> None:
    if not spec.image:
        raise InvalidArgumentError("ContainerSpec: image reference must be provided")
    try:
        parse_reference(spec.image)
    except InvalidReferenceError as error:
        raise InvalidArgumentError(f'ContainerSpec: "{spec.image}" is not a valid repository/tag') from error
    _mounts(spec)
    _health_config(spec.healthcheck)
    _secret_references(spec)
    _config_references(spec)
    if spec.stop_grace_period_ns < 0:
        raise InvalidArgumentError("ContainerSpec: stop-grace-period cannot be negative")
    if not -1000 <= spec.oom_score_adj <= 1000:
        raise InvalidArgumentError(f"Invalid value {spec.oom_score_adj}, range for oom score adj is [-1000, 1000]")


def _mounts(spec: ContainerSpec) -> None:
    targets: set[str] = set()
    for mount in spec.mounts:
        if mount.type in ("cluster", "npipe"):
            raise UnimplementedError(f"mounts of type {mount.type} are not served yet")
        if mount.type not in ("", "bind", "volume", "tmpfs"):
            raise InvalidArgumentError(f'invalid MountType: "{mount.type}"')
        if mount.target in targets:
            raise InvalidArgumentError(f"ContainerSpec: duplicate mount point: {mount.target}")
        targets.add(mount.target)


def _health_config(config: HealthConfig) -> None:
    durations = {
        "Interval": config.interval_ns,
        "Timeout": config.timeout_ns,
        "StartPeriod": config.start_period_ns,
        "StartInterval": config.start_interval_ns,
    }
    for name, value_ns in durations.items():
        if value_ns and value_ns < MINIMUM_DURATION_NS:
            raise InvalidArgumentError(f"ContainerSpec: {name} in HealthConfig cannot be less than 1ms")
    if config.retries < 0:
        raise InvalidArgumentError("ContainerSpec: Retries in HealthConfig cannot be negative")


def _secret_references(spec: ContainerSpec) -> None:
    for reference in spec.secrets:
        if not reference.secret_id or not reference.secret_name:
            raise InvalidArgumentError("malformed secret reference")
        if not reference.HasField("file"):
            raise InvalidArgumentError("malformed secret reference, no target provided")
        if not reference.file.name:
            raise InvalidArgumentError("malformed file secret reference, invalid target file name provided")
    _unique_targets("secret", [(reference.file.name, reference.secret_name) for reference in spec.secrets])


def _config_references(spec: ContainerSpec) -> None:
    for reference in spec.configs:
        if not reference.config_id or not reference.config_name:
            raise InvalidArgumentError("malformed config reference")
        if not reference.HasField("file") and not reference.HasField("runtime"):
            raise InvalidArgumentError("malformed config reference, no target provided")
        if reference.HasField("file") and not reference.file.name:
            raise InvalidArgumentError("malformed file config reference, invalid target file name provided")
    files = [(reference.file.name, reference.config_name) for reference in spec.configs if reference.HasField("file")]
    _unique_targets("config", files)
    wanted = spec.privileges.credential_spec.config
    if wanted and not any(ref.HasField("runtime") and ref.config_id == wanted for ref in spec.configs):
        raise InvalidArgumentError(
            f"CredentialSpec references config '{wanted}', "
            "but that config isn't in config references with RuntimeTarget"
        )


def _unique_targets(kind: str, references: Iterable[tuple[str, str]]) -> None:
    seen: dict[str, str] = {}
    for target, name in references:
        if target in seen:
            raise InvalidArgumentError(
                f"{kind} references '{seen[target]}' and '{name}' have a conflicting target: '{target}'"
            )
        seen[target] = name


# ---------------------------------------------------------------- secret, config


def validate_secret_spec(spec: SecretSpec) -> None:
    """Raises: InvalidArgumentError, UnimplementedError."""
    check_size(spec, data=spec.data)
    _payload_name(spec.name)
    _no_template(spec, "secret")
    if spec.HasField("driver"):
        if not spec.driver.name:
            raise InvalidArgumentError("secret driver must have a name")
        raise UnimplementedError("secrets that a driver supplies are not served yet")
    if not 1 <= len(spec.data) < SECRET_SIZE_BYTES_MAX:
        raise InvalidArgumentError(f"secret data must be larger than 0 and less than {SECRET_SIZE_BYTES_MAX} bytes")


def validate_config_spec(spec: ConfigSpec) -> None:
    """Raises: InvalidArgumentError, UnimplementedError."""
    check_size(spec, data=spec.data)
    _payload_name(spec.name)
    _no_template(spec, "config")
    if not 1 <= len(spec.data) < CONFIG_SIZE_BYTES_MAX:
        raise InvalidArgumentError(f"config data must be larger than 0 and less than {CONFIG_SIZE_BYTES_MAX} bytes")


def _payload_name(name: str) -> None:
    if not name:
        raise InvalidArgumentError("name must be provided")
    if len(name) > PAYLOAD_NAME_LENGTH_MAX or not _PAYLOAD_NAME.fullmatch(name):
        raise InvalidArgumentError(
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, "
            "and the start and end character must be [a-zA-Z0-9]"
        )


def _no_template(spec: Message, kind: str) -> None:
    if spec.HasField("templating"):
        raise UnimplementedError(f"{kind}s with templates are not served yet")


# ---------------------------------------------------------------- node, cluster


def validate_node_spec(spec: NodeSpec) -> None:
    """Raises: InvalidArgumentError, InvalidRequestError."""
    check_size(spec)
    if spec.role == NodeRole.NODE_ROLE_UNSPECIFIED:
        raise InvalidRequestError('invalid Role: ""')
    if spec.availability == NodeAvailability.NODE_AVAILABILITY_UNSPECIFIED:
        raise InvalidRequestError('invalid Availability: ""')


def validate_cluster_spec(spec: ClusterSpec, current: Cluster) -> None:
    """Check a cluster's spec, defaults filled in.

    Raises:
        InvalidArgumentError, InvalidRequestError, UnimplementedError.
    """
    check_size(spec)
    if spec.name != "default":
        raise InvalidRequestError('swarm spec must be named "default"')
    if spec.ca_config.node_cert_expiry_ns < CERTIFICATE_EXPIRY_NS_MIN:
        raise InvalidArgumentError("minimum certificate expiry time is: 1h0m0s")
    if spec.dispatcher.heartbeat_period_ns < 0:
        raise InvalidArgumentError("heartbeat time period cannot be a negative duration")
    period_ns = spec.dispatcher.heartbeat_period_ns
    if period_ns and not HEARTBEAT_PERIOD_NS_MIN <= period_ns <= HEARTBEAT_PERIOD_NS_MAX:
        raise InvalidArgumentError(f"invalid heartbeat time period: {period_ns / 1e9:g}s, want 100ms to 24h")
    if spec.encryption_config.auto_lock_managers:
        raise UnimplementedError("autolock is not served yet")
    if spec.ca_config.external_cas:
        raise UnimplementedError("external certificate authorities are not served yet")
    if (
        spec.ca_config.force_rotate != current.spec.ca_config.force_rotate
        or spec.ca_config.signing_ca_cert
        or spec.ca_config.signing_ca_key
    ):
        raise UnimplementedError("rotation of the root certificate is not served yet")
