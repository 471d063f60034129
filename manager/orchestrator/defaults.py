"""What holds where a service's spec says nothing.

Absent and zero differ for some fields: an update configuration that is absent as a whole means one slot at a time,
a parallelism of 0 in one that is there means all at once.

Source: swarmkit ``api/defaults/service.go``; features A8.02 to A8.10.
"""

from __future__ import annotations

from dataclasses import dataclass

from manager import constants
from proto.specs_pb2 import (
    ENDPOINT_MODE_UNSPECIFIED,
    ENDPOINT_MODE_VIP,
    FAILURE_ACTION_PAUSE,
    FAILURE_ACTION_UNSPECIFIED,
    RESTART_CONDITION_ANY,
    RESTART_CONDITION_UNSPECIFIED,
    UPDATE_ORDER_STOP_FIRST,
    UPDATE_ORDER_UNSPECIFIED,
    FailureAction,
    RestartCondition,
    RestartPolicy,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
    UpdateOrder,
)

NANOSECONDS = 1_000_000_000


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
    """An update or rollback configuration with nothing left open. ``parallelism`` 0: all slots at once."""

    parallelism: int
    delay_s: float
    failure_action: FailureAction.ValueType
    monitor_s: float
    max_failure_ratio: float
    order: UpdateOrder.ValueType


def restart_rules(spec: TaskSpec) -> RestartRules:
    """The restart policy in force for tasks of ``spec``."""
    policy = spec.restart_policy
    return RestartRules(
        condition=policy.condition or RESTART_CONDITION_ANY,
        delay_s=policy.delay_ns / NANOSECONDS if policy.HasField("delay_ns") else constants.RESTART_DELAY_S,
        max_attempts=policy.max_attempts,
        window_s=policy.window_ns / NANOSECONDS,
    )


def update_rules(spec: ServiceSpec, *, rollback: bool) -> UpdateRules:
    """The update (or rollback) configuration in force for ``spec``."""
    if rollback:
        config = spec.rollback_config if spec.HasField("rollback_config") else default_update_config()
    else:
        config = spec.update_config if spec.HasField("update_config") else default_update_config()
    return UpdateRules(
        parallelism=config.parallelism,
        delay_s=config.delay_ns / NANOSECONDS,
        failure_action=config.failure_action or FAILURE_ACTION_PAUSE,
        monitor_s=config.monitor_ns / NANOSECONDS if config.monitor_ns else constants.UPDATE_MONITOR_S,
        max_failure_ratio=config.max_failure_ratio,
        order=config.order or UPDATE_ORDER_STOP_FIRST,
    )


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


def insert_defaults(spec: ServiceSpec) -> ServiceSpec:
    """A copy of ``spec`` with every default written out, as ``GET /services/{id}?insertDefaults=true`` shows it."""
    full = ServiceSpec()
    full.CopyFrom(spec)
    task = full.task_template
    if task.HasField("container_spec"):
        container = task.container_spec
        if not container.HasField("stop_grace_period_ns"):
            container.stop_grace_period_ns = nanoseconds(constants.STOP_GRACE_PERIOD_S)
        container.dns_config.SetInParent()
    task.resources.limits.SetInParent()
    task.resources.reservations.SetInParent()
    task.placement.SetInParent()
    _fill_restart_policy(task.restart_policy)
    if not full.HasField("update_config"):
        full.update_config.CopyFrom(default_update_config())
    if not full.HasField("rollback_config"):
        full.rollback_config.CopyFrom(default_update_config())
    _fill_update_config(full.update_config)
    _fill_update_config(full.rollback_config)
    if full.endpoint_spec.mode == ENDPOINT_MODE_UNSPECIFIED:
        full.endpoint_spec.mode = ENDPOINT_MODE_VIP
    if full.mode.WhichOneof("mode") is None or (
        full.mode.HasField("replicated") and not full.mode.replicated.HasField("replicas")
    ):
        full.mode.replicated.replicas = 1
    return full


def _fill_restart_policy(policy: RestartPolicy) -> None:
    if policy.condition == RESTART_CONDITION_UNSPECIFIED:
        policy.condition = RESTART_CONDITION_ANY
    if not policy.HasField("delay_ns"):
        policy.delay_ns = nanoseconds(constants.RESTART_DELAY_S)
    if not policy.HasField("max_attempts"):
        policy.max_attempts = 0


def _fill_update_config(config: UpdateConfig) -> None:
    if config.failure_action == FAILURE_ACTION_UNSPECIFIED:
        config.failure_action = FAILURE_ACTION_PAUSE
    if not config.monitor_ns:
        config.monitor_ns = nanoseconds(constants.UPDATE_MONITOR_S)
    if config.order == UPDATE_ORDER_UNSPECIFIED:
        config.order = UPDATE_ORDER_STOP_FIRST
