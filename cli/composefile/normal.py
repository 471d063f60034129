"""A file in the form that ``stack config`` prints, which is Docker's: long forms, its order of keys, one spelling.

What a file says in several ways is said in one: ``environment`` has what ``env_file`` brings in, lists of
``key=value`` are mappings, durations, sizes and modes are normalised. What says nothing is left out. Relative paths
are absolute, those of ``env_file`` too, which Docker leaves: what is printed may be deployed from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cli import values
from cli.composefile.cursor import Cursor
from cli.composefile.model import ComposeFile, Service
from cli.composefile.mounts import absolute, file_mode, short_form
from cli.composefile.source import Place
from cli.composefile.yaml_text import in_order

# What a value is printed as; None when it is left out. The forms of Docker's optional fields keep an empty value.
Form = Callable[[Cursor], object]
Table = Mapping[str, Form]


def normal(file: ComposeFile) -> dict[str, object]:
    """The content of a file that has been read (``reader.read``), in Docker's order."""
    source = file.at.source
    root = Cursor(Place(source), source.value)

    def service(cursor: Cursor) -> object:
        return _struct(cursor, _service(source.directory, file.services[str(cursor.place.path[-1])]))

    def payload(cursor: Cursor) -> object:
        return _named(cursor, {**_PAYLOAD, "file": _if_given(lambda path: absolute(source.directory, path.text()))})

    sections: Table = {
        "networks": _by_name(lambda cursor: _named(cursor, _NETWORK)),
        "volumes": _by_name(lambda cursor: _named(cursor, _VOLUME)),
        "secrets": _by_name(payload),
        "configs": _by_name(payload),
    }
    head = {
        "version": "3.13" if file.version in (None, "", "3") else file.version,
        "services": _by_name(service)(root.get("services")) or {},
    }
    return head | _struct(root, sections)


# ---------------------------------------------------------------------- forms


def _struct(cursor: Cursor, table: Table) -> dict[str, object]:
    """The keys of ``table`` that say something, in its order, and the extensions behind them."""
    found = {key: form(cursor.get(key)) for key, form in table.items()}
    extras = {key: inner.value for key, inner in cursor.entries() if key.startswith("x-")}
    return {key: item for key, item in found.items() if item is not None} | _sorted(extras)


def _sorted(value: dict[str, object]) -> dict[str, object]:
    """In order at every level."""
    return in_order({key: _sorted(item) if isinstance(item, dict) else item for key, item in value.items()})


def _named(cursor: Cursor, table: Table) -> dict[str, object]:
    """A network, volume, secret or config: what is there already has its name written out."""
    external = cursor.get("external")
    found = _struct(cursor, table)
    if not isinstance(external.value, dict) and not external.boolean():
        return found
    inner = external.value.get("name") if isinstance(external.value, dict) else None
    return {"name": found.get("name") or inner or str(cursor.place.path[-1]), **found}


def _by_name(form: Form) -> Form:
    return lambda cursor: in_order({key: form(inner) for key, inner in cursor.entries()}) or None


def _each(form: Form) -> Form:
    return lambda cursor: [form(item) for item in cursor.items()] or None


def _if_given(form: Form) -> Form:
    return lambda cursor: form(cursor) if cursor else None


def _of(table: Table) -> Form:
    """A section that is left out when it says nothing; one of ``_optional`` stays when it is there."""
    return lambda cursor: _struct(cursor, table) or None


def _optional(table: Table) -> Form:
    return _if_given(lambda cursor: _struct(cursor, table))


def _raw(cursor: Cursor) -> object:
    return cursor.value or None


def _text(cursor: Cursor) -> object:
    return cursor.text() or None


def _texts(cursor: Cursor) -> object:
    return cursor.texts() or None


def _mapping(cursor: Cursor) -> object:
    return in_order(cursor.text_map()) or None


def _number(cursor: Cursor) -> object:
    return cursor.integer(-(2**63)) or None if cursor else None


_integer = _if_given(lambda cursor: cursor.integer(-(2**63)))
_duration = _if_given(lambda cursor: values.duration_text(cursor.duration_ns()))
_mode = _if_given(file_mode)
_bool = _if_given(Cursor.boolean)


