"""A merged stack file to the API's objects. Pure; the deploy step (``cli.stack.deploy``) talks to the daemon.

Names get the stack's prefix and everything the label ``com.docker.stack.namespace``, as Docker's CLI does (A13.01),
so either command manages the stacks of the other.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli import values
from cli.stack import keys
from cli.stack.source import ManifestError, Path_, Source

NAMESPACE_LABEL = "com.docker.stack.namespace"
IMAGE_LABEL = "com.docker.stack.image"

Object = dict[str, Any]


@dataclass
class Stack:
    """What is to be deployed.

    Attributes:
        services: ServiceSpecs; secret and config references have names and no IDs yet.
        configs, secrets: specs to create or update, by name.
        external: names of configs and secrets that must be there already.
        warnings: for stderr.
    """

    name: str
    services: list[Object] = field(default_factory=list)
    configs: dict[str, Object] = field(default_factory=dict)
    secrets: dict[str, Object] = field(default_factory=dict)
    external: dict[str, set[str]] = field(default_factory=lambda: {"config": set(), "secret": set()})
    warnings: list[str] = field(default_factory=list)


def convert(source: Source, name: str, environment: Mapping[str, str]) -> Stack:
    """The stack that a file describes.

    Args:
        environment: where ``environment:`` entries without a value get theirs.

    Raises:
        ManifestError: what is wrong, with file and line.
    """
    top, _ = keys.check(source, (), source.value, keys.TOP)
    stack = Stack(name)
    if not top.get("services"):
        raise ManifestError(f"{source.name}:1: no services")
    for key in top.get("networks") or {}:
        raise source.error(
            ("networks", key), "networks of stacks are not served yet; every task is on its node's bridge"
        )
    blobs = {kind: _blobs(source, stack, kind, top.get(f"{kind}s") or {}, environment) for kind in ("config", "secret")}
    volumes = {
        key: keys.check(source, ("volumes", key), value, keys.VOLUME)[0]
        for key, value in (top.get("volumes") or {}).items()
    }
    services = top["services"]
    if not isinstance(services, dict):
        raise source.error(("services",), "must be a mapping")
    for key, value in services.items():
        stack.services.append(_Service(source, stack, key, value, blobs, volumes, environment).spec())
    return stack


def labelled(stack: str, labels: Mapping[str, str]) -> dict[str, str]:
    return {**labels, NAMESPACE_LABEL: stack}


def _blobs(source: Source, stack: Stack, kind: str, found: Object, environment: Mapping[str, str]) -> dict[str, str]:
    """Top-level configs or secrets: key to full name; their specs go into ``stack``."""
    names: dict[str, str] = {}
    for key, raw in found.items():
        path: Path_ = (f"{kind}s", key)
        value, _ = keys.check(source, path, raw, keys.BLOB)
        names[key] = value.get("name") or (key if value.get("external") else f"{stack.name}_{key}")
        if value.get("external"):
            if isinstance(value["external"], dict):
                names[key] = value["external"].get("name", key)
            stack.external[kind].add(names[key])
            continue
        spec: Object = {
            "Name": names[key],
            "Labels": labelled(stack.name, _mapping(source, (*path, "labels"), value.get("labels"))),
        }
        spec["Data"] = base64.b64encode(_payload(source, path, value, environment)).decode()
        if value.get("template_driver"):
            spec["Templating"] = {"Name": value["template_driver"]}
        (stack.configs if kind == "config" else stack.secrets)[names[key]] = spec
    return names


def _payload(source: Source, path: Path_, value: Object, environment: Mapping[str, str]) -> bytes:
    if "content" in value:
        return str(value["content"]).encode()
    if "environment" in value:
        if value["environment"] not in environment:
            raise source.error((*path, "environment"), f"variable {value['environment']} is not set")
        return environment[value["environment"]].encode()
    if "file" not in value:
        raise source.error(path, "needs file, content or environment, or external: true")
    file = source.directory / str(value["file"])
    try:
        return file.read_bytes()
    except OSError as error:
        raise source.error((*path, "file"), f"{file}: {error.strerror}") from error


class _Service:
    """One entry of ``services``."""

    def __init__(
        self,
        source: Source,
        stack: Stack,
        key: str,
        value: Any,
        blobs: Mapping[str, Mapping[str, str]],
        volumes: Mapping[str, Object],
        environment: Mapping[str, str],
    ) -> None:
        self._source, self._stack, self._key = source, stack, key
        self._blobs, self._volumes, self._environment = blobs, volumes, environment
        self._path: Path_ = ("services", key)
        self._value, warnings = keys.check(
            source, self._path, value, keys.SERVICE, ignored=keys.SERVICE_IGNORED, refused=keys.SERVICE_REFUSED
        )
        stack.warnings += warnings
        self._deploy, _ = keys.check(source, (*self._path, "deploy"), self._value.get("deploy"), keys.DEPLOY)

    def spec(self) -> Object:
        """The ServiceSpec."""
        image = self._value.get("image")
        if not image:
            raise self._source.error(self._path, "needs an image (build it and push it to a registry first)")
        labels = _mapping(self._source, (*self._path, "deploy", "labels"), self._deploy.get("labels"))
        template: Object = {
            "ContainerSpec": self._container(str(image)),
            "Resources": self._resources(),
            "RestartPolicy": self._restart(),
            "Placement": self._placement(),
            "ForceUpdate": 0,
        }
        if logging := self._sub(self._value, "logging", keys.LOGGING):
            template["LogDriver"] = {"Name": logging.get("driver", ""), "Options": _strings(logging.get("options"))}
        if networks := self._networks():
            template["Networks"] = networks
        spec: Object = {
            "Name": f"{self._stack.name}_{self._key}",
            "Labels": {**labelled(self._stack.name, labels), IMAGE_LABEL: str(image)},
            "TaskTemplate": {key: value for key, value in template.items() if value not in ({}, None)},
            "Mode": self._mode(),
            "EndpointSpec": self._endpoint(),
        }
        for name, key in (("update_config", "UpdateConfig"), ("rollback_config", "RollbackConfig")):
            if name in self._deploy:
                spec[key] = self._update(name)
        return spec

    # ------------------------------------------------------------------ helpers

    def _sub(self, value: Object, key: str, known: set[str], *prefix: str) -> Object:
        return keys.check(self._source, (*self._path, *prefix, key), value.get(key), known)[0]

    def _parse(self, path: Sequence[str | int], function: Callable[[str], Any], value: Any) -> Any:
        try:
            return function(str(value))
        except ValueError as error:
            raise self._source.error((*self._path, *path), str(error)) from error

    def _integer(self, path: Sequence[str | int], value: Any) -> int:
        if isinstance(value, bool) or not str(value).lstrip("-").isdecimal():
            raise self._source.error((*self._path, *path), f"want an integer, got {value!r}")
        return int(value)

    def _words(self, key: str) -> list[str]:
        value = self._value.get(key)
        if value is None:
            return []
        if isinstance(value, str):
            return shlex.split(value)
        return self._list(key)

    def _list(self, key: str) -> list[str]:
        value = self._value.get(key)
        if value is None:
            return []
        if isinstance(value, str | int | float):
            return [str(value)]
        if not isinstance(value, list):
            raise self._source.error((*self._path, key), "must be a list")
        return [str(item) for item in value]

    # ------------------------------------------------------------------ parts

    def _container(self, image: str) -> Object:
        value = self._value
        made: Object = {
            "Image": image,
            "Labels": labelled(self._stack.name, _mapping(self._source, (*self._path, "labels"), value.get("labels"))),
            "Command": self._words("entrypoint"),
            "Args": self._words("command"),
            "Hostname": value.get("hostname", ""),
            "Env": self._env(),
            "Dir": value.get("working_dir", ""),
            "User": str(value.get("user", "")),
            "Groups": self._list("group_add"),
            "StopSignal": value.get("stop_signal", ""),
            "TTY": bool(value.get("tty", False)),
            "OpenStdin": bool(value.get("stdin_open", False)),
            "ReadOnly": bool(value.get("read_only", False)),
            "Hosts": self._hosts(),
            "CapabilityAdd": self._list("cap_add"),
            "CapabilityDrop": self._list("cap_drop"),
            "Sysctls": _mapping(self._source, (*self._path, "sysctls"), value.get("sysctls")),
            "Ulimits": self._ulimits(),
            "Mounts": self._mounts(),
            "Configs": [
                self._reference("config", index, item) for index, item in enumerate(value.get("configs") or ())
            ],
            "Secrets": [
                self._reference("secret", index, item) for index, item in enumerate(value.get("secrets") or ())
            ],
            "DNSConfig": {
                key: found
                for key, found in (
                    ("Nameservers", self._list("dns")),
                    ("Search", self._list("dns_search")),
                    ("Options", self._list("dns_opt")),
                )
                if found
            },
        }
        made = {key: item for key, item in made.items() if item not in ("", [], {}, False)}
        if "init" in value:
            made["Init"] = bool(value["init"])
        if "oom_score_adj" in value:
            made["OomScoreAdj"] = self._integer(("oom_score_adj",), value["oom_score_adj"])
        if "stop_grace_period" in value:
            made["StopGracePeriod"] = self._parse(
                ("stop_grace_period",), values.duration_ns, value["stop_grace_period"]
            )
        if health := self._health():
            made["Healthcheck"] = health
        return made

    def _env(self) -> list[str]:
        found: dict[str, str | None] = {}
        for name in self._list("env_file"):
            file = self._source.directory / name
            try:
                lines = file.read_text().splitlines()
            except OSError as error:
                raise self._source.error((*self._path, "env_file"), f"{file}: {error.strerror}") from error
            found.update(_assignments(line for line in lines if line.strip() and not line.lstrip().startswith("#")))
        value = self._value.get("environment") or {}
        if isinstance(value, dict):
            found.update({key: None if item is None else _scalar(item) for key, item in value.items()})
        else:
            found.update(_assignments(str(item) for item in value))
        resolved = {key: self._environment.get(key) if item is None else item for key, item in found.items()}
        return sorted(f"{key}={item}" for key, item in resolved.items() if item is not None)

    def _hosts(self) -> list[str]:
        value = self._value.get("extra_hosts") or []
        pairs = (
            value.items()
            if isinstance(value, dict)
            else (str(item).replace("=", ":", 1).split(":", 1) for item in value)
        )
        return [f"{ip} {host}" for host, ip in pairs]

    def _ulimits(self) -> list[Object]:
        made = []
        for name, value in (self._value.get("ulimits") or {}).items():
            both = value if isinstance(value, dict) else {"soft": value, "hard": value}
            path = ("ulimits", name)
            made.append(
                {
                    "Name": name,
                    "Soft": self._integer(path, both.get("soft", 0)),
                    "Hard": self._integer(path, both.get("hard", 0)),
                }
            )
        return made

    def _health(self) -> Object:
        value = self._sub(self._value, "healthcheck", keys.HEALTHCHECK)
        if not value:
            return {}
        if value.get("disable"):
            return {"Test": ["NONE"]}
        test = value.get("test", [])
        made: Object = {"Test": ["CMD-SHELL", test] if isinstance(test, str) else [str(word) for word in test]}
        for key, name in (
            ("interval", "Interval"),
            ("timeout", "Timeout"),
            ("start_period", "StartPeriod"),
            ("start_interval", "StartInterval"),
        ):
            if key in value:
                made[name] = self._parse(("healthcheck", key), values.duration_ns, value[key])
        if "retries" in value:
            made["Retries"] = self._integer(("healthcheck", "retries"), value["retries"])
        return made

    def _reference(self, kind: str, index: int, item: Any) -> Object:
        path = (*self._path, f"{kind}s", index)
        long = (
            {"source": item} if isinstance(item, str) else keys.check(self._source, path, item, keys.BLOB_REFERENCE)[0]
        )
        key = str(long.get("source", ""))
        if key not in self._blobs[kind]:
            raise self._source.error(path, f"undefined {kind} {key!r}")
        target = long.get("target") or (key if kind == "secret" else f"/{key}")
        mode = long.get("mode", 0o444)
        return {
            f"{kind.capitalize()}Name": self._blobs[kind][key],
            "File": {
                "Name": target,
                "UID": str(long.get("uid", "0")),
                "GID": str(long.get("gid", "0")),
                "Mode": int(mode, 8) if isinstance(mode, str) else mode,
            },
        }

    def _mounts(self) -> list[Object]:
        made = [self._mount(index, item) for index, item in enumerate(self._value.get("volumes") or ())]
        return made + [{"Type": "tmpfs", "Target": text.partition(":")[0]} for text in self._list("tmpfs")]

    def _mount(self, index: int, item: Any) -> Object:
        path = (*self._path, "volumes", index)
        if isinstance(item, str):
            item = _short_volume(item)
        value, _ = keys.check(self._source, path, item, keys.MOUNT)
        kind, origin = value.get("type", "volume"), str(value.get("source", ""))
        if not value.get("target"):
            raise self._source.error(path, "target is required")
        made: Object = {"Type": kind, "Target": value["target"]}
        if value.get("read_only"):
            made["ReadOnly"] = True
        if kind == "bind":
            made["Source"] = str((self._source.directory / Path(origin).expanduser()).resolve())
            bind = value.get("bind") or {}
            options = {"Propagation": bind.get("propagation"), "CreateMountpoint": bind.get("create_host_path")}
            made["BindOptions"] = {key: option for key, option in options.items() if option}
        elif kind == "tmpfs":
            tmpfs = value.get("tmpfs") or {}
            made["TmpfsOptions"] = {"SizeBytes": values.size_bytes(str(tmpfs["size"]))} if "size" in tmpfs else {}
        elif kind == "volume" and origin:
            made.update(self._named_volume(path, origin, value.get("volume") or {}))
        return {key: option for key, option in made.items() if option != {}}

    def _named_volume(self, path: Path_, name: str, options: Object) -> Object:
        if name not in self._volumes:
            raise self._source.error(path, f"undefined volume {name!r}")
        volume = self._volumes[name]
        if volume.get("external"):
            return {"Source": volume.get("name") or name}
        driver = {"Name": volume.get("driver", "local"), "Options": _strings(volume.get("driver_opts"))}
        labels = labelled(self._stack.name, _mapping(self._source, ("volumes", name, "labels"), volume.get("labels")))
        made: Object = {"Labels": labels, "DriverConfig": driver}
        if options.get("nocopy"):
            made["NoCopy"] = True
        if options.get("subpath"):
            made["Subpath"] = options["subpath"]
        return {"Source": volume.get("name") or f"{self._stack.name}_{name}", "VolumeOptions": made}

    def _networks(self) -> list[Object]:
        if self._value.get("networks"):
            raise self._source.error((*self._path, "networks"), "networks of stacks are not served yet")
        mode = self._value.get("network_mode")
        if mode in (None, "bridge"):
            return []
        if mode not in ("host", "none"):
            raise self._source.error((*self._path, "network_mode"), f"{mode} is not served: want bridge, host or none")
        return [{"Target": mode}]

    def _endpoint(self) -> Object:
        made: Object = {}
        if "endpoint_mode" in self._deploy:
            made["Mode"] = self._deploy["endpoint_mode"]
        ports: list[Object] = []
        for index, item in enumerate(self._value.get("ports") or ()):
            path = (*self._path, "ports", index)
            if isinstance(item, dict):
                long, _ = keys.check(self._source, path, item, keys.PORT)
                item = ",".join(f"{key}={value}" for key, value in long.items() if key != "name")
            ports += self._parse(("ports", index), values.port, item)
        if ports:
            made["Ports"] = ports
        return made

    def _mode(self) -> Object:
        mode, replicas = self._deploy.get("mode", "replicated"), self._deploy.get("replicas")
        path = ("deploy", "mode")
        if mode == "global":
            if replicas is not None:
                raise self._source.error(
                    (*self._path, "deploy", "replicas"), "replicas can only be used with replicated mode"
                )
            return {"Global": {}}
        if mode != "replicated":
            raise self._source.error((*self._path, *path), f"unknown or unserved mode: {mode}")
        return {"Replicated": {"Replicas": 1 if replicas is None else self._integer(("deploy", "replicas"), replicas)}}

    def _resources(self) -> Object:
        value = self._sub(self._deploy, "resources", {"limits", "reservations"}, "deploy")
        made: Object = {}
        for part, known in (("limits", keys.LIMITS), ("reservations", keys.RESERVATIONS)):
            found = self._sub(value, part, known, "deploy", "resources")
            entry: Object = {}
            if "cpus" in found:
                entry["NanoCPUs"] = self._parse(("deploy", "resources", part, "cpus"), values.nano_cpus, found["cpus"])
            if "memory" in found:
                entry["MemoryBytes"] = self._parse(
                    ("deploy", "resources", part, "memory"), values.size_bytes, found["memory"]
                )
            if "pids" in found:
                entry["Pids"] = self._integer(("deploy", "resources", part, "pids"), found["pids"])
            if "generic_resources" in found:
                entry["GenericResources"] = [
                    {
                        "DiscreteResourceSpec": {
                            "Kind": one["discrete_resource_spec"]["kind"],
                            "Value": one["discrete_resource_spec"]["value"],
                        }
                    }
                    for one in found["generic_resources"]
                ]
            if entry:
                made[part.capitalize()] = entry
        return made

    def _restart(self) -> Object | None:
        if "restart_policy" not in self._deploy:
            return None
        value = self._sub(self._deploy, "restart_policy", keys.RESTART, "deploy")
        made: Object = {}
        if "condition" in value:
            made["Condition"] = value["condition"]
        for key, name in (("delay", "Delay"), ("window", "Window")):
            if key in value:
                made[name] = self._parse(("deploy", "restart_policy", key), values.duration_ns, value[key])
        if "max_attempts" in value:
            made["MaxAttempts"] = self._integer(("deploy", "restart_policy", "max_attempts"), value["max_attempts"])
        return made

    def _placement(self) -> Object:
        value = self._sub(self._deploy, "placement", keys.PLACEMENT, "deploy")
        made: Object = {}
        if value.get("constraints"):
            made["Constraints"] = [str(item) for item in value["constraints"]]
        if value.get("preferences"):
            made["Preferences"] = [{"Spread": {"SpreadDescriptor": item["spread"]}} for item in value["preferences"]]
        if "max_replicas_per_node" in value:
            made["MaxReplicas"] = self._integer(
                ("deploy", "placement", "max_replicas_per_node"), value["max_replicas_per_node"]
            )
        return made

    def _update(self, name: str) -> Object:
        value = self._sub(self._deploy, name, keys.UPDATE, "deploy")
        made: Object = {"Parallelism": 1, "MaxFailureRatio": 0, "Order": "stop-first"}
        if "parallelism" in value:
            made["Parallelism"] = self._integer(("deploy", name, "parallelism"), value["parallelism"])
        for key, target in (("delay", "Delay"), ("monitor", "Monitor")):
            if key in value:
                made[target] = self._parse(("deploy", name, key), values.duration_ns, value[key])
        for key, target in (("failure_action", "FailureAction"), ("order", "Order")):
            if key in value:
                made[target] = value[key]
        if "max_failure_ratio" in value:
            made["MaxFailureRatio"] = self._parse(
                ("deploy", name, "max_failure_ratio"), float, value["max_failure_ratio"]
            )
        return made


def _short_volume(text: str) -> Object:
    """``[SOURCE:]TARGET[:MODE]``."""
    parts = text.split(":")
    made: Object = {"type": "volume", "target": parts[-1]}
    if len(parts) == 1:
        return made
    if parts[-1] in ("ro", "rw") or not parts[-1].startswith("/"):
        made["read_only"] = "ro" in parts[-1].split(",")
        parts.pop()
        made["target"] = parts[-1]
    if len(parts) > 1:
        made["source"] = parts[0]
        if parts[0].startswith(("/", ".", "~")):
            made["type"] = "bind"
    return made


def _assignments(lines: Any) -> dict[str, str | None]:
    return {
        key.strip(): value if separator else None for key, separator, value in (line.partition("=") for line in lines)
    }


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _strings(value: Any) -> dict[str, str]:
    return {str(key): _scalar(item) for key, item in (value or {}).items()}


def _mapping(source: Source, path: Path_, value: Any) -> dict[str, str]:
    """Labels and the like, as a mapping or a list of ``key=value``."""
    if value is None:
        return {}
    if isinstance(value, list):
        return values.key_values(str(item) for item in value)
    if not isinstance(value, dict):
        raise source.error(path, "must be a mapping or a list")
    return {str(key): "" if item is None else _scalar(item) for key, item in value.items()}
