"""What images, containers and volumes take on the disk: ``docker system df``.

Source: moby ``daemon/disk_usage.go`` (API 1.51).
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from runtime.images import ImageStore
from runtime.types import ContainerSummary
from runtime.volumes import Volume, Volumes

FEW_BYTES, FEW_FILES = 1 << 20, 16
"""With less left a start may fail."""
UNKNOWN = -1
"""moby ``volume/service/convert.go``: the size of a volume that cannot be measured."""


class DiskUsage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The answer of ``GET /system/df``, arrays of the objects as clients up to 1.51 read them; None was not asked for."""

    LayersSize: int | None = None
    Images: list[dict[str, object]] | None = None
    Containers: Sequence[ContainerSummary] | None = None
    Volumes: list[dict[str, object]] | None = None
    BuildCache: list[object] | None = None


async def disk_usage(
    kinds: Collection[str], *, images: ImageStore, volumes: Volumes, containers: Sequence[ContainerSummary]
) -> DiskUsage:
    """Of the kinds (container, image, volume, build-cache) that are asked for; ``containers`` are all there are."""
    usage = DiskUsage()
    if "image" in kinds:
        usage.Images, usage.LayersSize = _of_images(images, Counter(summary.ImageID for summary in containers))
    if "container" in kinds:
        for summary in containers:
            summary.SizeRw = await images.rootfs_size(summary.Id)
        usage.Containers = containers
    if "volume" in kinds:
        usage.Volumes = [await _of_volume(volumes, volume) for volume in volumes.list()]
    if "build-cache" in kinds:
        usage.BuildCache = []
    return usage


async def _of_volume(volumes: Volumes, volume: Volume) -> dict[str, object]:
    size_bytes = await volumes.size_bytes(volume)
    usage = {"Size": UNKNOWN if size_bytes is None else size_bytes, "RefCount": len(volumes.users(volume.Name))}
    return {name: getattr(volume, name) for name in volume.__struct_fields__} | {"UsageData": usage}


def disk_warnings(folder: Path) -> list[str]:
    """What is wrong with the disk that the engine's state is on, for people; as docker info shows warnings."""
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        return [f"WARNING: {folder} cannot be read: {error.strerror}"]
    if disk.f_flag & os.ST_RDONLY:
        return [f"WARNING: {os.strerror(errno.EROFS)}: {folder}; nothing can be created, started or removed"]
    few_files = disk.f_files and disk.f_favail < FEW_FILES  # btrfs counts none
    if disk.f_bavail * disk.f_frsize >= FEW_BYTES and not few_files:
        return []
    return [
        f"WARNING: {os.strerror(errno.ENOSPC)}: {folder}; nothing can be created or started until there is room: remove "
        "containers, images or volumes"
    ]


def _of_images(images: ImageStore, uses: Counter[str]) -> tuple[list[dict[str, object]], int]:
    """Images with the number of their containers, and the bytes of all layers.

    A layer counts as shared when another image has it too.
    """
    found = images.list()
    layers = {str(image["Id"]): images.layer_sizes(str(image["Id"])) for image in found}
    owners = Counter(chain_id for sizes in layers.values() for chain_id in sizes)
    unique = {chain_id: size for sizes in layers.values() for chain_id, size in sizes.items()}
    for image in found:
        sizes = layers[str(image["Id"])]
        image["Containers"] = uses[str(image["Id"])]
        image["SharedSize"] = sum(size for chain_id, size in sizes.items() if owners[chain_id] > 1)
    return found, sum(unique.values())
