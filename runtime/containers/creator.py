"""Making a container: volumes, writable layer and record, all or nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from base.backoff import Backoff
from base.tasks import OwnedTasks, try_again
from base.times import rfc3339
from runtime.containers import creation, limits, links, mounts, networking, spec
from runtime.containers.announcements import announce
from runtime.containers.apparmor import AppArmor
from runtime.containers.mounts import MountRequest, mount_point
from runtime.containers.record import Record
from runtime.containers.removal import AGAIN_S_MAX, AGAIN_S_MIN
from runtime.containers.spec import HostFacts
from runtime.containers.store import ContainerStore
from runtime.errors import EngineError, InvalidParameterError
from runtime.events import EventBus
from runtime.images import ImagesError, ImageStore
from runtime.networks import Networks
from runtime.networks.predefined import NAMES
from runtime.types import ContainerConfig, EndpointSettings, HostConfig, MountPoint, NetworkingConfig
from runtime.volumes import Volumes

log = structlog.get_logger(__name__)


class Creator:
    """Carries out create requests."""

    def __init__(
        self,
        *,
        store: ContainerStore,
        images: ImageStore,
        volumes: Volumes,
        events: EventBus,
        facts: HostFacts,
        apparmor: AppArmor,
        networks: Networks,
    ) -> None:
        self._store, self._images, self._volumes, self._events = store, images, volumes, events
        self._facts, self._apparmor, self._networks = facts, apparmor, networks
        self._tasks = OwnedTasks()

    async def create(
        self, config: ContainerConfig, host: HostConfig, on: NetworkingConfig | None, name: str | None
    ) -> tuple[str, list[str]]:
        """See ``Engine.create``; ``on`` are the networks."""
        if not config.Image:
            raise InvalidParameterError("no image given")
        networking.check_modes(config, host)
        image = self._images.get(config.Image)
        config = creation.merge(config, image.config)
        host, warnings = limits.settle(host, self._facts.capacity)
        warnings += creation.validate(config, host, self._facts)
        self._apparmor.check(spec.wanted_apparmor(host.SecurityOpt or ()))
        if not host.LogConfig.Type:  # docker-py reads output only through a driver that it knows by name
            host = msgspec.structs.replace(host, LogConfig=msgspec.structs.replace(host.LogConfig, Type="json-file"))
        host = msgspec.structs.replace(host, Runtime=host.Runtime or "runc")
        host, endpoints = self._on_networks(config, host, on)
        linked = links.settle(host.Links or (), self._store.get) if host.NetworkMode in NAMES else {}
        sources = [self._store.get(entry.partition(":")[0]) for entry in host.VolumesFrom or ()]
        planned = mounts.plan(config, host, creation.inherited_mounts(host, sources))
        container_id = self._store.new_id()
        name = self._store.claim_name(name, container_id)
        anonymous: list[str] = []
        try:
            with self._volumes.claiming(container_id):
                points, requests = await self._settle(planned, container_id, anonymous)
                await self._images.prepare_rootfs(image.id, container_id)
                now = time.time_ns()
                record = Record(
                    ID=container_id,
                    Name=name,
                    CreatedNs=now,
                    Created=rfc3339(now),
                    ImageID=image.id,
                    Config=self._with_hostname(config, host, container_id),
                    HostConfig=host,
                    Endpoints=endpoints,
                    Mounts=points,
                    Requests=requests,
                    Links=linked,
                )
                container = await self._store.add(record)
            self._networks.reservations.ask(record.ID, record.Endpoints)
        except BaseException:
            self._store.release_name(name, container_id)
            await self._undo(container_id, anonymous)
            raise
        container.log.info("container.created", state=container.state.Status.value, name=name, image_id=image.id)
        announce(self._events, container, "create")
        return container_id, warnings

    def _on_networks(
        self, config: ContainerConfig, host: HostConfig, on: NetworkingConfig | None
    ) -> tuple[HostConfig, dict[str, EndpointSettings]]:
        """The network mode by name or full ID, and what is asked of each network."""
        if host.NetworkMode.startswith("container:"):
            other = self._store.get(host.NetworkMode.removeprefix("container:"))
            host = msgspec.structs.replace(host, NetworkMode=f"container:{other.id}")
        mode, endpoints = networking.settle(config, host, on, self._networks.find)
        return msgspec.structs.replace(host, NetworkMode=mode), endpoints

    async def _settle(
        self, planned: Sequence[MountRequest], container_id: str, anonymous: list[str]
    ) -> tuple[list[MountPoint], list[MountRequest]]:
        """Make the volumes that do not exist yet; names of anonymous ones are added to ``anonymous``."""
        points, settled = [], []
        for request in planned:
            if request.kind == "volume":
                volume = await self._volumes.create(
                    request.source,
                    driver=request.driver or "local",
                    options=dict(request.driver_options),
                    labels=dict(request.labels),
                    claimed_by=container_id,
                )
                if not request.source:
                    anonymous.append(volume.Name)
                request = msgspec.structs.replace(request, source=volume.Name)
                points.append(mount_point(request, source=volume.Mountpoint, name=volume.Name))
            else:
                _refuse_missing_source(request)
                points.append(mount_point(request, source=request.source))
            settled.append(request)
        return points, settled

    def _with_hostname(self, config: ContainerConfig, host: HostConfig, container_id: str) -> ContainerConfig:
        """Its own by default; in another container's network that one's, as /etc/hosts and /etc/hostname are."""
        if host.NetworkMode.startswith("container:"):
            other = self._store.get(host.NetworkMode.removeprefix("container:")).record.Config
            return msgspec.structs.replace(config, Hostname=other.Hostname, Domainname=other.Domainname)
        if config.Hostname or host.NetworkMode == "host" or host.UTSMode == "host":
            return config
        return msgspec.structs.replace(config, Hostname=container_id[:12])

    async def close(self) -> None:
        """What is not undone by now is the next daemon's, but for anonymous volumes, which stay."""
        await self._tasks.close()

    async def _undo(self, container_id: str, anonymous: Sequence[str]) -> None:
        """Now, or when it can be done."""
        if not await self._is_undone(container_id, anonymous):
            again = try_again(lambda: self._is_undone(container_id, anonymous), Backoff(AGAIN_S_MIN, AGAIN_S_MAX))
            self._tasks.spawn(again, name=f"undo create {container_id[:12]}")

    async def _is_undone(self, container_id: str, anonymous: Sequence[str]) -> bool:
        try:
            await self._images.remove_rootfs(container_id)
            for name in anonymous:
                await self._volumes.remove(name, force=True)
        except (EngineError, ImagesError, OSError) as error:
            log.error("create.not_undone", container_id=container_id, reason=str(error))
            return False
        return True


def _refuse_missing_source(request: MountRequest) -> None:
    if request.kind == "bind" and not request.create_source and not Path(request.source).exists():
        raise InvalidParameterError(
            f'invalid mount config for type "bind": bind source path does not exist: {request.source}'
        )
