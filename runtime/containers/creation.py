"""From a create request and an image to a checked record: pure but for the look at the host that mounts need."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from runtime.containers import capabilities, limits, logs, restart, signals, spec, working_dir
from runtime.containers.container import Container
from runtime.containers.mounts import MountRequest
from runtime.errors import InvalidParameterError
from runtime.images import ImageConfig
from runtime.networks.ports import requests as port_requests
from runtime.types import (
    TASK_ID_LABEL,
    ContainerConfig,
    HealthConfig,
    HostConfig,
)

_INHERITED_MODES = {"ro", "rw", "z", "Z", "cached", "delegated", "consistent"}


def merge(config: ContainerConfig, image: ImageConfig) -> ContainerConfig:
    """The request's configuration with the image's defaults filled in (moby daemon/commit.go, ``merge``).

    A request's entrypoint drops the image's command; environment, labels, ports and volumes add up.
    """
    command, entrypoint = config.Cmd, config.Entrypoint
    if not entrypoint:
        command = command or image.Cmd
        if entrypoint is None:
            entrypoint = image.Entrypoint
    names = {item.partition("=")[0] for item in config.Env or ()}
    env = [item for item in image.Env or () if item.partition("=")[0] not in names] + list(config.Env or ())
    return msgspec.structs.replace(
        config,
        User=config.User or image.User,
        Cmd=list(command) if command else None,
        Entrypoint=[part for part in entrypoint if part] or None if entrypoint else None,
        Env=env,
        Labels={**_labels(image), **(config.Labels or {})},
        ExposedPorts={**(image.ExposedPorts or {}), **(config.ExposedPorts or {})} or None,
        Volumes={**(image.Volumes or {}), **(config.Volumes or {})} or None,
        WorkingDir=config.WorkingDir or image.WorkingDir,
        StopSignal=config.StopSignal or image.StopSignal,
        StopTimeout=config.StopTimeout if config.StopTimeout is not None else image.StopTimeout,
        Healthcheck=_healthcheck(config.Healthcheck, image),
        Shell=config.Shell or image.Shell,
    )


def _labels(image: ImageConfig) -> dict[str, str]:
    """An image makes no container a task's: one that was committed from a task's names a task that is another's, or gone."""
    return {name: value for name, value in (image.Labels or {}).items() if name != TASK_ID_LABEL}


def _healthcheck(own: HealthConfig | None, image: ImageConfig) -> HealthConfig | None:
    base = image.Healthcheck
    if base is None or not base.Test:
        return own
    inherited = HealthConfig(
        Test=list(base.Test),
        Interval=base.Interval,
        Timeout=base.Timeout,
        StartPeriod=base.StartPeriod,
        StartInterval=base.StartInterval,
        Retries=base.Retries,
    )
    if own is None:
        return inherited
    return HealthConfig(
        Test=own.Test or inherited.Test,
        Interval=own.Interval or inherited.Interval,
        Timeout=own.Timeout or inherited.Timeout,
        StartPeriod=own.StartPeriod or inherited.StartPeriod,
        StartInterval=own.StartInterval or inherited.StartInterval,
        Retries=own.Retries or inherited.Retries,
    )


def validate(config: ContainerConfig, host: HostConfig, facts: spec.HostFacts) -> list[str]:
    """Everything that can be refused before anything is made; returns warnings. Raises InvalidParameterError."""
    spec.command(config)
    capabilities.effective(host.CapAdd or (), host.CapDrop or (), privileged=host.Privileged, available=())
    limits.check(host, facts.capacity)
    spec.resources(host, facts)
    spec.rlimits(host)
    spec.parse_security(host.SecurityOpt or ())
    restart.validate(host)
    logs.validate(host)
    port_requests(config, host)
    if config.StopSignal:
        signals.parse(config.StopSignal)
    if config.WorkingDir and not config.WorkingDir.startswith("/"):
        raise InvalidParameterError(
            f"the working directory '{config.WorkingDir}' is invalid, it needs to be an absolute path"
        )
    working_dir.refuse_proc(config.WorkingDir)
    for item in config.Env or ():
        if not item or item.startswith("="):
            raise InvalidParameterError(f"invalid environment variable: {item}")
    _check_health(config.Healthcheck)
    _check_unserved(host)
    warnings = []
    if host.PortBindings and host.NetworkMode == "host":
        warnings.append("Published ports are discarded when using host network mode")
    return warnings


