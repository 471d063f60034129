"""Giving back what a run of a container held, after its exit or a start that failed."""

from __future__ import annotations

from runtime.containers.container import Container
from runtime.containers.runc import Runc
from runtime.containers.store import ContainerStore
from runtime.errors import EngineError
from runtime.images import ImagesError, ImageStore
from runtime.networks import Networks
from runtime.volumes import Volumes


class Releasing:
    """The reverse of a start, and the one place that knows all it takes."""

    def __init__(
        self,
        *,
        store: ContainerStore,
        runc: Runc,
        images: ImageStore,
        networks: Networks,
        volumes: Volumes,
    ) -> None:
        self._store, self._runc = store, runc
        self._images, self._networks, self._volumes = images, networks, volumes

    async def release(self, container: Container) -> None:
        """Give back endpoints, cgroups, bundle, mount and volumes, under the lock.

        Idempotent, and fine with a run that came to hold only some of them. What fails is logged, the rest is done.
        """
        container.let_go("init")
        for step in (
            self._release_network(container),
            self._runc.clean(container.id),
            self._images.unmount_rootfs(container.id),
            self._volumes.release(container.id),
        ):
            try:
                await step
            except (EngineError, ImagesError, OSError) as error:
                container.log.error("container.not_released", reason=str(error))

    async def _release_network(self, container: Container) -> None:
        shared = any(
            other.running and other.record.HostConfig.NetworkMode == f"container:{container.id}"
            for other in self._store
        )
        await self._networks.release(container.id, namespace_stays=shared)