def _flag(cursor: Cursor) -> object:
    return cursor.boolean() or None


def _period(cursor: Cursor) -> object:
    return values.duration_text(cursor.duration_ns()) if cursor and cursor.duration_ns() else None


def _bytes(cursor: Cursor) -> object:
    return str(cursor.size_bytes()) if cursor and cursor.size_bytes() else None


def _words(cursor: Cursor) -> object:
    if isinstance(cursor.value, list):
        return _texts(cursor)
    return cursor.parse(values.words) or None if cursor else None


def _test(cursor: Cursor) -> object:
    return cursor.texts() if isinstance(cursor.value, list) else ["CMD-SHELL", cursor.text()] if cursor else None


def _external(cursor: Cursor) -> object:
    return True if isinstance(cursor.value, dict) else _flag(cursor)


def _hosts(cursor: Cursor) -> object:
    if isinstance(cursor.value, dict):
        lines = sorted(f"{host}:{ip.text()}" for host, ip in cursor.entries())
    else:
        lines = [item.text().replace("=", ":", 1) for item in cursor.items()]
    pairs = (line.partition(":") for line in lines)
    return [f"{host}:{ip.removeprefix('[').removesuffix(']')}" for host, _, ip in pairs] or None


def _ulimit(cursor: Cursor) -> object:
    limits: Table = {"soft": _number, "hard": _number}
    return _struct(cursor, limits) if isinstance(cursor.value, dict) else _number(cursor)


def _networks(cursor: Cursor) -> object:
    if isinstance(cursor.value, list):
        return in_order(dict.fromkeys(cursor.texts())) or None
    return _by_name(_optional(_NETWORK_REFERENCE))(cursor)


def _reference(cursor: Cursor) -> object:
    return _struct(cursor if isinstance(cursor.value, dict) else cursor.instead({"source": cursor.text()}), _REFERENCE)


# ---------------------------------------------------------------------- tables

_LIMITS: Table = {"cpus": _text, "memory": _bytes, "pids": _number}
_GENERIC: Table = {"discrete_resource_spec": _optional({"kind": _text, "value": _integer})}
_UPDATE: Table = {
    "parallelism": _integer,
    "delay": _period,
    "failure_action": _text,
    "monitor": _period,
    "max_failure_ratio": lambda cursor: cursor.parse(values.ratio) or None if cursor else None,
    "order": _text,
}
_DEPLOY: Table = {
    "mode": _text,
    "replicas": _integer,
    "labels": _mapping,
    "update_config": _optional(_UPDATE),
    "rollback_config": _optional(_UPDATE),
    "resources": _of(
        {
            "limits": _optional(_LIMITS),
            "reservations": _optional({**_LIMITS, "generic_resources": _each(_of(_GENERIC))}),
        }
    ),
    "restart_policy": _optional(
        {"condition": _text, "delay": _duration, "max_attempts": _integer, "window": _duration}
    ),
    "placement": _of(
        {"constraints": _texts, "preferences": _each(_of({"spread": _text})), "max_replicas_per_node": _number}
    ),
    "endpoint_mode": _text,
}
_HEALTHCHECK: Table = {
    "test": _test,
    "timeout": _duration,
    "interval": _duration,
    "retries": _integer,
    "start_period": _duration,
    "start_interval": _duration,
    "disable": _flag,
}
_REFERENCE: Table = {"source": _text, "target": _text, "uid": _text, "gid": _text, "mode": _mode}
_PORT: Table = {"mode": _text, "target": _number, "published": _number, "protocol": _text, "name": _text}
_MOUNT: Table = {
    "type": _text,
    "source": _text,
    "target": _text,
    "read_only": _flag,
    "consistency": _text,
    "bind": _optional({"propagation": _text, "create_host_path": _bool, "recursive": _text}),
    "volume": _optional({"nocopy": _flag, "subpath": _text}),
    "tmpfs": _optional({"size": lambda cursor: cursor.size_bytes() if cursor else None, "mode": _mode}),
}
_NETWORK_REFERENCE: Table = {
    "aliases": _texts,
    "driver_opts": _mapping,
    "ipv4_address": _text,
    "ipv6_address": _text,
}
_NETWORK: Table = {
    "name": _text,
    "driver": _text,
    "driver_opts": _mapping,
    "ipam": _of({"driver": _text, "config": _each(lambda config: _struct(config, {"subnet": _text}))}),
    "external": _external,
    "internal": _flag,
    "attachable": _flag,
    "labels": _mapping,
}
_VOLUME: Table = {"name": _text, "driver": _text, "driver_opts": _mapping, "external": _external, "labels": _mapping}
_PAYLOAD: Table = {
    "name": _text,
    "file": _text,
    "content": _if_given(Cursor.text),
    "environment": _text,
    "external": _external,
    "labels": _mapping,
    "template_driver": _text,
}


