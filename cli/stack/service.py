"""One entry of a stack file's ``services`` to the API's ServiceSpec (features A13.07, A13.08).

What the file leaves out stays out of the spec, as with Docker's command: the daemon knows the defaults, and a
redeploy by either command must not look like a change.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from cli import values
from cli.composefile import keys
from cli.composefile.cursor import Cursor, assignments
from cli.stack.model import IMAGE_LABEL, Context, Object, read_bytes

ENV_FILE_BYTES_MAX = 2**20


def service_spec(context: Context, key: str, service: Cursor) -> Object:
    """The spec of one service. Raises: ManifestError. Warnings go into the context's stack."""
    warnings = service.check(keys.SERVICE, ignored=keys.SERVICE_IGNORED, refused=keys.SERVICE_REFUSED)
    context.stack.warnings += warnings
    deploy = service.get("deploy", keys.DEPLOY)
    image = service.get("image")
    if not image.text():
        raise service.error("needs an image (build it and push it to a registry first)")
    template: Object = {
        "ContainerSpec": _container(context, service, image.text()),
        "Resources": _resources(deploy),
        "RestartPolicy": _restart(deploy),
        "Placement": _placement(deploy),
        "LogDriver": _log_driver(service),
        "Networks": _networks(service),
    }
    labels = deploy.get("labels").text_map()
    spec: Object = {
        "Name": f"{context.stack.name}_{key}",
        "Labels": {**context.stack.labelled(labels), IMAGE_LABEL: image.text()},
        "TaskTemplate": {**_filled(template), "ForceUpdate": 0},
        "Mode": _mode(deploy),
        "EndpointSpec": _endpoint(service, deploy),
    }
    for name, target in (("update_config", "UpdateConfig"), ("rollback_config", "RollbackConfig")):
        if deploy.get(name):
            spec[target] = _update(deploy.get(name, keys.UPDATE), name)
    return spec


def _filled(made: Object) -> Object:
    """Without what is empty."""
    return {key: item for key, item in made.items() if item not in ("", [], {}, False, None)}


def _read(cursor: Cursor, table: dict[str, tuple[str, Callable[[Cursor], Any]]]) -> Object:
    """The keys that are there, each under its name in the API and as its reader gives it."""
    return {target: read(cursor.get(key)) for key, (target, read) in table.items() if cursor.get(key)}


def _duration(cursor: Cursor) -> int:
    return cursor.parse(values.duration_ns)


# ---------------------------------------------------------------------- the container


def _container(context: Context, service: Cursor, image: str) -> Object:
    made: Object = {
        "Image": image,
        "Labels": context.stack.labelled(service.get("labels").text_map()),
        "Command": _words(service.get("entrypoint")),
        "Args": _words(service.get("command")),
        "Hostname": service.get("hostname").text(),
        "Env": _environment(context, service),
        "Dir": service.get("working_dir").text(),
        "User": service.get("user").text(),
        "Groups": service.get("group_add").texts(),
        "StopSignal": service.get("stop_signal").text(),
        "TTY": service.get("tty").boolean(),
        "OpenStdin": service.get("stdin_open").boolean(),
        "ReadOnly": service.get("read_only").boolean(),
        "Hosts": _hosts(service.get("extra_hosts")),
        "CapabilityAdd": service.get("cap_add").texts(),
        "CapabilityDrop": service.get("cap_drop").texts(),
        "Isolation": service.get("isolation").text(),
        "Sysctls": service.get("sysctls").text_map(),
        "Ulimits": [_ulimit(name, limit) for name, limit in sorted(service.get("ulimits").entries(), key=_first)],
        "Mounts": _mounts(context, service),
        "Configs": _references(context, "config", service.get("configs")),
        "Secrets": _references(context, "secret", service.get("secrets")),
        "DNSConfig": _filled(
            {
                "Nameservers": service.get("dns").texts(),
                "Search": service.get("dns_search").texts(),
                "Options": service.get("dns_opt").texts(),
            }
        ),
        "Healthcheck": _health(service.get("healthcheck", keys.HEALTHCHECK)),
    }
    later = _read(
        service,
        {
            "init": ("Init", Cursor.boolean),
            "oom_score_adj": ("OomScoreAdj", lambda cursor: cursor.integer(-1000)),
            "stop_grace_period": ("StopGracePeriod", _duration),
        },
    )
    return _filled(made) | later


def _words(cursor: Cursor) -> list[str]:
    """A command: a list of words, or a line to be split as a shell does."""
    if isinstance(cursor.value, list):
        return cursor.texts()
    return cursor.parse(values.words) if cursor else []


