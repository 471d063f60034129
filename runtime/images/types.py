"""Values of the image part: what the container part and the HTTP API see of images.

Structs whose fields are spelled like ``Cmd`` are Engine API or OCI JSON as it is stored; the rest are our own values.
Sources: Engine API v1.4x (``ImageInspect``, ``ImageSummary``, ``DistributionInspect``), OCI image-spec ``config.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

ProgressMessage = dict[str, object]
Progress = Callable[[ProgressMessage], None]
"""Called with one Engine API progress message (``{"status": ..., "id": ..., "progressDetail": ...}``) at a time."""


Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""As Docker's are: a number of hundreds of digits is none that can be waited for."""


class HealthConfig(msgspec.Struct, omit_defaults=True):
    """``Config.Healthcheck``; durations in nanoseconds, 0 means inherit or default."""

    Test: list[str] | None = None
    Interval: Int64 = 0
    Timeout: Int64 = 0
    StartPeriod: Int64 = 0
    StartInterval: Int64 = 0
    Retries: Int64 = 0


class ImageConfig(msgspec.Struct, omit_defaults=True):
    """The execution defaults of an image: ``config`` of the OCI image configuration, Engine API spelling.

    ``None`` and absent mean the same. ``Env`` is a list of ``NAME=value``; the keys of ``ExposedPorts`` are like
    ``80/tcp``, those of ``Volumes`` are absolute paths.
    """

    User: str = ""
    ExposedPorts: dict[str, dict[str, object]] | None = None
    Env: list[str] | None = None
    Entrypoint: list[str] | None = None
    Cmd: list[str] | None = None
    Volumes: dict[str, dict[str, object]] | None = None
    WorkingDir: str = ""
    Labels: dict[str, str] | None = None
    StopSignal: str = ""
    StopTimeout: Int64 | None = None
    Healthcheck: HealthConfig | None = None
    Shell: list[str] | None = None
    OnBuild: list[str] | None = None
    ArgsEscaped: bool = False


class Image(msgspec.Struct, frozen=True):
    """One image of this node.

    Attributes:
        id: ``sha256:`` and 64 hex digits: the digest of the image configuration.
        repo_tags: familiar names with tag (``busybox:latest``), sorted; empty for a dangling image.
        repo_digests: familiar names with the digest they were pulled by (``busybox@sha256:...``), sorted.
        created: the configuration's own text, RFC 3339, or "" if it has none.
        size_bytes: sum of the unpacked sizes of its layers.
        diff_ids: digests of the uncompressed layer tars, lowest layer first.
        chain_id: identifies the stack of layers (OCI image-spec ``config.md``, "Layer ChainID"); "" without layers.
    """

    id: str
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    architecture: str
    os: str
    variant: str
    created: str
    size_bytes: int
    config: ImageConfig
    diff_ids: tuple[str, ...]
    chain_id: str


class RootFS(msgspec.Struct, frozen=True):
    """The writable root file system of one container: an overlay of the image's layers and a directory of its own.

    Attributes:
        path: where it is mounted by ``mount_rootfs``; the directory exists before that, empty.
        upper: the container's own changes (overlayfs upper directory).
    """

    container_id: str
    image_id: str
    chain_id: str
    path: Path
    upper: Path


class ContainerUse(msgspec.Struct, frozen=True):
    """A container that was made from an image, as the remover of images needs to know it."""

    container_id: str
    running: bool


@dataclass(frozen=True, slots=True)
class RegistryAuth:
    """Credentials for one registry, as the ``X-Registry-Auth`` header carries them. Never logged, never in ``repr``."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    server_address: str = ""


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """``{"architecture": "arm64", "os": "linux", "variant": "v8"}`` in Go's words (GOARCH, GOOS)."""

    architecture: str = ""
    os: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename={"media_type": "mediaType"}):
    """OCI content descriptor: what a blob is, its digest and its size in bytes."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] | None = None
    urls: list[str] | None = None


class DistributionInspect(msgspec.Struct, frozen=True):
    """The registry's answer on a reference: the digest it stands for now and the platforms behind it."""

    descriptor: Descriptor
    platforms: tuple[Platform, ...]

    def to_api(self) -> dict[str, object]:
        """``GET /distribution/{name}/json``."""
        target = self.descriptor
        return {
            "Descriptor": {"mediaType": target.media_type, "digest": target.digest, "size": target.size},
            "Platforms": [msgspec.to_builtins(platform) for platform in self.platforms],
        }


class DeletedItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of ``DELETE /images/{name}``: exactly one of the two is set."""

    Untagged: str = ""
    Deleted: str = ""


class PruneReport(msgspec.Struct, frozen=True):
    """``POST /images/prune``; ``SpaceReclaimed`` in bytes."""

    ImagesDeleted: list[DeletedItem]
    SpaceReclaimed: int


class ImageHistoryItem(msgspec.Struct, frozen=True):
    """One line of ``GET /images/{name}/history``; ``Created`` in seconds since the epoch, ``Size`` in bytes."""

    Id: str
    Created: int
    CreatedBy: str
    Tags: list[str] | None
    Size: int
    Comment: str