def _service(directory: Path, service: Service) -> Table:
    """The keys of a service, in the order of Docker's type; what was read with others is taken from the model."""

    def volume(cursor: Cursor) -> object:
        mount = cursor if isinstance(cursor.value, dict) else cursor.instead(short_form(cursor))
        found = _struct(mount, _MOUNT)
        return found | {"source": absolute(directory, str(found["source"]))} if found["type"] == "bind" else found

    def ports(cursor: Cursor) -> object:
        return [port for item in cursor.items() for port in _ports(service, item)] or None

    def environment(cursor: Cursor) -> object:
        return in_order(service.environment) or None

    def env_files(cursor: Cursor) -> object:
        items = cursor.items() if isinstance(cursor.value, list) else [cursor] if cursor else []
        return [_env_file(directory, item) for item in items] or None

    return {
        "build": lambda cursor: {"context": cursor.value} if isinstance(cursor.value, str) else _raw(cursor),
        "cap_add": _texts,
        "cap_drop": _texts,
        "cgroupns_mode": _text,
        "cgroup_parent": _text,
        "command": _words,
        "configs": _each(_reference),
        "container_name": _text,
        "depends_on": _raw,
        "deploy": _of(_DEPLOY),
        "devices": _texts,
        "dns": _texts,
        "dns_search": _texts,
        "dns_opt": _texts,
        "domainname": _text,
        "entrypoint": _words,
        "environment": environment,
        "env_file": env_files,
        "expose": _texts,
        "external_links": _texts,
        "extra_hosts": _hosts,
        "group_add": _texts,
        "hostname": _text,
        "healthcheck": _optional(_HEALTHCHECK),
        "image": _text,
        "init": _bool,
        "ipc": _text,
        "isolation": _text,
        "labels": _mapping,
        "links": _texts,
        "logging": _optional({"driver": _text, "options": _mapping}),
        "mac_address": _text,
        "network_mode": _text,
        "networks": _networks,
        "pid": _text,
        "ports": ports,
        "privileged": _flag,
        "profiles": _raw,
        "pull_policy": _text,
        "read_only": _flag,
        "restart": lambda cursor: "no" if cursor.value is False else _text(cursor),
        "secrets": _each(_reference),
        "security_opt": _texts,
        "shm_size": _text,
        "stdin_open": _flag,
        "stop_grace_period": _duration,
        "stop_signal": _text,
        "sysctls": _mapping,
        "tmpfs": _texts,
        "tty": _flag,
        "ulimits": _by_name(_ulimit),
        "user": _text,
        "oom_score_adj": _number,
        "userns_mode": _text,
        "volumes": _each(volume),
        "working_dir": _text,
    }


def _ports(service: Service, item: Cursor) -> list[object]:
    """One in long form with what it says, one or a range of them in short form with all of it."""
    if isinstance(item.value, dict):
        return [_struct(item, _PORT)]
    made = [port for port in service.ports if port.at == item.place]
    return [
        {"mode": port.mode, "target": port.target}
        | ({"published": port.published} if port.published else {})
        | {"protocol": port.protocol}
        for port in sorted(made, key=lambda port: f"{port.target}/{port.protocol}")
    ]


def _env_file(directory: Path, item: Cursor) -> object:
    if not isinstance(item.value, dict):
        return absolute(directory, item.text())
    return {**item.value, "path": absolute(directory, item.get("path").text())}
