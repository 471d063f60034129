"""A service of a Compose file to the API's ServiceSpec (features A13.07, A13.08).

What the file leaves out stays out of the spec, as with Docker's command: the daemon knows the defaults, and a
redeploy by either command must not look like a change. Lists are in Docker's order for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import assert_never

from cli import values
from cli.client import Object
from cli.composefile.model import (
    BindMount,
    ComposeFile,
    Deploy,
    Healthcheck,
    Mount,
    PayloadKind,
    PayloadReference,
    Resources,
    Service,
    TmpfsMount,
    UpdateConfig,
    Volume,
    VolumeMount,
)
from cli.composefile.source import Place
from cli.stack.names import IMAGE_LABEL, Namespace
from cli.stack.networks import attachments

# Of the keys that the model has not, Docker's own stack deploy refuses these; it drops the others with a warning, and
# so do we, with the line.
REFUSED = {
    **dict.fromkeys(
        ("cpu_quota", "cpu_shares", "cpuset", "mem_limit", "memswap_limit"),
        "set resource limits using deploy.resources",
    ),
    "extends": "extends is not possible in a stack file",
    "volume_driver": "set the driver in the volume's own section",
    "volumes_from": "use a named volume",
    "credential_spec": "of Windows only",
}


def service_spec(
    namespace: Namespace,
    key: str,
    service: Service,
    file: ComposeFile,
    payloads: Mapping[PayloadKind, Mapping[str, str]],
) -> tuple[Object, list[str]]:
    """The spec of one service, and warnings about it.

    Args:
        file: has the volumes and networks that the service names.
        payloads: names in the swarm of the file's configs and secrets, by key.

    Raises:
        ManifestError: a stack cannot have it, with file and line.
    """
    unread = [place for network in service.networks for place in network.unread]
    warnings = [*unread_warnings([*service.unread, *unread]), *_misread(service)]
    if not service.image:
        raise service.at.error("needs an image (build it and push it to a registry first)")
    deploy = service.deploy
    template: Object = {
        "ContainerSpec": _container(namespace, service, file.volumes, payloads),
        "Resources": _filled({"Limits": _resources(deploy.limits), "Reservations": _resources(deploy.reservations)}),
        "RestartPolicy": _restart(deploy),
        "Placement": _placement(deploy),
        "LogDriver": _filled({"Name": service.logging.driver, "Options": service.logging.options}),
        "Networks": attachments(namespace, key, service, file.networks),
    }
    spec: Object = {
        "Name": namespace.scoped(key),
        "Labels": {**namespace.labelled(deploy.labels), IMAGE_LABEL: service.image},
        "TaskTemplate": {**_filled(template), "ForceUpdate": 0},
        "Mode": _mode(deploy),
        "EndpointSpec": _endpoint(service),
        "UpdateConfig": _update(deploy.update_config),
        "RollbackConfig": _update(deploy.rollback_config),
    }
    return _given(spec), warnings


def unread_warnings(places: Iterable[Place]) -> list[str]:
    """Warnings about keys that are dropped. Raises: ManifestError for one that is refused."""
    warnings = []
    for place in places:
        key = str(place.path[-1])
        if key in REFUSED:
            raise place.error(REFUSED[key])
        warnings.append(f"{place.where}: ignoring unsupported option: {place.dotted}")
    return warnings


def _misread(service: Service) -> Iterator[str]:
    """Warnings about what is deployed, but not as it looks."""
    for port in service.ports:
        if port.host_ip and port.host_ip != "0.0.0.0":  # compared, not bound
            given = f"{port.host_ip}:{port.published or ''}:{port.target}/{port.protocol}"
            yield f"{port.at.where}: ignoring IP-address ({given}) service will listen on '0.0.0.0'"
    for reference in (*service.configs, *service.secrets):
        if reference.odd_mode_at is not None:
            place, mode = reference.odd_mode_at, reference.mode
            yield f"{place.where}: {place.dotted}: {mode} is decimal and gives mode {mode:04o}; write 0{mode} if that is meant"


def _filled(made: Object) -> Object:
    """Without what is empty."""
    return {key: item for key, item in made.items() if item not in ("", [], {}, False, None)}


def _given(made: Object) -> Object:
    """Without what the file does not say; a 0 or false that it says stays."""
    return {key: item for key, item in made.items() if item is not None}


# ---------------------------------------------------------------------- the container


def _container(
    namespace: Namespace,
    service: Service,
    volumes: Mapping[str, Volume],
    payloads: Mapping[PayloadKind, Mapping[str, str]],
) -> Object:
    add, drop = values.capabilities(service.cap_add, service.cap_drop)
    made: Object = {
        "Image": service.image,
        "Labels": namespace.labelled(service.labels),
        "Command": service.entrypoint,
        "Args": service.command,
        "Hostname": service.hostname,
        "Env": sorted(key if value is None else f"{key}={value}" for key, value in service.environment.items()),
        "Dir": service.working_dir,
        "User": service.user,
        "Groups": service.group_add,
        "StopSignal": service.stop_signal,
        "TTY": service.tty,
        "OpenStdin": service.stdin_open,
        "ReadOnly": service.read_only,
        "Hosts": [f"{ip} {host}" for ip, host in service.extra_hosts],
        "CapabilityAdd": add,
        "CapabilityDrop": drop,
        "Isolation": service.isolation,
        "Sysctls": service.sysctls,
        "Ulimits": [
            {"Name": name, "Soft": limit.soft, "Hard": limit.hard} for name, limit in sorted(service.ulimits.items())
        ],
        "Mounts": [
            *(_mount(namespace, mount, volumes) for mount in service.volumes),
            *(_tmpfs(service, text) for text in service.tmpfs),
        ],
        "Configs": _references("config", service, payloads),
        "Secrets": _references("secret", service, payloads),
        "DNSConfig": _filled(
            {"Nameservers": service.dns, "Search": service.dns_search, "Options": service.dns_opt},
        ),
        "Healthcheck": _health(service.healthcheck),
    }
    later = {
        "Init": service.init,
        "OomScoreAdj": service.oom_score_adj,
        "StopGracePeriod": service.stop_grace_period_ns,
    }
    return _filled(made) | _given(later)


def _health(health: Healthcheck | None) -> Object:
    if health is None:
        return {}
    times = {
        "Interval": health.interval_ns,
        "Timeout": health.timeout_ns,
        "StartPeriod": health.start_period_ns,
        "StartInterval": health.start_interval_ns,
        "Retries": health.retries,
    }
    return _filled({"Test": health.test}) | _given(times)


def _references(kind: PayloadKind, service: Service, payloads: Mapping[PayloadKind, Mapping[str, str]]) -> list[Object]:
    """By name, as Docker's command orders them."""
    name = f"{kind.capitalize()}Name"
    for one in service.references(kind):
        if one.source not in payloads[kind]:
            raise one.at.error(f"undefined {kind} {one.source!r}")
    made = [{name: payloads[kind][one.source], "File": _file(one)} for one in service.references(kind)]
    return sorted(made, key=lambda one: str(one[name]))


