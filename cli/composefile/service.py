"""One entry of a Compose file's ``services`` to the model (features A13.07, A13.08)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cli import values
from cli.composefile import keys
from cli.composefile.cursor import Cursor, assignments
from cli.composefile.deploy import read_deploy
from cli.composefile.files import read_bytes
from cli.composefile.model import Healthcheck, Logging, NetworkReference, PayloadReference, Port, Service, Ulimit
from cli.composefile.mounts import file_mode, read_mount

ENV_FILE_BYTES_MAX = 2**20
_OCTAL_DIGITS = re.compile("[0-7]{3,4}")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where the files of services are, and their caller's variables."""

    directory: Path
    variables: Mapping[str, str]


def read_service(around: Surroundings, service: Cursor) -> Service:
    """One service. Raises: ManifestError."""
    if not service:
        raise service.error("must be a mapping")
    unread = service.check(keys.SERVICE, unread=keys.SERVICE_UNREAD)
    return Service(
        at=service.place,
        image=service.get("image").text(),
        entrypoint=_words(service.get("entrypoint")),
        command=_words(service.get("command")),
        environment=_environment(around, service),
        labels=service.get("labels").text_map(),
        hostname=service.get("hostname").text(),
        working_dir=service.get("working_dir").text(),
        user=service.get("user").text(),
        group_add=service.get("group_add").texts(),
        stop_signal=service.get("stop_signal").text(),
        stop_grace_period_ns=service.get("stop_grace_period").read(Cursor.duration_ns),
        tty=service.get("tty").boolean(),
        stdin_open=service.get("stdin_open").boolean(),
        read_only=service.get("read_only").boolean(),
        init=service.get("init").read(Cursor.boolean),
        oom_score_adj=service.get("oom_score_adj").read(lambda cursor: cursor.integer(-1000)),
        isolation=service.get("isolation").text(),
        extra_hosts=_hosts(service.get("extra_hosts")),
        dns=service.get("dns").texts(),
        dns_search=service.get("dns_search").texts(),
        dns_opt=service.get("dns_opt").texts(),
        cap_add=service.get("cap_add").texts(),
        cap_drop=service.get("cap_drop").texts(),
        sysctls=service.get("sysctls").text_map(),
        ulimits={name: _ulimit(limit) for name, limit in service.get("ulimits").entries()},
        healthcheck=service.get("healthcheck").read(_health),
        logging=_logging(service.get("logging", keys.LOGGING)),
        volumes=[read_mount(around.directory, item) for item in service.get("volumes").items()],
        tmpfs=service.get("tmpfs").texts(),
        configs=[_reference(item) for item in service.get("configs").items()],
        secrets=[_reference(item) for item in service.get("secrets").items()],
        ports=[port for item in service.get("ports").items() for port in _ports(item)],
        networks=_networks(service.get("networks")),
        network_mode=service.get("network_mode").optional_text(),
        deploy=read_deploy(service.get("deploy", keys.DEPLOY), service.get("restart")),
        unread=unread,
    )


def _words(cursor: Cursor) -> list[str]:
    """A command: a list of words, or a line to be split as a shell does."""
    if isinstance(cursor.value, list):
        return cursor.texts()
    return cursor.parse(values.words) if cursor else []


def _environment(around: Surroundings, service: Cursor) -> dict[str, str | None]:
    """``environment`` over ``env_file``; a name without a value, or with an empty one, has the caller's where there is one.

    One without a value that has none there either is unset (None): the container does not have it, though the image may.
    """
    found: dict[str, str | None] = {}
    listed = service.get("env_file")
    for item in listed.items() if isinstance(listed.value, list) else [listed] if listed else []:
        found |= _env_file(around, item)
    found |= service.get("environment").optional_map()
    return {key: item or around.variables.get(key, item) for key, item in found.items()}


def _env_file(around: Surroundings, item: Cursor) -> dict[str, str | None]:
    name = item
    if isinstance(item.value, dict):
        item.check(keys.ENV_FILE)
        name = item.get("path")
        required = item.get("required")
        if required and not required.boolean() and not (around.directory / name.text()).exists():
            return {}
    data = read_bytes(around.directory / name.text(), name.place, ENV_FILE_BYTES_MAX)
    try:
        return assignments(values.environment_file(data.decode()))
    except ValueError as error:
        raise name.error(f"{name.text()}: {error}") from error


