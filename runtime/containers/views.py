"""How containers look from outside: inspect, list and its filters. Pure but for the clock that is handed in."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence

import msgspec

from base.durations import human_duration
from base.labels import has_labels
from runtime.containers import naming, spec
from runtime.containers.container import Container
from runtime.errors import InvalidParameterError
from runtime.networks import views as network_views
from runtime.networks.predefined import NAMES
from runtime.types import (
    NEVER,
    ContainerJSON,
    ContainerSummary,
    EndpointSettings,
    GraphDriver,
    NetworkSettings,
    Port,
    PortBinding,
    SummaryHostConfig,
    SummaryNetworkSettings,
)

_STATUSES = {"created", "running", "paused", "restarting", "removing", "exited", "dead"}
KNOWN_FILTERS = {
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
}

TASK_LABEL = "com.docker.swarm.task"


def inspect(
    container: Container, *, network_id: Callable[[str], str], links: list[str] | None = None, apparmor: str = ""
) -> ContainerJSON:
    """The answer of ``GET /containers/{id}/json``.

    ``network_id`` gives a network's ID by its name, "" of one that is gone; ``links`` are as shown; ``apparmor`` is the container's profile.
    """
    record, folder = container.record, container.folder
    args = [*(record.Config.Entrypoint or ()), *(record.Config.Cmd or ())]
    state = container.state_json()
    settings = NetworkSettings(
        SandboxID=record.ID if container.running else "",
        SandboxKey=f"/proc/{state.Pid}/ns/net" if container.running else "",
        Ports=_ports(container),
        Networks=_networks(container, network_id),
    )
    return ContainerJSON(
        Id=record.ID,
        Created=record.Created,
        Path=args[0] if args else "",
        Args=args[1:],
        State=state,
        Image=record.ImageID,
        ResolvConfPath=str(folder / "resolv.conf"),
        HostnamePath=str(folder / "hostname"),
        HostsPath=str(folder / "hosts"),
        LogPath="" if record.HostConfig.LogConfig.Type == "none" else str(container.log_path),
        Name=f"/{record.Name}",
        RestartCount=container.state.RestartCount,
        Driver="overlay2",
        Platform="linux",
        MountLabel="",
        ProcessLabel="",
        AppArmorProfile=apparmor,
        ExecIDs=list(container.exec_ids) or None,
        HostConfig=msgspec.structs.replace(record.HostConfig, Links=links)
        if record.HostConfig.Links
        else record.HostConfig,
        GraphDriver=GraphDriver(),
        Mounts=list(record.Mounts),
        Config=record.Config,
        NetworkSettings=settings,
    )


def _networks(container: Container, network_id: Callable[[str], str]) -> dict[str, EndpointSettings]:
    """The facts while it runs, the request (with the network's ID) before and after."""
    record, endpoints = container.record, container.state.Endpoints if container.running else {}
    shown = {}
    for name, asked in record.networks().items():
        shown[name] = network_views.endpoint_settings(asked, endpoints.get(name), network_id(name))
        if name not in NAMES:
            shown[name].DNSNames = naming.names_of(container, asked.Aliases or ())
    return shown


def _ports(container: Container) -> dict[str, list[PortBinding] | None]:
    exposed = {key if "/" in key else f"{key}/tcp" for key in container.record.Config.ExposedPorts or ()}
    state = container.state
    if not container.running or not any(endpoint.Interface for endpoint in state.Endpoints.values()):
        return {}
    bound: dict[str, list[PortBinding]] = {}
    for port in state.ports:
        binding = PortBinding(HostIp=port.host_ip, HostPort=str(port.host_port or ""))
        bound.setdefault(f"{port.container_port}/{port.protocol}", []).append(binding)
    return {key: bound.get(key) for key in sorted(exposed | set(bound))}


def summary(
    container: Container, *, network_id: Callable[[str], str], now: dt.datetime, aliases: Sequence[str] = ()
) -> ContainerSummary:
    """One row of ``docker ps``; ``network_id`` as in ``inspect``, ``aliases`` are names of links to it."""
    record = container.record
    args = [*(record.Config.Entrypoint or ()), *(record.Config.Cmd or ())]
    ports = []
    for key, bindings in _ports(container).items():
        number, _, protocol = key.partition("/")
        if bindings:
            ports += [
                Port(IP=item.HostIp, PrivatePort=int(number), PublicPort=int(item.HostPort or 0), Type=protocol)
                for item in bindings
            ]
        else:
            ports.append(Port(PrivatePort=int(number), Type=protocol))
    state = container.state_json()
    return ContainerSummary(
        Id=record.ID,
        Names=[f"/{record.Name}", *aliases],
        Image=record.Config.Image,
        ImageID=record.ImageID,
        Command=spec.display_command(args[0], args[1:]) if args else "",
        Created=record.CreatedNs // 1_000_000_000,
        Ports=ports,
        Labels=record.Config.Labels or {},
        State=state.Status,
        Status=status_text(container, now),
        HostConfig=SummaryHostConfig(
            NetworkMode=record.HostConfig.NetworkMode, Annotations=record.HostConfig.Annotations
        ),
        NetworkSettings=SummaryNetworkSettings(Networks=_networks(container, network_id)),
        Mounts=list(record.Mounts),
    )


def status_text(container: Container, now: dt.datetime) -> str:
    """The STATUS column: "Up 3 minutes (healthy)", "Exited (1) 2 hours ago", "Created"."""
    state = container.state_json()
    if state.Status == "removing":
        return "Removal In Progress"
    if state.Status == "restarting":
        return f"Restarting ({state.ExitCode}) {_ago(state.FinishedAt, now)} ago"
    if state.Status == "created":
        return "Created"
    if not state.Running:
        return f"Exited ({state.ExitCode}) {_ago(state.FinishedAt, now)} ago"
    text = f"Up {_ago(state.StartedAt, now)}"
    if state.Paused:
        return f"{text} (Paused)"
    if state.Health is not None:
        health = "health: starting" if state.Health.Status == "starting" else state.Health.Status
        return f"{text} ({health})"
    return text


def _ago(moment: str, now: dt.datetime) -> str:
    if moment == NEVER:
        return "Less than a second"
    then = dt.datetime.strptime(moment[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=dt.UTC)
    return human_duration((now - then).total_seconds())


class ContainerFilter:
    """``docker ps --filter``, checked once and then asked for each container.

    Args:
        filters: values by key; values of one key are alternatives, but every label must fit.
        lookup: finds the container that before and since name.
        image_id: ID of an image by name, "" when there is none.

    Raises:
        InvalidParameterError: an unknown key or value.
    """

    def __init__(
        self,
        filters: Mapping[str, Sequence[str]],
        *,
        lookup: Callable[[str], Container],
        image_id: Callable[[str], str],
    ) -> None:
        if unknown := set(filters) - KNOWN_FILTERS:
            raise InvalidParameterError(f"invalid filter '{min(unknown)}'")
        for status in filters.get("status", ()):
            if status not in _STATUSES:
                raise InvalidParameterError(f"invalid filter 'status={status}'")
        for code in filters.get("exited", ()):
            if not code.lstrip("-").isdecimal():
                raise InvalidParameterError(f"invalid filter 'exited={code}'")
        self._filters = filters
        self._before = [lookup(ref).record.CreatedNs for ref in filters.get("before", ())]
        self._since = [lookup(ref).record.CreatedNs for ref in filters.get("since", ())]
        self._images = {image_id(name) for name in filters.get("ancestor", ())} - {""}

    @property
    def wants_stopped(self) -> bool:
        """Whether a status filter takes the place of "only running ones"."""
        return bool({"status", "exited"} & set(self._filters))

    def takes(self, container: Container) -> bool:
        """Whether every filter fits."""
        created = container.record.CreatedNs
        if any(created >= moment for moment in self._before) or any(created <= moment for moment in self._since):
            return False
        return all(self._fits(key, values, container) for key, values in self._filters.items())

    def _fits(self, key: str, values: Sequence[str], container: Container) -> bool:
        record, state = container.record, container.state_json()
        labels = record.Config.Labels or {}
        if key == "id":
            return any(record.ID.startswith(value) for value in values)
        if key == "name":
            return any(value.removeprefix("/").strip("^$") in record.Name for value in values)
        if key == "label":
            return has_labels(labels, values)
        if key == "status":
            return state.Status in values
        if key == "exited":
            return state.Status == "exited" and str(state.ExitCode) in values
        if key == "health":
            return (state.Health.Status if state.Health else "none") in values
        if key == "is-task":
            return any((value.lower() in ("true", "1")) == (TASK_LABEL in labels) for value in values)
        if key == "ancestor":
            return record.ImageID in self._images or record.Config.Image in values
        if key == "network":
            names = {*record.networks(), *record.Endpoints} or {"container"}
            ids = [endpoint.NetworkID for endpoint in container.state.Endpoints.values()]
            return any(value in names or any(each.startswith(value) for each in ids) for value in values)
        if key == "volume":
            return any(
                value in (point.Name, point.Source, point.Destination) for point in record.Mounts for value in values
            )
        if key in ("publish", "expose"):
            return any(_normal_port(value) in self._port_keys(key, container) for value in values)
        return True  # before and since were looked at above

    @staticmethod
    def _port_keys(key: str, container: Container) -> set[str]:
        if key == "expose":
            return {_normal_port(port) for port in container.record.Config.ExposedPorts or ()}
        return {f"{port.host_port}/{port.protocol}" for port in container.state.ports if container.running}


def _normal_port(text: str) -> str:
    return text if "/" in text else f"{text}/tcp"
