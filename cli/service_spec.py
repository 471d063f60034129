"""Service flags to the API's ServiceSpec, for create and update. Pure: dictionaries in, dictionaries changed.

Each flag is one row of ``SETTERS``: where its value goes. ``--x-add`` and
``--x-rm`` of update are the rows of ``LISTS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any  # Any: values of the API's JSON, and of flags before they are read

from cli import values

Spec = dict[str, Any]

_CONTAINER = ("TaskTemplate", "ContainerSpec")
_RESTART = ("TaskTemplate", "RestartPolicy")
_LIMITS = ("TaskTemplate", "Resources", "Limits")
_RESERVATIONS = ("TaskTemplate", "Resources", "Reservations")
_HEALTH = (*_CONTAINER, "Healthcheck")


def _same(value: Any) -> Any:
    return value


SETTERS: Mapping[str, tuple[str, ...]] = {
    "image": (*_CONTAINER, "Image"),
    "hostname": (*_CONTAINER, "Hostname"),
    "user": (*_CONTAINER, "User"),
    "workdir": (*_CONTAINER, "Dir"),
    "tty": (*_CONTAINER, "TTY"),
    "read_only": (*_CONTAINER, "ReadOnly"),
    "init": (*_CONTAINER, "Init"),
    "stop_signal": (*_CONTAINER, "StopSignal"),
    "stop_grace_period": (*_CONTAINER, "StopGracePeriod"),
    "oom_score_adj": (*_CONTAINER, "OomScoreAdj"),
    "entrypoint": (*_CONTAINER, "Command"),
    "args": (*_CONTAINER, "Args"),
    "isolation": (*_CONTAINER, "Isolation"),
    "health_cmd": (*_HEALTH, "Test"),
    "health_interval": (*_HEALTH, "Interval"),
    "health_timeout": (*_HEALTH, "Timeout"),
    "health_start_period": (*_HEALTH, "StartPeriod"),
    "health_start_interval": (*_HEALTH, "StartInterval"),
    "health_retries": (*_HEALTH, "Retries"),
    "limit_cpu": (*_LIMITS, "NanoCPUs"),
    "limit_memory": (*_LIMITS, "MemoryBytes"),
    "limit_pids": (*_LIMITS, "Pids"),
    "reserve_cpu": (*_RESERVATIONS, "NanoCPUs"),
    "reserve_memory": (*_RESERVATIONS, "MemoryBytes"),
    "restart_condition": (*_RESTART, "Condition"),
    "restart_delay": (*_RESTART, "Delay"),
    "restart_max_attempts": (*_RESTART, "MaxAttempts"),
    "restart_window": (*_RESTART, "Window"),
    "replicas_max_per_node": ("TaskTemplate", "Placement", "MaxReplicas"),
    "log_driver": ("TaskTemplate", "LogDriver", "Name"),
    "endpoint_mode": ("EndpointSpec", "Mode"),
    **{
        f"{kind}_{name}": (f"{kind.capitalize()}Config", key)
        for kind in ("update", "rollback")
        for name, key in (
            ("parallelism", "Parallelism"),
            ("delay", "Delay"),
            ("failure_action", "FailureAction"),
            ("monitor", "Monitor"),
            ("max_failure_ratio", "MaxFailureRatio"),
            ("order", "Order"),
        )
    },
}

_UPDATE_DEFAULTS = {
    "Parallelism": 1,
    "FailureAction": "pause",
    "Monitor": 5 * 10**9,
    "MaxFailureRatio": 0,
    "Order": "stop-first",
}
_RESTART_DEFAULTS = {"Condition": "any", "Delay": 5 * 10**9, "MaxAttempts": 0}


def put(spec: Spec, path: Sequence[str], value: Any) -> None:
    """Set a nested key, making the objects on the way."""
    for key in path[:-1]:
        if spec.get(key) is None:
            spec[key] = {}
        spec = spec[key]
    spec[path[-1]] = value


def at(spec: Spec, path: Sequence[str]) -> Any:
    """The nested value, None where any part is missing."""
    value: Any = spec
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def apply_settings(spec: Spec, options: Mapping[str, Any]) -> None:
    """Put every given flag of ``SETTERS`` into the spec. Raises: ValueError."""
    for name, value in options.items():
        if value is None or name not in SETTERS:
            continue
        path = SETTERS[name]
        if path[0] in ("UpdateConfig", "RollbackConfig") and not spec.get(path[0]):
            spec[path[0]] = dict(_UPDATE_DEFAULTS)
        if path[:2] == _RESTART and not at(spec, _RESTART):
            put(spec, _RESTART, dict(_RESTART_DEFAULTS))
        if path[:3] == _HEALTH and (at(spec, (*_HEALTH, "Test")) or [""])[0] == "NONE":
            put(spec, (*_HEALTH, "Test"), [])
        put(spec, path, value)
    if options.get("no_healthcheck"):
        if any(name.startswith("health_") and value is not None for name, value in options.items()):
            raise ValueError("--no-healthcheck conflicts with --health-* options")
        put(spec, _HEALTH, {"Test": ["NONE"]})


def _env_key(entry: str) -> str:
    return entry.partition("=")[0]


def _key_of(key: str) -> Callable[[Any], str]:
    return lambda entry: str(entry.get(key, ""))


LISTS: Mapping[str, tuple[tuple[str, ...], Callable[[Any], str]]] = {
    # flag stem: where the list is, what identifies an entry for --x-rm and for replacing
    "env": ((*_CONTAINER, "Env"), _env_key),
    "constraint": (("TaskTemplate", "Placement", "Constraints"), _same),
    "mount": ((*_CONTAINER, "Mounts"), _key_of("Target")),
    "publish": (("EndpointSpec", "Ports"), lambda entry: f"{entry.get('TargetPort')}/{entry.get('Protocol', 'tcp')}"),
    "secret": ((*_CONTAINER, "Secrets"), _key_of("SecretName")),
    "config": ((*_CONTAINER, "Configs"), _key_of("ConfigName")),
    "host": ((*_CONTAINER, "Hosts"), _same),
    "group": ((*_CONTAINER, "Groups"), _same),
    "dns": ((*_CONTAINER, "DNSConfig", "Nameservers"), _same),
    "dns_search": ((*_CONTAINER, "DNSConfig", "Search"), _same),
    "dns_option": ((*_CONTAINER, "DNSConfig", "Options"), _same),
    "ulimit": ((*_CONTAINER, "Ulimits"), _key_of("Name")),
    "placement_pref": (("TaskTemplate", "Placement", "Preferences"), lambda entry: entry["Spread"]["SpreadDescriptor"]),
    "generic_resource": ((*_RESERVATIONS, "GenericResources"), lambda entry: _resource_kind(entry)),
}


def _resource_kind(entry: Any) -> str:
    spec = entry.get("DiscreteResourceSpec") or entry.get("NamedResourceSpec") or {}
    return str(spec.get("Kind", ""))


MAPS: Mapping[str, tuple[str, ...]] = {
    "label": ("Labels",),
    "container_label": (*_CONTAINER, "Labels"),
    "sysctl": (*_CONTAINER, "Sysctls"),
    "log_opt": ("TaskTemplate", "LogDriver", "Options"),
}


def settle_capabilities(spec: Spec, add: Sequence[str], drop: Sequence[str]) -> None:
    """Add and drop capabilities, as Docker's command does.

    Of a service without any, what is given counts (``values.capabilities``). Of one that has some, adding what was dropped
    takes that back, and the reverse; of what is added and dropped at once, adding counts. ``RESET`` forgets those that were
    added, or dropped, before.
    """
    if not add and not drop:
        return
    paths = (*_CONTAINER, "CapabilityAdd"), (*_CONTAINER, "CapabilityDrop")
    olds = [{values.capability(name) for name in at(spec, path) or ()} for path in paths]
    if not any(olds):
        for path, names in zip(paths, values.capabilities(add, drop), strict=True):
            if names:
                put(spec, path, names)
        return
    wanted = [{values.capability(text) for text in texts} for texts in (add, drop)]
    added, dropped = (set() if values.RESET in words else set(old) for old, words in zip(olds, wanted, strict=True))
    more, less = (words - {values.RESET} for words in wanted)
    for name in less - more:
        _turn(name, added, dropped)
    for name in more:
        _turn(name, dropped, added)
    for path, old, found in zip(paths, olds, (added, dropped), strict=True):
        if found or old:
            put(spec, path, sorted(found))


def _turn(name: str, undone: set[str], done: set[str]) -> None:
    """Take a name out of the one set, or put it into the other."""
    if name in undone:
        undone.remove(name)
    else:
        done.add(name)


def add_entries(spec: Spec, stem: str, entries: Sequence[Any]) -> None:
    """Add entries to a list of the spec; one with the same key is replaced."""
    if not entries:
        return
    path, key_of = LISTS[stem]
    new_keys = {key_of(entry) for entry in entries}
    kept = [entry for entry in at(spec, path) or [] if key_of(entry) not in new_keys]
    put(spec, path, kept + list(entries))


def remove_entries(spec: Spec, stem: str, keys: Sequence[str]) -> None:
    """Take entries out of a list of the spec, by key; keys that are not there are ignored, as Docker does.

    Secrets and configs are found by name, ID or the beginning of one ID, and have to be there: a service goes on with
    what was not taken from it.

    Raises:
        ValueError: a secret or config that the service has not, or that is none alone.
    """
    if not keys:
        return
    path, key_of = LISTS[stem]
    found = at(spec, path) or []
    match stem:
        case "publish":
            found = _without_ports(found, keys)
        case "host":
            found = [line for entry in found if (line := _without_hosts(entry, keys))]
        case "placement_pref":
            wanted = {preference(key)["Spread"]["SpreadDescriptor"] for key in keys}
            found = [entry for entry in found if key_of(entry) not in wanted]
        case "secret" | "config":
            gone = {_referred(found, stem, key) for key in keys}
            found = [entry for entry in found if entry[f"{stem.capitalize()}ID"] not in gone]
        case _:
            found = [entry for entry in found if key_of(entry) not in set(keys)]
    put(spec, path, found)


def _referred(found: Sequence[Spec], stem: str, key: str) -> str:
    """The ID of the secret or config that the service knows by that name, ID or beginning of an ID."""
    word = stem.capitalize()
    ids = {str(entry[f"{word}ID"]): str(entry.get(f"{word}Name", "")) for entry in found}
    matches = [one for one, name in ids.items() if name == key] or [one for one in ids if one == key]
    matches = matches or [one for one in ids if key and one.startswith(key)]
    if not matches:
        raise ValueError(f"the service has no {stem} {key}")
    if len(matches) > 1:
        raise ValueError(f"{stem} {key} is ambiguous: the service has {len(matches)} whose IDs begin so")
    return matches[0]


def target_port(text: str) -> tuple[int, str]:
    """Port and protocol of --publish-rm."""
    number, _, protocol = text.partition("/")
    if not number.isdecimal():
        raise ValueError("want a target port, as in 80 or 53/udp")
    return int(number[:9]), protocol or "tcp"


def _without_ports(found: Sequence[Spec], keys: Sequence[str]) -> list[Spec]:
    """Ports are removed by target and protocol: ``80``, ``80/udp``; a port in full is refused, as by Docker."""
    wanted = {target_port(key) for key in keys}
    return [entry for entry in found if (entry.get("TargetPort"), entry.get("Protocol", "tcp")) not in wanted]


def _without_hosts(entry: str, keys: Sequence[str]) -> str:
    """The line "ip name [alias...]" without the names removed; "" when none is left."""
    ip, *names = entry.split()
    for key in keys:
        name, _, of_ip = key.partition(":")
        if not of_ip or of_ip == ip:
            names = [one for one in names if one != name]
    return " ".join([ip, *names]) if names else ""


def change_map(spec: Spec, stem: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
    """Set and remove keys of one of the spec's maps."""
    if not add and not remove:
        return
    path = MAPS[stem]
    found = dict(at(spec, path) or {})
    for key in remove:
        found.pop(key, None)
    found.update(values.key_values(add))
    put(spec, path, found)


