"""Giving back what a run of a container held, after its exit or a start that failed."""

from __future__ import annotations

import asyncio

from base.backoff import Backoff
from base.tasks import OwnedTasks
from runtime.containers.container import Container
from runtime.containers.naming import Naming
from runtime.containers.runc import Runc
from runtime.containers.store import ContainerStore
from runtime.errors import EngineError
from runtime.images import ImagesError, ImageStore
from runtime.networks import Networks
from runtime.volumes import Volumes

RETRY_FIRST_S, RETRY_MAX_S = 0.5, 15.0


class Releasing:
    """The reverse of a start, and the one place that knows all it takes.

    What could not be given back is tried again, until it has been or the container runs again, which holds it anew.
    """

    def __init__(
        self,
        *,
        store: ContainerStore,
        runc: Runc,
        images: ImageStore,
        networks: Networks,
        naming: Naming,
        volumes: Volumes,
    ) -> None:
        self._store, self._runc = store, runc
        self._images, self._networks, self._naming, self._volumes = images, networks, naming, volumes
        self._left: dict[str, Container] = {}
        self._tasks = OwnedTasks()
        self._retrying: asyncio.Task[None] | None = None

    async def release(self, container: Container) -> None:
        """Give back endpoints, cgroups, bundle, mount and volumes, under the lock.

        Idempotent, and fine with a run that came to hold only some of them. What fails is logged, the rest is done.
        """
        container.let_go("init")
        if await self._give_back(container):
            self._left.pop(container.id, None)
            return
        self._left[container.id] = container
        if self._retrying is None or self._retrying.done():
            self._retrying = self._tasks.spawn(self._retry(), name="engine.release")

    async def close(self) -> None:
        """Try no more: the rest is the next daemon's."""
        await self._tasks.close()

    async def _give_back(self, container: Container) -> bool:
        """Whether nothing is left."""
        say = container.log.debug if container.id in self._left else container.log.error
        done = True
        for step in (
            self._release_network(container),
            self._runc.clean(container.id),
            self._forget_exit(container),
            self._images.unmount_rootfs(container.id),
            self._volumes.release(container.id),
        ):
            try:
                await step
            except (EngineError, ImagesError, OSError) as error:
                say("container.not_released", reason=str(error))
                done = False
        return done and self._store.is_safe(container)

    async def _retry(self) -> None:
        backoff = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        while self._left:
            await asyncio.sleep(backoff.next_s())
            for container in tuple(self._left.values()):
                async with container.lock:
                    if container.running or await self._give_back(container):
                        self._left.pop(container.id, None)
                        container.log.info("container.released")

    async def _forget_exit(self, container: Container) -> None:
        """Once what it says is in the container's state, and that is safe: else it is all that the next daemon has."""
        if self._store.is_safe(container):
            self._runc.forget_exit(container.id)

    async def _release_network(self, container: Container) -> None:
        await self._naming.forget(container)  # before its addresses are another's
        mode = f"container:{container.id}"
        joined = next(
            (each for each in self._store if each.running and each.record.HostConfig.NetworkMode == mode), None
        )
        await self._networks.release(container.id, staying=f"/proc/{joined.state.Pid}/ns/net" if joined else "")
