"""A service's ``deploy`` section to the model."""

from __future__ import annotations

import re

from cli import values
from cli.composefile import keys
from cli.composefile.cursor import Cursor
from cli.composefile.model import Deploy, GenericResource, Placement, Resources, RestartPolicy, UpdateConfig


def read_deploy(deploy: Cursor, restart: Cursor) -> Deploy:
    """The section, whose keys are known to be of it.

    Args:
        restart: the service's ``restart``, which counts where the section has no policy.

    Raises: ManifestError.
    """
    resources = deploy.get("resources", keys.RESOURCES)
    return Deploy(
        at=deploy.place,
        mode=deploy.get("mode").optional_text(),
        replicas=deploy.get("replicas").read(Cursor.integer),
        endpoint_mode=deploy.get("endpoint_mode").read(lambda cursor: cursor.choice("vip", "dnsrr")),
        labels=deploy.get("labels").text_map(),
        limits=_resources(resources.get("limits", keys.LIMITS)),
        reservations=_resources(resources.get("reservations", keys.RESERVATIONS)),
        restart_policy=_restart(deploy.get("restart_policy", keys.RESTART), restart),
        placement=_placement(deploy.get("placement", keys.PLACEMENT)),
        update_config=deploy.get("update_config").read(lambda cursor: _update(cursor, "continue", "pause", "rollback")),
        rollback_config=deploy.get("rollback_config").read(
            lambda cursor: _update(cursor, "continue", "pause", "rollback")
        ),
    )


def _resources(part: Cursor) -> Resources:
    return Resources(
        nano_cpus=part.get("cpus").read(lambda cursor: cursor.parse(values.nano_cpus)),
        memory_bytes=part.get("memory").read(Cursor.size_bytes),
        pids=part.get("pids").read(Cursor.integer),
        generic=[_generic(item) for item in part.get("generic_resources").items()],
    )


def _generic(item: Cursor) -> GenericResource:
    item.check(keys.GENERIC_RESOURCE)
    spec = item.get("discrete_resource_spec", keys.DISCRETE_RESOURCE)
    if not spec.get("kind").text():
        raise item.error("needs discrete_resource_spec with kind and value")
    return GenericResource(spec.get("kind").text(), spec.get("value").integer())


def _restart(policy: Cursor, restart: Cursor) -> RestartPolicy:
    word, separator, attempts = restart.text().partition(":")
    if word not in ("", "no", "always", "unless-stopped", "on-failure") and restart.value is not False:
        raise restart.error(f"unknown restart policy: {word[:40]}")
    if separator and (word != "on-failure" or not re.fullmatch("[0-9]{1,9}", attempts)):
        raise restart.error(f"maximum retry count must be a number, and of on-failure: {restart.text()[:40]}")
    if not policy and word not in ("", "no", "false"):
        condition = "on-failure" if word == "on-failure" else "any"
        return RestartPolicy(
            condition=condition,
            delay_ns=None,
            max_attempts=int(attempts or 0) if word == "on-failure" else None,
            window_ns=None,
        )
    return RestartPolicy(
        condition=policy.get("condition").read(lambda cursor: cursor.choice("none", "on-failure", "any")),
        delay_ns=policy.get("delay").read(Cursor.duration_ns),
        max_attempts=policy.get("max_attempts").read(Cursor.integer),
        window_ns=policy.get("window").read(Cursor.duration_ns),
    )


def _placement(placement: Cursor) -> Placement:
    return Placement(
        constraints=placement.get("constraints").texts(),
        preferences=[_spread(item) for item in placement.get("preferences").items()],
        max_replicas_per_node=placement.get("max_replicas_per_node").read(Cursor.integer),
    )


def _spread(item: Cursor) -> str:
    item.check(keys.PREFERENCE)
    if not item.get("spread").text():
        raise item.error("want spread: node.labels.KEY")
    return item.get("spread").text()


def _update(config: Cursor, *actions: str) -> UpdateConfig:
    config.check(keys.UPDATE)
    return UpdateConfig(
        parallelism=config.get("parallelism").read(Cursor.integer),
        delay_ns=config.get("delay").read(Cursor.duration_ns),
        failure_action=config.get("failure_action").read(lambda cursor: cursor.choice(*actions)),
        monitor_ns=config.get("monitor").read(Cursor.duration_ns),
        max_failure_ratio=config.get("max_failure_ratio").read(lambda cursor: cursor.parse(values.ratio)),
        order=config.get("order").read(lambda cursor: cursor.choice("start-first", "stop-first")),
    )