def _file(reference: PayloadReference) -> Object:
    return {
        "Name": reference.source if reference.target is None else reference.target,
        "UID": "0" if reference.uid is None else reference.uid,
        "GID": "0" if reference.gid is None else reference.gid,
        "Mode": 0o444 if reference.mode is None else reference.mode,
    }


def _mount(namespace: Namespace, mount: Mount, volumes: Mapping[str, Volume]) -> Object:
    made: Object = {"Target": mount.target, "ReadOnly": mount.read_only, "Consistency": mount.consistency}
    match mount:
        case BindMount():
            bind = _given({"Propagation": mount.propagation, "CreateMountpoint": mount.create_host_path})
            bind |= values.BIND_RECURSIVE[mount.recursive or "enabled"]
            made |= {"Type": "bind", "Source": mount.source, "BindOptions": bind}
        case TmpfsMount():
            made |= {"Type": "tmpfs", "TmpfsOptions": _given({"SizeBytes": mount.size_bytes, "Mode": mount.mode})}
        case VolumeMount():
            made |= {"Type": "volume"}
            if mount.source:
                made |= _named_volume(namespace, mount, volumes)
        case _:
            assert_never(mount)
    return _filled(made)


def _tmpfs(service: Service, text: str) -> Object:
    """``TARGET[:size=64m,mode=1777,ro]``. Raises: ManifestError for an option that a service's tmpfs cannot have."""
    target, _, given = text.partition(":")
    made: Object = {"Type": "tmpfs", "Target": target}
    options: Object = {}
    for option in filter(None, given.split(",")):
        name, _, value = option.partition("=")
        try:
            match name:
                case "size":
                    options["SizeBytes"] = values.size_bytes(value)
                case "mode":
                    options["Mode"] = values.file_mode(value)
                case "ro" | "rw":
                    made["ReadOnly"] = name == "ro"
                case _:
                    raise ValueError(f"option {option[:40]!r}: want size, mode, ro or rw")
        except ValueError as error:
            raise service.at.inner("tmpfs").error(str(error)) from error
    return _filled(made | {"TmpfsOptions": options})


