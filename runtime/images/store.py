"""The images of this node: the one object that the rest of the engine talks to."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from runtime.images.types import (
    ContainerUse,
    DeletedItem,
    DistributionInspect,
    Image,
    ImageHistoryItem,
    Progress,
    PruneReport,
    RegistryAuth,
    RootFS,
)

Filters = Mapping[str, Sequence[str]]


class ImageStore:
    """Images, their layers and the root file systems of containers, kept below one directory.

    ``open`` before anything else, ``close`` at the end; one event loop. Methods that touch the disk for longer than a
    moment run in threads. ``users`` may be set to a function that tells which containers were made from an image ID.
    """

    users: Callable[[str], Sequence[ContainerUse]]

    def __init__(self, root: Path, *, insecure_registries: Sequence[str] = (), mirrors: Sequence[str] = ()) -> None: ...

    async def open(self) -> None:
        """Read the state, remove what a crash left. Raises OverlayUnsupportedError."""

    async def close(self) -> None:
        """Cancel what is under way. Mounted root file systems stay mounted."""

    def get(self, name: str) -> Image:
        """By name, ``name@digest``, ID or unique ID prefix. Raises ImageNotFoundError."""
        raise NotImplementedError

    async def pull(
        self,
        ref: str,
        *,
        platform: str | None = None,
        auth: RegistryAuth | None = None,
        progress: Progress | None = None,
    ) -> Image:
        """Fetch from the registry. ``platform`` like ``linux/arm64/v8``. Raises RegistryError and others."""
        raise NotImplementedError

    def list(self, *, filters: Filters | None = None, all: bool = False) -> list[dict[str, object]]:  # noqa: A002
        """``GET /images/json``."""
        raise NotImplementedError

    def inspect(self, name: str) -> dict[str, object]:
        """``GET /images/{name}/json``."""
        raise NotImplementedError

    def history(self, name: str) -> list[ImageHistoryItem]:
        """``GET /images/{name}/history``, newest first."""
        raise NotImplementedError

    async def tag(self, name: str, target: str) -> None:
        """Give an image one more name; the name moves if another image had it."""

    async def remove(self, name: str, *, force: bool = False, prune: bool = True) -> list[DeletedItem]:
        """``DELETE /images/{name}``. Raises ImageNotFoundError, ImageConflictError."""
        raise NotImplementedError

    async def prune(self, *, filters: Filters | None = None) -> PruneReport:
        """``POST /images/prune``."""
        raise NotImplementedError

    async def load(self, source: AsyncIterable[bytes], *, progress: Progress | None = None) -> list[str]:
        """``POST /images/load``: names (or IDs of nameless images) in the archive's order."""
        raise NotImplementedError

    async def import_tar(
        self,
        source: AsyncIterable[bytes],
        *,
        repo: str = "",
        tag: str = "",
        changes: Sequence[str] = (),
        message: str = "",
        platform: str | None = None,
    ) -> Image:
        """``POST /images/create?fromSrc=-``: a root file system tar becomes an image of one layer."""
        raise NotImplementedError

    def save(self, names: Sequence[str]) -> AsyncIterator[bytes]:
        """``GET /images/get``: a tar in docker-save format that is an OCI layout too. Raises ImageNotFoundError at once."""
        raise NotImplementedError

    async def distribution_inspect(self, ref: str, auth: RegistryAuth | None = None) -> DistributionInspect:
        """``GET /distribution/{name}/json``: asks the registry, fetches no layer."""
        raise NotImplementedError

    async def prepare_rootfs(self, image_id: str, container_id: str) -> RootFS:
        """Make the writable layer of a container. Idempotent for the same pair. Raises ImageNotFoundError."""
        raise NotImplementedError

    async def mount_rootfs(self, container_id: str) -> Path:
        """Mount it and tell where. Idempotent. Raises SnapshotError."""
        raise NotImplementedError

    async def unmount_rootfs(self, container_id: str) -> None:
        """Idempotent; lazily if something is still inside."""

    async def remove_rootfs(self, container_id: str) -> None:
        """Unmount and delete the writable layer. Idempotent."""

    async def rootfs_size(self, container_id: str) -> int:
        """Bytes of the container's own changes (``SizeRw``)."""
        raise NotImplementedError