def _check_health(check: HealthConfig | None) -> None:
    if check is None:
        return
    if check.Test and check.Test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise InvalidParameterError(f"Unknown healthcheck type '{check.Test[0]}' (expected 'CMD')")
    for name in ("Interval", "Timeout", "StartPeriod", "StartInterval"):
        if getattr(check, name) and getattr(check, name) < 1_000_000:
            raise InvalidParameterError(f"{name} in Healthcheck cannot be less than 1ms")
    if check.Retries < 0:
        raise InvalidParameterError("Retries in Healthcheck cannot be negative")


def _check_unserved(host: HostConfig) -> None:
    """What this engine does not do is refused, never silently dropped."""
    if host.Runtime not in ("", "runc", "io.containerd.runc.v2"):
        raise InvalidParameterError(f"unknown or invalid runtime name: {host.Runtime}")
    if host.DeviceRequests:
        raise InvalidParameterError('could not select device driver "" with capabilities: [[gpu]]')
    if host.VolumeDriver not in ("", "local") and any(not bind.startswith("/") for bind in host.Binds or ()):
        raise InvalidParameterError(
            f'error looking up volume plugin {host.VolumeDriver}: plugin "{host.VolumeDriver}" not found'
        )
    for option, value in (
        ("--cgroup-parent", host.CgroupParent),
        ("--cpu-rt-period", host.CpuRealtimePeriod),
        ("--cpu-rt-runtime", host.CpuRealtimeRuntime),
        ("--blkio-weight-device", host.BlkioWeightDevice),
        ("--device-read-bps", host.BlkioDeviceReadBps),
        ("--device-write-bps", host.BlkioDeviceWriteBps),
        ("--device-read-iops", host.BlkioDeviceReadIOps),
        ("--device-write-iops", host.BlkioDeviceWriteIOps),
    ):
        if value:
            raise InvalidParameterError(f"{option} is not served: run without it")
    for rule in host.DeviceCgroupRules or ():
        spec.device_rule(rule)
    if host.UsernsMode not in ("", "host"):
        raise InvalidParameterError(f"invalid USER mode: {host.UsernsMode}")
    if host.Isolation not in ("", "default"):
        raise InvalidParameterError(f"invalid isolation '{host.Isolation}' on linux")
    if host.StorageOpt:
        raise InvalidParameterError("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
    if host.CgroupnsMode not in ("", "host", "private"):
        raise InvalidParameterError(f"invalid cgroup namespace mode: {host.CgroupnsMode}")
    if host.IpcMode not in ("", "none", "private", "shareable", "host") and not host.IpcMode.startswith("container:"):
        raise InvalidParameterError(f"invalid IPC mode: {host.IpcMode}")
    if host.PidMode not in ("", "host") and not host.PidMode.startswith("container:"):
        raise InvalidParameterError(f"invalid PID mode: {host.PidMode}")


def inherited_mounts(host: HostConfig, sources: Sequence[Container]) -> list[MountRequest]:
    """Mounts of ``VolumesFrom``, each entry "container[:MODE]"; ``sources`` are those containers in order.

    They are as they are there: a subpath stays one, what is read-only stays so. Raises InvalidParameterError.
    """
    found = []
    for entry, source in zip(host.VolumesFrom or (), sources, strict=True):
        _, sep, mode = entry.partition(":")
        options = mode.split(",") if sep else []
        if set(options) - _INHERITED_MODES:
            raise InvalidParameterError(f"invalid mode: {mode}")
        found += [
            msgspec.structs.replace(request, read_only=request.read_only or "ro" in options, mode="", copy=False)
            for request in source.record.Requests
            if request.kind != "tmpfs"
        ]
    return found