def _hosts(cursor: Cursor) -> list[tuple[str, str]]:
    """``host:ip`` entries in their order; those of a mapping, which has none, sorted."""
    if isinstance(cursor.value, dict):
        return sorted(((ip.text(), host) for host, ip in cursor.entries()), key=" ".join)
    made = []
    for item in cursor.items():
        host, separator, ip = item.text().replace("=", ":", 1).partition(":")
        if not separator or not host or not ip:
            raise item.error(f"want host:ip, got {item.text()[:80]!r}")
        made.append((ip, host))
    return made


def _ulimit(limit: Cursor) -> Ulimit:
    if isinstance(limit.value, dict):
        limit.check(keys.ULIMIT)
        return Ulimit(limit.get("soft").integer(-1), limit.get("hard").integer(-1))
    return Ulimit(limit.integer(-1), limit.integer(-1))


def _health(health: Cursor) -> Healthcheck:
    health.check(keys.HEALTHCHECK)
    test = health.get("test")
    if health.get("disable").boolean():
        if test:
            raise test.error("test and disable can't both be set")
        return Healthcheck(test=["NONE"])
    words = test.texts() if isinstance(test.value, list) else ["CMD-SHELL", test.text()] if test else []
    if isinstance(test.value, list) and words and words[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise test.error(f"must begin with NONE, CMD or CMD-SHELL, got {words[0][:40]!r}")
    return Healthcheck(
        test=words,
        interval_ns=health.get("interval").read(Cursor.duration_ns),
        timeout_ns=health.get("timeout").read(Cursor.duration_ns),
        start_period_ns=health.get("start_period").read(Cursor.duration_ns),
        start_interval_ns=health.get("start_interval").read(Cursor.duration_ns),
        retries=health.get("retries").read(Cursor.integer),
    )


def _logging(logging: Cursor) -> Logging:
    return Logging(logging.get("driver").text(), logging.get("options").text_map())


def _reference(item: Cursor) -> PayloadReference:
    """A config or secret of a service, in short (its key) or long form."""
    if isinstance(item.value, dict):
        item.check(keys.PAYLOAD_REFERENCE)
        mode = item.get("mode")
        return PayloadReference(
            at=item.place,
            source=item.get("source").text(),
            target=item.get("target").optional_text(),
            uid=item.get("uid").optional_text(),
            gid=item.get("gid").optional_text(),
            mode=mode.read(file_mode),
            odd_mode_at=mode.place if type(mode.value) is int and _OCTAL_DIGITS.fullmatch(str(mode.value)) else None,
        )
    return PayloadReference(at=item.place, source=item.text())


def _networks(networks: Cursor) -> list[NetworkReference]:
    """Keys of the file's networks in a list, or each with what the service is called there."""
    if isinstance(networks.value, list):
        return [NetworkReference(at=item.place, source=item.text()) for item in networks.items()]
    return [_network(key, network) for key, network in networks.entries()]


def _network(key: str, network: Cursor) -> NetworkReference:
    unread = network.check(keys.NETWORK_REFERENCE, unread=keys.NETWORK_REFERENCE_UNREAD)
    return NetworkReference(
        at=network.place,
        source=key,
        aliases=network.get("aliases").texts(),
        driver_opts=network.get("driver_opts").text_map(),
        unread=unread,
    )


def _ports(item: Cursor) -> list[Port]:
    """The ports of an entry: one in long form, one or a range of them in short form."""
    if not isinstance(item.value, dict):
        host_ip, spec = _host_ip(item)
        return [
            Port(
                at=item.place,
                host_ip=host_ip,
                target=int(port["TargetPort"]),
                published=int(port.get("PublishedPort", 0)),
                protocol=str(port["Protocol"]),
                mode=str(port["PublishMode"]),
            )
            for port in spec.parse(values.port)
        ]
    item.check(keys.PORT)
    target, published = item.get("target"), item.get("published")
    if not target:
        raise item.error("target is required")
    protocol, mode = item.get("protocol"), item.get("mode")
    return [
        Port(
            at=item.place,
            host_ip="",
            target=target.parse(values.port_number),
            published=published.parse(values.port_number) if published and published.text() != "0" else 0,
            protocol=protocol.choice("tcp", "udp", "sctp") if protocol else "tcp",
            mode=mode.choice("ingress", "host") if mode else "ingress",
        )
    ]


def _host_ip(item: Cursor) -> tuple[str, Cursor]:
    """The address before a short form (``127.0.0.1:80:80``, ``[::1]:80:80``), and the form without it."""
    text = item.text()
    address, separator, rest = text.rpartition(":")
    address, _, published = address.rpartition(":")
    if not separator or not address or "=" in text:
        return "", item
    try:
        found = ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        raise item.error(f"invalid IP address: {address[:80]}") from error
    return str(found), item.instead(f"{published}:{rest}" if published else rest)
