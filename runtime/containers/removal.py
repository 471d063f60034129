"""Removal of containers, and of what a removal that a kill cut short has left."""

from __future__ import annotations

import signal

import structlog

from base.backoff import Backoff
from base.tasks import OwnedTasks, try_again
from runtime.containers.announcements import announce
from runtime.containers.container import Container
from runtime.containers.exec_manager import ExecManager
from runtime.containers.record import Record
from runtime.containers.states import Event, Status
from runtime.containers.stopping import Stopping
from runtime.containers.store import ContainerStore
from runtime.containers.transitions import Transitions
from runtime.errors import ConflictError, EngineError, VolumeNotFoundError
from runtime.events import EventBus
from runtime.images import ImagesError, ImageStore
from runtime.networks import Networks
from runtime.volumes import Volumes

log = structlog.get_logger(__name__)

AGAIN_S_MIN, AGAIN_S_MAX = 0.5, 30.0


class Removal:
    """Takes containers away, with their layer, files, execs and, if asked, anonymous volumes."""

    def __init__(
        self,
        *,
        store: ContainerStore,
        images: ImageStore,
        networks: Networks,
        volumes: Volumes,
        stopping: Stopping,
        execs: ExecManager,
        transitions: Transitions,
        events: EventBus,
    ) -> None:
        self._store, self._images, self._volumes, self._events = store, images, volumes, events
        self._networks = networks
        self._stopping, self._execs, self._transitions = stopping, execs, transitions
        self._tasks = OwnedTasks()

    async def finish(self) -> None:
        """At the start of the daemon: end removals that had got as far as the volumes."""
        for record in self._store.half_removed():
            await self._remove_rest(record, volumes=True)

    async def close(self) -> None:
        """Try no more: the rest is the next daemon's."""
        await self._tasks.close()

    async def remove(self, container: Container, *, force: bool, volumes: bool) -> None:
        """Raises ConflictError."""
        work = self._remove(container, force=force, volumes=volumes)
        await self._transitions.to_its_end("remove", container, work)

    def remove_if_automatic(self, container: Container) -> None:
        """Begin the removal of one that has ended and was to go then (``docker run --rm``)."""
        if container.record.HostConfig.AutoRemove and not container.removing and not self._transitions.closed:
            self._transitions.spawn("autoremove", container, self.remove(container, force=True, volumes=True))

    async def _remove(self, container: Container, *, force: bool, volumes: bool) -> None:
        if container.removing:
            raise ConflictError(f"removal of container {container.record.Name} is already in progress")
        if (container.running or container.state.Status is Status.RESTARTING) and not force:
            raise ConflictError(_why_not(container))
        container.removing = True
        try:
            while not await self._remove_if_ended(container, force=force, volumes=volumes):
                ended = container.wait("exit")
                container.state.StoppedByUser = True
                self._stopping.signal(container, signal.SIGKILL)
                await ended
        except BaseException:
            container.removing = False
            raise
        container.close_pending_attaches()
        self._execs.container_ended(container)
        await self._remove_rest(container.record, volumes=volumes)
        container.log.info("container.removed", state=container.state.Status.value)
        announce(self._events, container, "destroy")
        container.notify("removed")

    async def _remove_if_ended(self, container: Container, *, force: bool, volumes: bool) -> bool:
        """False when it runs, perhaps because a start was under way; raises ConflictError for that without force."""
        async with container.lock:
            if container.running and not force:
                raise ConflictError(_why_not(container))
            if container.running:
                return False
            if container.state.Status is Status.RESTARTING:
                container.cancel_restart_timer()
                container.move(Event.RESTART_CANCELLED)
            # The record goes before the files: a crash in between leaves files of nobody, which the next start removes,
            # and not a container that cannot start. Unmounting is what may fail, and comes first.
            await self._images.unmount_rootfs(container.id)
            await self._store.forget(container, volumes=volumes)
            self._networks.reservations.drop(container.id)
            try:
                await self._images.remove_rootfs(container.id)
            except (ImagesError, OSError) as error:
                container.log.warning("rootfs.not_removed", reason=str(error), retry="next start")
            return True

    async def _remove_rest(self, record: Record, *, volumes: bool) -> None:
        """Of one that is no container any more. What would not go is tried again; its record stays as long."""
        if not volumes or await self._remove_anonymous_volumes(record):
            await self._store.discard(record.ID)
            return

        async def again() -> bool:
            if not await self._remove_anonymous_volumes(record):
                return False
            await self._store.discard(record.ID)
            return True

        self._tasks.spawn(try_again(again, Backoff(AGAIN_S_MIN, AGAIN_S_MAX)), name=f"remove rest {record.ID[:12]}")

    async def _remove_anonymous_volumes(self, record: Record) -> bool:
        """Those another container uses stay. Whether none is left that should not be."""
        done = True
        for point in record.Mounts:
            if point.Type != "volume":
                continue
            try:
                if self._volumes.get(point.Name).is_anonymous:
                    await self._volumes.remove(point.Name)
            except (ConflictError, VolumeNotFoundError):
                continue
            except EngineError as error:
                log.warning("volume.not_removed", container_id=record.ID, volume=point.Name, reason=str(error))
                done = False
        return done


def _why_not(container: Container) -> str:
    name, status = container.record.Name, container.state.Status
    hint = "stop the container before removing or force remove"
    if status is Status.PAUSED:
        hint = f"unpause and then {hint}"
    return f'cannot remove container "/{name}": container is {status}: {hint}'