def _named_volume(namespace: Namespace, mount: VolumeMount, volumes: Mapping[str, Volume]) -> Object:
    if mount.source not in volumes:
        raise mount.at.error(f"undefined volume {mount.source!r}")
    volume = volumes[mount.source]
    options = _filled({"NoCopy": mount.nocopy, "Subpath": mount.subpath})
    if volume.external:
        return {"Source": mount.source if volume.name is None else volume.name, "VolumeOptions": options}
    options["Labels"] = namespace.labelled(volume.labels)
    if volume.driver or volume.driver_opts:
        options["DriverConfig"] = _filled({"Name": volume.driver, "Options": volume.driver_opts})
    name = namespace.scoped(mount.source) if volume.name is None else volume.name
    return {"Source": name, "VolumeOptions": options}


# ---------------------------------------------------------------------- ports, mode, resources


def _endpoint(service: Service) -> Object:
    ports = []
    for port in sorted(service.ports, key=lambda port: port.published):
        made: Object = {"Protocol": port.protocol, "TargetPort": port.target, "PublishMode": port.mode}
        ports.append(made | ({"PublishedPort": port.published} if port.published else {}))
    return _filled({"Mode": service.deploy.endpoint_mode, "Ports": ports})


def _mode(deploy: Deploy) -> Object:
    mode = "replicated" if deploy.mode is None else deploy.mode
    if mode == "global":
        if deploy.replicas is not None:
            raise deploy.at.inner("replicas").error("replicas can only be used with replicated mode")
        return {"Global": {}}
    if mode != "replicated":
        raise deploy.at.inner("mode").error(f"unknown or unserved mode: {mode[:40]}")
    return {"Replicated": {"Replicas": 1 if deploy.replicas is None else deploy.replicas}}


def _resources(part: Resources) -> Object:
    made = _given({"NanoCPUs": part.nano_cpus, "MemoryBytes": part.memory_bytes, "Pids": part.pids})
    if part.generic:
        made["GenericResources"] = [
            {"DiscreteResourceSpec": {"Kind": one.kind, "Value": one.value}} for one in part.generic
        ]
    return made


def _restart(deploy: Deploy) -> Object:
    policy = deploy.restart_policy
    return _given(
        {
            "Condition": policy.condition,
            "Delay": policy.delay_ns,
            "MaxAttempts": policy.max_attempts,
            "Window": policy.window_ns,
        }
    )


def _placement(deploy: Deploy) -> Object:
    placement = deploy.placement
    return _filled(
        {
            "Constraints": placement.constraints,
            "Preferences": [{"Spread": {"SpreadDescriptor": descriptor}} for descriptor in placement.preferences],
            "MaxReplicas": placement.max_replicas_per_node or 0,
        }
    )


def _update(config: UpdateConfig | None) -> Object | None:
    if config is None:
        return None
    return _given(
        {
            "Parallelism": 1 if config.parallelism is None else config.parallelism,
            "Delay": config.delay_ns,
            "FailureAction": config.failure_action,
            "Monitor": config.monitor_ns,
            "MaxFailureRatio": config.max_failure_ratio,
            "Order": config.order,
        }
    )
