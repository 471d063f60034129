"""A container as it is kept: what was asked for, and what became of it.

``STATE/containers/ID/container.json`` (Record) changes on create, rename, update, connect and disconnect only and is synced to disk;
``state.json`` (RunState) changes at every start and exit and is written atomically, but not synced: after power loss
the container is gone anyway, and what it was doing is found out from the host.
"""

from __future__ import annotations

import msgspec

from runtime.containers.mounts import MountRequest
from runtime.containers.states import Status
from runtime.networks.driver import Endpoint
from runtime.networks.rules import PublishedPort
from runtime.types import (
    NEVER,
    ContainerConfig,
    EndpointSettings,
    Health,
    HostConfig,
    MountPoint,
)


class Record(msgspec.Struct, kw_only=True):
    """What does not change after create, but for the name, the limits, the restart policy and the networks.

    ``Config`` is merged with the image's; ``Endpoints`` is what the request said about networks, by name;
    ``Links`` are legacy links of the default bridge: IDs of containers by alias. ``Mounts`` (for inspect) and ``Requests`` (for the spec) are settled at create, so that an anonymous volume keeps
    its name.
    """

    ID: str
    Name: str
    CreatedNs: int
    Created: str
    ImageID: str
    Config: ContainerConfig
    HostConfig: HostConfig
    Endpoints: dict[str, EndpointSettings]
    Mounts: list[MountPoint]
    Requests: list[MountRequest] = msgspec.field(default_factory=list)
    Links: dict[str, str] = msgspec.field(default_factory=dict)

    def networks(self) -> dict[str, EndpointSettings]:
        """The networks to be on, by name, as requested. None of its own in another container's namespace."""
        if self.Config.NetworkDisabled:
            return {"none": next(iter(self.Endpoints.values()), EndpointSettings())}
        return self.Endpoints


class RunState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What changes.

    ``PidStart`` and ``ConmonStart`` are start times in clock ticks since boot (proc(5), stat field 22): together with
    ``BootID`` they tell our process from a later one with the same number. ``Endpoints`` are those of the last run, by
    network name. ``StoppedByUser`` keeps "unless-stopped" containers down over a restart of the daemon.

    Unknown fields are refused: a file of another version, half understood, would give away an address in use.
    """

    Status: Status = Status.CREATED
    Pid: int = 0
    PidStart: int = 0
    ConmonPid: int = 0
    ConmonStart: int = 0
    BootID: str = ""
    ExitCode: int = 0
    Error: str = ""
    OOMKilled: bool = False
    StartedAt: str = NEVER
    FinishedAt: str = NEVER
    RestartCount: int = 0
    StoppedByUser: bool = False
    Health: Health | None = None
    Endpoints: dict[str, Endpoint] = msgspec.field(default_factory=dict)

    @property
    def ports(self) -> list[PublishedPort]:
        """Published on any of its networks."""
        return [port for endpoint in self.Endpoints.values() for port in endpoint.Ports]
