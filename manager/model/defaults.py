"""What holds where a service's spec says nothing: the one place for all who ask.

- ``normalize_service_spec``: control, as a spec comes in. It writes down what the API would answer anyway ("" is
  "pause", "tcp", one replica). Everything else that is absent stays absent in the store, so that a later change of a
  default takes effect, and a 0 that was sent stays 0 (features W14, W15).
- ``restart_rules``, ``update_rules``, ``replicas``: the orchestrators, which go by a spec with nothing left open.
- ``insert_defaults``: whoever shows specs with every default written out.
- ``comparable``: whoever compares them.

Absent and zero differ for some fields: an update configuration that is absent as a whole means one slot at a time,
a parallelism of 0 in one that is there means all at once.

Source: swarmkit ``api/defaults/service.go``, moby ``daemon/cluster/convert``; features A8.02 to A8.10.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from base.image_reference import normalized
from manager import constants
from proto.specs_pb2 import (
    ENDPOINT_MODE_VIP,
    FAILURE_ACTION_PAUSE,
    PORT_PROTOCOL_TCP,
    PUBLISH_MODE_INGRESS,
    RESTART_CONDITION_ANY,
    UPDATE_ORDER_STOP_FIRST,
    FailureAction,
    RestartCondition,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
    UpdateOrder,
)

NANOSECONDS = 1_000_000_000

PROGRESS_DEADLINE_LABEL = "swarm.update.progress-deadline"
"""Of a service: within how long a task of an update has to run ("5m"), else it counts as failed (A8.14)."""

_DURATION = re.compile(r"(?:(?P<h>\d{1,5})h)?(?:(?P<m>\d{1,6})m)?(?:(?P<s>\d{1,8})s)?", re.ASCII)


def nanoseconds(seconds: float) -> int:
    return round(seconds * NANOSECONDS)


@dataclass(frozen=True, slots=True)
class RestartRules:
    """A restart policy with nothing left open. ``max_attempts`` 0: no limit; ``window_s`` 0: all restarts count."""

    condition: RestartCondition.ValueType
    delay_s: float
    max_attempts: int
    window_s: float


@dataclass(frozen=True, slots=True)
class UpdateRules:
    """An update or rollback configuration with nothing left open.

    Attributes:
        parallelism: 0: all slots at once.
        monitor_s: how long after it began to run a task's end is a failure of the update. It outlasts the delay: what
            fails while the update waits for the delay alone would else go unseen.
        stay_up_s: how long the new task of a start-first update has to run before the old one is told to stop.
        progress_deadline_s: None: a task may take for ever.
    """

    parallelism: int
    delay_s: float
    failure_action: FailureAction.ValueType
    monitor_s: float
    max_failure_ratio: float
    order: UpdateOrder.ValueType
    stay_up_s: float
    progress_deadline_s: float | None


def restart_rules(spec: TaskSpec) -> RestartRules:
    """The restart policy in force for tasks of ``spec``."""
    policy = spec.restart_policy
    max_attempts = min(policy.max_attempts, constants.RESTARTS_KEPT_MAX) if policy.window_ns else policy.max_attempts
    return RestartRules(
        condition=policy.condition or RESTART_CONDITION_ANY,
        delay_s=policy.delay_ns / NANOSECONDS if policy.HasField("delay_ns") else constants.RESTART_DELAY_S,
        max_attempts=max_attempts,
        window_s=policy.window_ns / NANOSECONDS,
    )


def update_rules(spec: ServiceSpec, *, rollback: bool) -> UpdateRules:
    """The update (or rollback) configuration in force for ``spec``."""
    if rollback:
        config = spec.rollback_config if spec.HasField("rollback_config") else default_update_config()
    else:
        config = spec.update_config if spec.HasField("update_config") else default_update_config()
    delay_s = config.delay_ns / NANOSECONDS
    monitor_s = config.monitor_ns / NANOSECONDS if config.monitor_ns else constants.UPDATE_MONITOR_S
    return UpdateRules(
        parallelism=config.parallelism,
        delay_s=delay_s,
        failure_action=config.failure_action or FAILURE_ACTION_PAUSE,
        monitor_s=monitor_s if delay_s < monitor_s else delay_s + 1.0,
        max_failure_ratio=config.max_failure_ratio,
        order=config.order or UPDATE_ORDER_STOP_FIRST,
        stay_up_s=min(constants.UPDATE_STAY_UP_S, monitor_s),
        progress_deadline_s=progress_deadline_s(spec),
    )


def progress_deadline_s(spec: ServiceSpec) -> float | None:
    """What ``PROGRESS_DEADLINE_LABEL`` says: hours, minutes and seconds in Go's syntax ("1h30m", "90s").

    None without it, as Swarm knows no such deadline, and where it says something else (control lets no such spec in).
    """
    match = _DURATION.fullmatch(spec.labels.get(PROGRESS_DEADLINE_LABEL, ""))
    if match is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.group("h", "m", "s"))
    return float(hours * 3600 + minutes * 60 + seconds) or None


def replicas(spec: ServiceSpec) -> int:
    """Slots a replicated service wants; 1 where the spec names no number (or no mode at all)."""
    replicated = spec.mode.replicated
    return replicated.replicas if replicated.HasField("replicas") else 1


def default_update_config() -> UpdateConfig:
    return UpdateConfig(
        parallelism=1,
        failure_action=FAILURE_ACTION_PAUSE,
        monitor_ns=nanoseconds(constants.UPDATE_MONITOR_S),
        order=UPDATE_ORDER_STOP_FIRST,
    )


def normalize_service_spec(spec: ServiceSpec) -> ServiceSpec:
    """A copy with every implied choice written down; the deprecated ``Networks`` moves to the task template."""
    full = ServiceSpec()
    full.CopyFrom(spec)
    template = full.task_template
    if full.networks:
        if not template.networks:
            template.networks.extend(full.networks)
        del full.networks[:]
    if full.mode.WhichOneof("mode") is None:
        full.mode.replicated.SetInParent()
    if full.mode.HasField("replicated"):
        full.mode.replicated.replicas = replicas(full)
    for name in ("update_config", "rollback_config"):
        if full.HasField(name):
            config: UpdateConfig = getattr(full, name)
            config.failure_action = config.failure_action or FAILURE_ACTION_PAUSE
            config.order = config.order or UPDATE_ORDER_STOP_FIRST
    if template.HasField("restart_policy"):
        template.restart_policy.condition = template.restart_policy.condition or RESTART_CONDITION_ANY
    if template.HasField("container_spec"):
        template.runtime = template.runtime or "container"
        for mount in template.container_spec.mounts:
            mount.type = mount.type.lower() or "bind"
    if full.HasField("endpoint_spec"):
        full.endpoint_spec.mode = full.endpoint_spec.mode or ENDPOINT_MODE_VIP
        for port in full.endpoint_spec.ports:
            port.protocol = port.protocol or PORT_PROTOCOL_TCP
            port.publish_mode = port.publish_mode or PUBLISH_MODE_INGRESS
    return full


def insert_defaults(spec: ServiceSpec) -> ServiceSpec:
    """A copy of ``spec`` with every default written out, as ``GET /services/{id}?insertDefaults=true`` shows it."""
    full = ServiceSpec()
    full.CopyFrom(spec)
    template = full.task_template
    if template.HasField("container_spec"):
        container = template.container_spec
        if not container.HasField("stop_grace_period_ns"):
            container.stop_grace_period_ns = nanoseconds(constants.STOP_GRACE_PERIOD_S)
        container.dns_config.SetInParent()
    template.resources.limits.SetInParent()
    template.resources.reservations.SetInParent()
    template.placement.SetInParent()
    policy = template.restart_policy
    if not policy.HasField("delay_ns"):
        policy.delay_ns = nanoseconds(constants.RESTART_DELAY_S)
    if not policy.HasField("max_attempts"):
        policy.max_attempts = 0
    if not full.HasField("update_config"):
        full.update_config.CopyFrom(default_update_config())
    if not full.HasField("rollback_config"):
        full.rollback_config.CopyFrom(default_update_config())
    for config in (full.update_config, full.rollback_config):
        config.monitor_ns = config.monitor_ns or nanoseconds(constants.UPDATE_MONITOR_S)
    full.endpoint_spec.SetInParent()
    return normalize_service_spec(full)


def comparable(spec: ServiceSpec) -> ServiceSpec:
    """A copy of ``spec`` in the form that all have which ask for the same: defaults written out, the image's name in full.

    Docker's client adds ``:latest`` to the image of a service with whatever it changes of it, and its ``stack deploy`` sends
    privileges that say nothing.
    """
    full = insert_defaults(spec)
    if full.task_template.HasField("container_spec"):
        container = full.task_template.container_spec
        container.image = normalized(container.image)
        if not container.privileges.ByteSize():
            container.ClearField("privileges")
    return full