def _environment(context: Context, service: Cursor) -> list[str]:
    """``environment`` over ``env_file``; a name without a value is taken from the caller's variables."""
    found: dict[str, str | None] = {}
    listed = service.get("env_file")
    for item in listed.items() if isinstance(listed.value, list) else [listed] if listed else []:
        found |= _env_file(context, item)
    found |= service.get("environment").optional_map()
    resolved = {key: context.environment.get(key) if item is None else item for key, item in found.items()}
    return sorted(f"{key}={item}" for key, item in resolved.items() if item is not None)


def _env_file(context: Context, item: Cursor) -> dict[str, str | None]:
    name = item
    if isinstance(item.value, dict):
        item.check(keys.ENV_FILE)
        name = item.get("path")
        required = item.get("required")
        if required and not required.boolean() and not (context.directory / name.text()).exists():
            return {}
    data = read_bytes(name, context.directory, ENV_FILE_BYTES_MAX)
    try:
        return assignments(values.environment_file(data.decode()))
    except ValueError as error:
        raise name.error(f"{name.text()}: {error}") from error


def _hosts(cursor: Cursor) -> list[str]:
    """``host:ip`` entries or a mapping, as the lines "ip host" of the API."""
    if isinstance(cursor.value, dict):
        return sorted(f"{ip.text()} {host}" for host, ip in cursor.entries())
    made = []
    for item in cursor.items():
        host, separator, ip = item.text().replace("=", ":", 1).partition(":")
        if not separator or not host or not ip:
            raise item.error(f"want host:ip, got {item.text()[:80]!r}")
        made.append(f"{ip} {host}")
    return made


def _ulimit(name: str, limit: Cursor) -> Object:
    if isinstance(limit.value, dict):
        limit.check(keys.ULIMIT)
        return {"Name": name, "Soft": limit.get("soft").integer(-1), "Hard": limit.get("hard").integer(-1)}
    return {"Name": name, "Soft": limit.integer(-1), "Hard": limit.integer(-1)}


