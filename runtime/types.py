"""Containers in Engine API spelling: what a request asks for and what inspect and list answer.

Null and absent mean the same in the API, hence the many ``| None``. Sizes are bytes, ``NanoCpus`` 1e-9 CPUs, health
intervals nanoseconds; times are RFC 3339 with nanoseconds in UTC, ``0001-01-01T00:00:00Z`` for "never".

Source: moby api/types/container (API 1.51).
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol, Self  # Any: what is refused or only counted, whatever it holds

import msgspec

NEVER = "0001-01-01T00:00:00Z"
LOG_DRIVERS = ("json-file", "local", "none")
TASK_ID_LABEL = "com.docker.swarm.task.id"
"""Says which task a container is for; the engine only logs it."""


class HealthConfig(msgspec.Struct, omit_defaults=True, frozen=True):
    """``Test`` is ["NONE"], ["CMD", args...] or ["CMD-SHELL", command]; empty inherits the image's."""

    Test: list[str] | None = None
    Interval: int = 0
    Timeout: int = 0
    StartPeriod: int = 0
    StartInterval: int = 0
    Retries: int = 0


class ContainerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The portable half of a container: what its image may have a say in."""

    Hostname: str = ""
    Domainname: str = ""
    User: str = ""
    AttachStdin: bool = False
    AttachStdout: bool = False
    AttachStderr: bool = False
    ExposedPorts: dict[str, Any] | None = None
    Tty: bool = False
    OpenStdin: bool = False
    StdinOnce: bool = False
    Env: list[str] | None = None
    Cmd: list[str] | None = None
    Healthcheck: HealthConfig | None = None
    ArgsEscaped: bool = False
    Image: str = ""
    Volumes: dict[str, Any] | None = None
    WorkingDir: str = ""
    Entrypoint: list[str] | None = None
    NetworkDisabled: bool = False
    MacAddress: str = ""
    OnBuild: list[str] | None = None
    Labels: dict[str, str] | None = None
    StopSignal: str = ""
    StopTimeout: int | None = None
    Shell: list[str] | None = None


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``Type`` is "json-file" (also for empty), "local" or "none"; ``Config`` knows max-size and max-file."""

    Type: str = ""
    Config: dict[str, str] | None = None


class PortBinding(msgspec.Struct, frozen=True, kw_only=True):
    """``HostPort`` is decimal, a range "a-b", or empty for any free port."""

    HostIp: str = ""
    HostPort: str = ""


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """``Name`` is "", "no", "always", "on-failure" or "unless-stopped"."""

    Name: str = ""
    MaximumRetryCount: int = 0


class Ulimit(msgspec.Struct, frozen=True, kw_only=True):
    """``Name`` without RLIMIT_ prefix, in lower case; -1 is unlimited."""

    Name: str
    Soft: int = 0
    Hard: int = 0


class DeviceMapping(msgspec.Struct, frozen=True, kw_only=True):
    """A host device node made available; ``CgroupPermissions`` is a subset of "rwm"."""

    PathOnHost: str
    PathInContainer: str = ""
    CgroupPermissions: str = ""


class BindOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a mount of type bind."""

    Propagation: str = ""
    NonRecursive: bool = False
    CreateMountpoint: bool = False
    ReadOnlyNonRecursive: bool = False
    ReadOnlyForceRecursive: bool = False


class VolumeDriverConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The driver that makes a volume on first use."""

    Name: str = ""
    Options: dict[str, str] | None = None


class VolumeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a mount of type volume."""

    NoCopy: bool = False
    Labels: dict[str, str] | None = None
    Subpath: str = ""
    DriverConfig: VolumeDriverConfig | None = None


class TmpfsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a mount of type tmpfs; ``Mode`` is a file mode as a number."""

    SizeBytes: int = 0
    Mode: int = 0
    Options: list[list[str]] | None = None


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A mount as requested. ``Type`` is bind, volume or tmpfs."""

    Type: str = ""
    Source: str = ""
    Target: str = ""
    ReadOnly: bool = False
    Consistency: str = ""
    BindOptions: BindOptions | None = None
    VolumeOptions: VolumeOptions | None = None
    TmpfsOptions: TmpfsOptions | None = None


class HostConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The half of a container that depends on this host: resources, mounts, network mode, privileges."""

    Binds: list[str] | None = None
    ContainerIDFile: str = ""
    LogConfig: LogConfig = LogConfig()
    NetworkMode: str = ""
    PortBindings: dict[str, list[PortBinding] | None] | None = None
    RestartPolicy: RestartPolicy = RestartPolicy()
    AutoRemove: bool = False
    VolumeDriver: str = ""
    VolumesFrom: list[str] | None = None
    ConsoleSize: list[int] | None = None
    Annotations: dict[str, str] | None = None
    CapAdd: list[str] | None = None
    CapDrop: list[str] | None = None
    CgroupnsMode: str = ""
    Dns: list[str] | None = None
    DnsOptions: list[str] | None = None
    DnsSearch: list[str] | None = None
    ExtraHosts: list[str] | None = None
    GroupAdd: list[str] | None = None
    IpcMode: str = ""
    Cgroup: str = ""
    Links: list[str] | None = None
    OomScoreAdj: int = 0
    PidMode: str = ""
    Privileged: bool = False
    PublishAllPorts: bool = False
    ReadonlyRootfs: bool = False
    SecurityOpt: list[str] | None = None
    StorageOpt: dict[str, str] | None = None
    Tmpfs: dict[str, str] | None = None
    UTSMode: str = ""
    UsernsMode: str = ""
    ShmSize: int = 0
    Sysctls: dict[str, str] | None = None
    Runtime: str = ""
    Isolation: str = ""
    CpuShares: int = 0
    Memory: int = 0
    NanoCpus: int = 0
    CgroupParent: str = ""
    BlkioWeight: int = 0
    BlkioWeightDevice: list[Any] | None = None
    BlkioDeviceReadBps: list[Any] | None = None
    BlkioDeviceWriteBps: list[Any] | None = None
    BlkioDeviceReadIOps: list[Any] | None = None
    BlkioDeviceWriteIOps: list[Any] | None = None
    CpuPeriod: int = 0
    CpuQuota: int = 0
    CpuRealtimePeriod: int = 0
    CpuRealtimeRuntime: int = 0
    CpusetCpus: str = ""
    CpusetMems: str = ""
    Devices: list[DeviceMapping] | None = None
    DeviceCgroupRules: list[str] | None = None
    DeviceRequests: list[Any] | None = None
    MemoryReservation: int = 0
    MemorySwap: int = 0
    MemorySwappiness: int | None = None
    OomKillDisable: bool | None = None
    PidsLimit: int | None = None
    Ulimits: list[Ulimit] | None = None
    Mounts: list[Mount] | None = None
    MaskedPaths: list[str] | None = None
    ReadonlyPaths: list[str] | None = None
    Init: bool | None = None


class EndpointIPAMConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses the user asks for."""

    IPv4Address: str = ""
    IPv6Address: str = ""
    LinkLocalIPs: list[str] | None = None


class EndpointSettings(msgspec.Struct, kw_only=True):
    """A container's place on one network: the request fields, and once running the facts."""

    IPAMConfig: EndpointIPAMConfig | None = None
    Links: list[str] | None = None
    Aliases: list[str] | None = None
    DriverOpts: dict[str, str] | None = None
    GwPriority: int = 0
    NetworkID: str = ""
    EndpointID: str = ""
    Gateway: str = ""
    IPAddress: str = ""
    MacAddress: str = ""
    IPPrefixLen: int = 0
    IPv6Gateway: str = ""
    GlobalIPv6Address: str = ""
    GlobalIPv6PrefixLen: int = 0
    DNSNames: list[str] | None = None


class NetworkingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Endpoints by network name or ID, as in ``POST /containers/create``."""

    EndpointsConfig: dict[str, EndpointSettings | None] | None = None


class NetworkSettings(msgspec.Struct, kw_only=True):
    """The network half of inspect. ``Ports`` maps "80/tcp" to its bindings, null when only exposed."""

    SandboxID: str = ""
    SandboxKey: str = ""
    Ports: dict[str, list[PortBinding] | None] = msgspec.field(default_factory=dict)
    Networks: dict[str, EndpointSettings] = msgspec.field(default_factory=dict)


class HealthcheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """One probe: 0 healthy, 1 unhealthy, -1 could not be run or timed out."""

    Start: str
    End: str
    ExitCode: int
    Output: str


class Health(msgspec.Struct, kw_only=True):
    """``Status`` is starting, healthy or unhealthy; ``Log`` holds the last five probes."""

    Status: str = "starting"
    FailingStreak: int = 0
    Log: list[HealthcheckResult] = msgspec.field(default_factory=list)


class ContainerState(msgspec.Struct, kw_only=True):
    """``Status`` is created, running, paused, restarting, removing, exited or dead."""

    Status: str = "created"
    Running: bool = False
    Paused: bool = False
    Restarting: bool = False
    OOMKilled: bool = False
    Dead: bool = False
    Pid: int = 0
    ExitCode: int = 0
    Error: str = ""
    StartedAt: str = NEVER
    FinishedAt: str = NEVER
    Health: Health | None = None


class MountPoint(msgspec.Struct, kw_only=True):
    """A mount as it is: ``Type`` bind, volume or tmpfs; ``Name`` and ``Driver`` for volumes only."""

    Type: str
    Name: str = ""
    Source: str = ""
    Destination: str = ""
    Driver: str = ""
    Mode: str = ""
    RW: bool = True
    Propagation: str = ""


class GraphDriver(msgspec.Struct, kw_only=True):
    """Where the root file system comes from."""

    Name: str = "overlay2"
    Data: dict[str, str] = msgspec.field(default_factory=dict)


class ContainerJSON(msgspec.Struct, kw_only=True):
    """The answer of ``GET /containers/{id}/json``."""

    Id: str
    Created: str
    Path: str
    Args: list[str]
    State: ContainerState
    Image: str
    ResolvConfPath: str
    HostnamePath: str
    HostsPath: str
    LogPath: str
    Name: str
    RestartCount: int
    Driver: str
    Platform: str
    MountLabel: str
    ProcessLabel: str
    AppArmorProfile: str
    ExecIDs: list[str] | None
    HostConfig: HostConfig
    GraphDriver: GraphDriver
    Mounts: list[MountPoint]
    Config: ContainerConfig
    NetworkSettings: NetworkSettings
    SizeRw: int | None = None
    SizeRootFs: int | None = None


class Port(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A port in ``docker ps``: ``PublicPort`` 0 when only exposed."""

    IP: str = ""
    PrivatePort: int
    PublicPort: int = 0
    Type: str


class SummaryHostConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The two host settings that a list shows."""

    NetworkMode: str
    Annotations: dict[str, str] | None = None


class SummaryNetworkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Endpoints by network name."""

    Networks: dict[str, EndpointSettings]


class ContainerSummary(msgspec.Struct, kw_only=True):
    """One row of ``GET /containers/json``; ``Created`` in seconds since the epoch."""

    Id: str
    Names: list[str]
    Image: str
    ImageID: str
    Command: str
    Created: int
    Ports: list[Port]
    Labels: dict[str, str]
    State: str
    Status: str
    HostConfig: SummaryHostConfig
    NetworkSettings: SummaryNetworkSettings
    Mounts: list[MountPoint]
    SizeRw: int | None = None
    SizeRootFs: int | None = None


class ExecConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /containers/{id}/exec``."""

    User: str = ""
    Privileged: bool = False
    Tty: bool = False
    ConsoleSize: list[int] | None = None
    AttachStdin: bool = False
    AttachStderr: bool = False
    AttachStdout: bool = False
    DetachKeys: str | None = None
    Env: list[str] | None = None
    WorkingDir: str = ""
    Cmd: list[str] | None = None


class ExecProcessConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The process of an exec, in inspect's lower-case spelling."""

    tty: bool
    entrypoint: str
    arguments: list[str]
    privileged: bool
    user: str = ""


class ExecInspect(msgspec.Struct, kw_only=True):
    """The answer of ``GET /exec/{id}/json``; ``ExitCode`` null while running."""

    ID: str
    Running: bool
    ExitCode: int | None
    ProcessConfig: ExecProcessConfig
    OpenStdin: bool
    OpenStderr: bool
    OpenStdout: bool
    CanRemove: bool
    ContainerID: str
    DetachKeys: str
    Pid: int


class WaitResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a wait ended; ``Error`` says why the exit code is not the process's own."""

    StatusCode: int
    Error: str = ""


class LogLine(msgspec.Struct, frozen=True):
    """One piece of output: ``stream`` is "stdout" or "stderr"; ``data`` ends in a newline unless the line was cut
    (the container wrote no newline, or more than 16 KiB without one: ``partial``)."""

    stream: str
    timestamp_ns: int
    data: bytes
    partial: bool = False


class ProcessStream(Protocol):
    """The stdio of a process, as a client that attached to it has it; leaving its context detaches."""

    async def read(self) -> tuple[str, bytes] | None:
        """The stream ("stdout" or "stderr") and what was written to it; None at the end."""

    async def write(self, data: bytes) -> None:
        """Send to its stdin. Raises ConflictError when it is gone."""

    async def close_stdin(self) -> None:
        """End of input; output goes on."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
