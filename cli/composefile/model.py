"""A Compose file as values: what it says, whoever deploys it.

A field that the file leaves out is None where absence and emptiness differ, else empty: the defaults are those of
whoever deploys the file. Names are keys of the file, without any project's or stack's prefix. Durations are
nanoseconds, sizes bytes. ``at`` is where the thing stands, for what a deployer refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cli.composefile.source import Place

PayloadKind = Literal["config", "secret"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeFile:
    """The whole of it; the mappings go by key, in the file's order.

    Attributes:
        version: as written, None without one.
    """

    at: Place
    version: str | None
    services: Mapping[str, Service]
    configs: Mapping[str, Payload]
    secrets: Mapping[str, Payload]
    volumes: Mapping[str, Volume]
    networks: Mapping[str, Network]

    def payloads(self, kind: PayloadKind) -> Mapping[str, Payload]:
        return self.configs if kind == "config" else self.secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A config or a secret. Its data is ``content``, or what ``file`` holds; one of the two unless it is external.

    Attributes:
        name: what it is to be called instead of by its key.
        external: it is there already, and not to be made.
        content: from the file itself, or from the variable that the file names.
    """

    at: Place
    name: str | None
    external: bool
    content: str | None = None
    file: Path | None = None
    labels: Mapping[str, str]
    template_driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A named volume; ``name`` and ``external`` as with Payload."""

    at: Place
    name: str | None
    external: bool
    driver: str
    driver_opts: Mapping[str, str]
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network; ``name`` and ``external`` as with Payload. ``subnets`` are CIDR texts, as written."""

    at: Place
    name: str | None
    external: bool
    driver: str
    driver_opts: Mapping[str, str]
    ipam_driver: str
    subnets: Sequence[str]
    internal: bool
    attachable: bool
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkReference:
    """A network that a service is on; ``source`` is meant as a key of ``networks``.

    ``unread`` are the keys that the model has not: a service has many tasks, an address of its own would be of one.
    """

    at: Place
    source: str
    aliases: Sequence[str] = ()
    driver_opts: Mapping[str, str] = field(default_factory=dict)
    unread: Sequence[Place] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service.

    Attributes:
        entrypoint, command: words; those of a line are split as by a shell.
        environment: of ``env_file`` and ``environment``; what has no value there has the caller's, or None: it is unset.
        extra_hosts: (address, host).
        tmpfs: targets, each with what follows it behind a colon.
        networks: in the file's order; empty where it names none.
        unread: keys of the format that this model has not, in the file's order.
    """

    at: Place
    image: str
    entrypoint: Sequence[str]
    command: Sequence[str]
    environment: Mapping[str, str | None]
    labels: Mapping[str, str]
    hostname: str
    working_dir: str
    user: str
    group_add: Sequence[str]
    stop_signal: str
    stop_grace_period_ns: int | None
    tty: bool
    stdin_open: bool
    read_only: bool
    init: bool | None
    oom_score_adj: int | None
    isolation: str
    extra_hosts: Sequence[tuple[str, str]]
    dns: Sequence[str]
    dns_search: Sequence[str]
    dns_opt: Sequence[str]
    cap_add: Sequence[str]
    cap_drop: Sequence[str]
    sysctls: Mapping[str, str]
    ulimits: Mapping[str, Ulimit]
    healthcheck: Healthcheck | None
    logging: Logging
    volumes: Sequence[Mount]
    tmpfs: Sequence[str]
    configs: Sequence[PayloadReference]
    secrets: Sequence[PayloadReference]
    ports: Sequence[Port]
    networks: Sequence[NetworkReference]
    network_mode: str | None
    deploy: Deploy
    unread: Sequence[Place]

    def references(self, kind: PayloadKind) -> Sequence[PayloadReference]:
        return self.configs if kind == "config" else self.secrets


@dataclass(frozen=True, slots=True)
class Ulimit:
    """Both -1 when there is no limit."""

    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck:
    """``test`` begins with NONE, CMD or CMD-SHELL; empty: the image's own."""

    test: Sequence[str]
    interval_ns: int | None = None
    timeout_ns: int | None = None
    start_period_ns: int | None = None
    start_interval_ns: int | None = None
    retries: int | None = None


@dataclass(frozen=True, slots=True)
class Logging:
    driver: str
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadReference:
    """A config or secret that a service has as a file; ``source`` is meant as a key of ``configs`` or ``secrets``.

    ``odd_mode_at`` is where the mode stands when it is a decimal number that reads like an octal one (400).
    """

    at: Place
    source: str
    target: str | None = None
    uid: str | None = None
    gid: str | None = None
    mode: int | None = None
    odd_mode_at: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """``published`` is 0 when any free port will do; ``host_ip`` is the address of a short form, else empty."""

    at: Place
    host_ip: str
    target: int
    published: int
    protocol: str
    mode: str


# ---------------------------------------------------------------------- mounts


@dataclass(frozen=True, slots=True, kw_only=True)
class BindMount:
    """``source`` is absolute; links on the way are left to the node."""

    target: str
    read_only: bool
    consistency: str
    source: str
    propagation: str | None
    recursive: str | None
    create_host_path: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMount:
    """``source`` is empty for an anonymous volume, else meant as a key of ``volumes``; it need not be there."""

    at: Place
    target: str
    read_only: bool
    consistency: str
    source: str
    nocopy: bool
    subpath: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TmpfsMount:
    target: str
    read_only: bool
    consistency: str
    size_bytes: int | None
    mode: int | None


Mount = BindMount | VolumeMount | TmpfsMount


# ---------------------------------------------------------------------- deploy


@dataclass(frozen=True, slots=True, kw_only=True)
class Deploy:
    """A service's ``deploy`` section; all of it is empty where there is none.

    Attributes:
        mode: as written, None without one.
        update_config, rollback_config: None without one; an empty one counts.
    """

    at: Place
    mode: str | None
    replicas: int | None
    endpoint_mode: str | None
    labels: Mapping[str, str]
    limits: Resources
    reservations: Resources
    restart_policy: RestartPolicy
    placement: Placement
    update_config: UpdateConfig | None
    rollback_config: UpdateConfig | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    nano_cpus: int | None
    memory_bytes: int | None
    pids: int | None
    generic: Sequence[GenericResource]


@dataclass(frozen=True, slots=True)
class GenericResource:
    kind: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    condition: str | None
    delay_ns: int | None
    max_attempts: int | None
    window_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """``preferences`` are what to spread over, in order."""

    constraints: Sequence[str]
    preferences: Sequence[str]
    max_replicas_per_node: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateConfig:
    parallelism: int | None
    delay_ns: int | None
    failure_action: str | None
    monitor_ns: int | None
    max_failure_ratio: float | None
    order: str | None