def health_test(text: str) -> list[str]:
    """The test of --health-cmd; an empty one is the image's own."""
    return ["CMD-SHELL", text] if text else []


def host_entry(text: str) -> str:
    """``name:ip`` or ``name=ip`` of --host as the API keeps it: "ip name"."""
    name, separator, ip = text.partition("=" if "=" in text else ":")
    ip = ip.removeprefix("[").removesuffix("]")
    if not separator or not name:
        raise ValueError(f'bad format for add-host: "{text}"')
    if ip != "host-gateway":
        try:
            values.address(ip)
        except ValueError:
            raise ValueError(f'invalid IP address in add-host: "{ip}"') from None
    return f"{ip} {name}"


def preference(text: str) -> Spec:
    """``spread=node.labels.zone`` of --placement-pref."""
    key, separator, descriptor = text.partition("=")
    if key != "spread" or not separator or not descriptor:
        raise ValueError('placement preference must be of the format "spread=<arg>"')
    return {"Spread": {"SpreadDescriptor": descriptor}}


def generic_resource(text: str) -> Spec:
    """``KIND=NUMBER`` of --generic-resource."""
    kind, separator, number = text.partition("=")
    if not separator or not kind:
        raise ValueError(f"invalid generic-resource format `{text}` expected `name=value`")
    if not number.isdecimal():
        raise ValueError(
            f"invalid generic-resource request `{text}`, Named Generic Resources is not supported for service create or"
            " update"
        )
    return {"DiscreteResourceSpec": {"Kind": kind, "Value": int(number[:18])}}


def mode(name: str, replicas: int | None) -> Spec:
    """The Mode object. Raises: ValueError."""
    if name == "global":
        if replicas is not None:
            raise ValueError("replicas can only be used with replicated or replicated-job mode")
        return {"Global": {}}
    if name == "replicated":
        return {"Replicated": {"Replicas": 1 if replicas is None else replicas}}
    raise ValueError(f"unknown or unserved mode: {name}, want replicated or global")