def _health(health: Cursor) -> Object:
    test = health.get("test")
    if health.get("disable").boolean():
        if test:
            raise test.error("test and disable can't both be set")
        return {"Test": ["NONE"]}
    words = test.texts() if isinstance(test.value, list) else ["CMD-SHELL", test.text()] if test else []
    if isinstance(test.value, list) and words and words[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise test.error(f"must begin with NONE, CMD or CMD-SHELL, got {words[0][:40]!r}")
    table: dict[str, tuple[str, Callable[[Cursor], Any]]] = {
        "interval": ("Interval", _duration),
        "timeout": ("Timeout", _duration),
        "start_period": ("StartPeriod", _duration),
        "start_interval": ("StartInterval", _duration),
        "retries": ("Retries", Cursor.integer),
    }
    return ({"Test": words} if words else {}) | _read(health, table)


def _first(pair: tuple[str, Cursor]) -> str:
    return pair[0]


def _references(context: Context, kind: str, listed: Cursor) -> list[Object]:
    """By name, as Docker's command orders them: another order would look like a change."""
    made = [_reference(context, kind, item) for item in listed.items()]
    return sorted(made, key=lambda one: str(one[f"{kind.capitalize()}Name"]))


def _reference(context: Context, kind: str, item: Cursor) -> Object:
    """A config or secret of a service, in short (its key) or long form."""
    source, target, mode, owners = item, item, item, ("0", "0")
    if isinstance(item.value, dict):
        item.check(keys.BLOB_REFERENCE)
        source, target, mode = item.get("source"), item.get("target"), item.get("mode")
        owners = item.get("uid").text("0"), item.get("gid").text("0")
    key = source.text()
    if key not in context.blobs[kind]:
        raise item.error(f"undefined {kind} {key!r}")
    long = item is not source
    return {
        f"{kind.capitalize()}Name": context.blobs[kind][key],
        "File": {
            "Name": target.text(key) if long else key,
            "UID": owners[0],
            "GID": owners[1],
            "Mode": _file_mode(mode) if long and mode else 0o444,
        },
    }


def _file_mode(mode: Cursor) -> int:
    """``0440`` is octal already; as text (quoted, or out of a variable) it is read as octal too."""
    found = mode.parse(values.file_mode) if isinstance(mode.value, str) else mode.integer()
    if found > 0o7777:
        raise mode.error(f"is no file mode: {found:o}")
    return found


# ---------------------------------------------------------------------- mounts


def _mounts(context: Context, service: Cursor) -> list[Object]:
    made = [_mount(context, item) for item in service.get("volumes").items()]
    return made + [{"Type": "tmpfs", "Target": text.partition(":")[0]} for text in service.get("tmpfs").texts()]


def _mount(context: Context, item: Cursor) -> Object:
    mount = item if isinstance(item.value, dict) else item.instead(_short_volume(item))
    mount.check(keys.MOUNT)
    kind = mount.get("type").choice("volume", "bind", "tmpfs") if mount.get("type") else "volume"
    target, origin = mount.get("target").text(), mount.get("source").text()
    if not target:
        raise item.error("target is required")
    for other in {"bind", "volume", "tmpfs"} - {kind}:
        if mount.get(other):
            raise mount.get(other).error(f"does not go with type {kind}")
    made: Object = {"Type": kind, "Target": target, "ReadOnly": mount.get("read_only").boolean()}
    if consistency := mount.get("consistency"):
        made["Consistency"] = consistency.text()
    if kind == "bind":
        if not origin:
            raise item.error("source is required of a bind mount")
        made |= {"Source": _absolute(context, origin), "BindOptions": _bind(mount.get("bind", keys.MOUNT_BIND))}
    elif kind == "tmpfs":
        made["TmpfsOptions"] = _read(
            mount.get("tmpfs", keys.MOUNT_TMPFS),
            {"size": ("SizeBytes", lambda cursor: cursor.parse(values.size_bytes)), "mode": ("Mode", _file_mode)},
        )
    elif origin:
        made |= _named_volume(context, item, origin, mount.get("volume", keys.MOUNT_VOLUME))
    return _filled(made)


def _absolute(context: Context, origin: str) -> str:
    """A path of this host as the caller means it; links on the way are left to the node."""
    return os.path.normpath(os.path.join(os.path.abspath(context.directory), os.path.expanduser(origin)))


def _bind(bind: Cursor) -> Object:
    return _read(
        bind,
        {
            "propagation": ("Propagation", Cursor.text),
            "create_host_path": ("CreateMountpoint", Cursor.boolean),
        },
    )


def _named_volume(context: Context, item: Cursor, name: str, options: Cursor) -> Object:
    if name not in context.volumes:
        raise item.error(f"undefined volume {name!r}")
    volume = context.volumes[name]
    made = _filled({"NoCopy": options.get("nocopy").boolean(), "Subpath": options.get("subpath").text()})
    external = volume.get("external")
    if isinstance(external.value, dict) or external.boolean():
        named = external.get("name") if isinstance(external.value, dict) else volume.get("name")
        return _filled({"Source": named.text(name), "VolumeOptions": made})
    made["Labels"] = context.stack.labelled(volume.get("labels").text_map())
    driver, driver_options = volume.get("driver").text(), volume.get("driver_opts").text_map()
    if driver or driver_options:
        made["DriverConfig"] = _filled({"Name": driver, "Options": driver_options})
    return {"Source": volume.get("name").text(f"{context.stack.name}_{name}"), "VolumeOptions": made}


def _short_volume(item: Cursor) -> Object:
    """``[SOURCE:]TARGET[:MODE[,MODE...]]``."""
    text = item.text()
    parts = text.split(":")
    if not text or len(parts) > 3 or not all(parts):
        raise item.error(f"invalid spec: {text[:100]}: want [SOURCE:]TARGET[:MODE]")
    made: Object = {"type": "volume", "target": parts[-1]}
    if len(parts) > 1 and not parts[-1].startswith("/"):
        modes = parts.pop().split(",")
        for mode in modes:
            if mode not in ("ro", "rw", "nocopy", "z", "Z", "cached", "delegated", "consistent"):
                raise item.error(f"invalid spec: {text[:100]}: unknown mode {mode[:40]!r}")
        made = {"type": "volume", "target": parts[-1], "read_only": "ro" in modes}
        if "nocopy" in modes:
            made["volume"] = {"nocopy": True}
    if len(parts) > 2:
        raise item.error(f"invalid spec: {text[:100]}: unknown mode {parts[-1][:40]!r}")
    if len(parts) == 2:
        made["source"] = parts[0]
        if parts[0].startswith(("/", ".", "~")):
            made["type"] = "bind"
            made.pop("volume", None)
    return made


# ---------------------------------------------------------------------- network, mode, resources


def _networks(service: Cursor) -> list[Object]:
    networks, mode = service.get("networks"), service.get("network_mode")
    if networks:
        raise networks.error("networks of stacks are not served yet")
    if not mode or mode.text() == "bridge":
        return []
    if mode.text() not in ("host", "none"):
        raise mode.error(f"{mode.text()[:40]} is not served: want bridge, host or none")
    return [{"Target": mode.text()}]


def _endpoint(service: Cursor, deploy: Cursor) -> Object:
    made: Object = {}
    if mode := deploy.get("endpoint_mode"):
        made["Mode"] = mode.choice("vip", "dnsrr")
    ports: list[Object] = []
    for item in service.get("ports").items():
        ports += _port(item) if isinstance(item.value, dict) else item.parse(values.port)
    if ports:
        made["Ports"] = sorted(ports, key=lambda port: int(port.get("PublishedPort", 0)))
    return made


def _port(item: Cursor) -> list[Object]:
    item.check(keys.PORT)
    target, published = item.get("target"), item.get("published")
    if not target:
        raise item.error("target is required")
    made: Object = {
        "Protocol": item.get("protocol").choice("tcp", "udp", "sctp") if item.get("protocol") else "tcp",
        "TargetPort": target.parse(values.port_number),
        "PublishMode": item.get("mode").choice("ingress", "host") if item.get("mode") else "ingress",
    }
    if published and published.text() != "0":
        made["PublishedPort"] = published.parse(values.port_number)
    return [made]


def _mode(deploy: Cursor) -> Object:
    mode, replicas = deploy.get("mode"), deploy.get("replicas")
    if mode.text("replicated") == "global":
        if replicas:
            raise replicas.error("replicas can only be used with replicated mode")
        return {"Global": {}}
    if mode.text("replicated") != "replicated":
        raise mode.error(f"unknown or unserved mode: {mode.text()[:40]}")
    return {"Replicated": {"Replicas": replicas.integer() if replicas else 1}}


def _resources(deploy: Cursor) -> Object:
    resources = deploy.get("resources", {"limits", "reservations"})
    made: Object = {}
    for part, known in (("limits", keys.LIMITS), ("reservations", keys.RESERVATIONS)):
        found = resources.get(part, known)
        entry = _read(
            found,
            {
                "cpus": ("NanoCPUs", lambda cursor: cursor.parse(values.nano_cpus)),
                "memory": ("MemoryBytes", lambda cursor: cursor.parse(values.size_bytes)),
                "pids": ("Pids", Cursor.integer),
            },
        )
        if generic := found.get("generic_resources").items():
            entry["GenericResources"] = [_generic(item) for item in generic]
        if entry:
            made[part.capitalize()] = entry
    return made


def _generic(item: Cursor) -> Object:
    item.check(keys.GENERIC_RESOURCE)
    spec = item.get("discrete_resource_spec", keys.DISCRETE_RESOURCE)
    if not spec.get("kind").text():
        raise item.error("needs discrete_resource_spec with kind and value")
    return {"DiscreteResourceSpec": {"Kind": spec.get("kind").text(), "Value": spec.get("value").integer()}}


def _restart(deploy: Cursor) -> Object:
    return _read(
        deploy.get("restart_policy", keys.RESTART),
        {
            "condition": ("Condition", lambda cursor: cursor.choice("none", "on-failure", "any")),
            "delay": ("Delay", _duration),
            "max_attempts": ("MaxAttempts", Cursor.integer),
            "window": ("Window", _duration),
        },
    )


def _placement(deploy: Cursor) -> Object:
    placement = deploy.get("placement", keys.PLACEMENT)
    preferences = []
    for item in placement.get("preferences").items():
        item.check(keys.PREFERENCE)
        if not item.get("spread").text():
            raise item.error("want spread: node.labels.KEY")
        preferences.append({"Spread": {"SpreadDescriptor": item.get("spread").text()}})
    most = placement.get("max_replicas_per_node")
    return _filled(
        {
            "Constraints": placement.get("constraints").texts(),
            "Preferences": preferences,
            "MaxReplicas": most.integer() if most else 0,
        }
    )


def _log_driver(service: Cursor) -> Object:
    logging = service.get("logging", keys.LOGGING)
    return _filled({"Name": logging.get("driver").text(), "Options": logging.get("options").text_map()})


def _update(config: Cursor, name: str) -> Object:
    actions = ("continue", "pause") if name == "rollback_config" else ("continue", "pause", "rollback")
    return {"Parallelism": 1} | _read(
        config,
        {
            "parallelism": ("Parallelism", Cursor.integer),
            "delay": ("Delay", _duration),
            "failure_action": ("FailureAction", lambda cursor: cursor.choice(*actions)),
            "monitor": ("Monitor", _duration),
            "max_failure_ratio": ("MaxFailureRatio", lambda cursor: cursor.parse(values.ratio)),
            "order": ("Order", lambda cursor: cursor.choice("start-first", "stop-first")),
        },
    )
