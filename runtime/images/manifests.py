"""Manifests, indexes and image configurations: bytes in, checked values out; no I/O.

Sources: OCI image-spec v1.1 ``manifest.md``, ``image-index.md``, ``config.md``; Docker image manifest v2 schema 2.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar  # Any: a value of a manifest's JSON, judged field by field

import msgspec

from base.json_text import read_json
from runtime.images.errors import InvalidReferenceError, ManifestError, PlatformMismatchError
from runtime.images.platforms import choose, satisfies
from runtime.images.reference import check_digest
from runtime.images.snapshots import chain_ids
from runtime.images.types import Descriptor, Image, ImageConfig, Platform

T = TypeVar("T")

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEXES, MANIFESTS = (OCI_INDEX, DOCKER_LIST), (OCI_MANIFEST, DOCKER_MANIFEST)
ACCEPT = (DOCKER_MANIFEST, DOCKER_LIST, OCI_INDEX, OCI_MANIFEST)
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"
_ARTIFACT_CONFIGS = ("application/vnd.oci.empty.v1+json", "application/vnd.docker.plugin.v1+json")

MANIFEST_BYTES_MAX = 4 << 20
CONFIG_BYTES_MAX = 8 << 20
VALUES_MAX = 100_000
"""In one document. One full of ``{},`` takes seconds to read, on the event loop, and thirty times its size of memory for as
long as its image is here; those of real images have some hundreds."""

VOLUMES_MAX = 1000
"""Of one image: each of its containers has that many folders made, and mounted."""

LAYERS_MAX = 127
"""As many as dockerd takes; the rest of the mount options is the container's own."""


class Manifest(msgspec.Struct, rename={"media_type": "mediaType", "schema_version": "schemaVersion"}):
    """An image manifest: its configuration and its layers, lowest first."""

    config: Descriptor
    layers: list[Descriptor]
    media_type: str = ""
    schema_version: int = 2


class Index(msgspec.Struct, rename={"media_type": "mediaType", "schema_version": "schemaVersion"}):
    """An image index or manifest list."""

    manifests: list[Descriptor]
    media_type: str = ""
    schema_version: int = 2


class RootFSConfig(msgspec.Struct):
    """``rootfs`` of an image configuration; layers lowest first."""

    type: str = "layers"
    diff_ids: list[str] | None = None


class HistoryEntry(msgspec.Struct, omit_defaults=True):
    """One step of an image's making, oldest first."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False


class ConfigFile(msgspec.Struct, omit_defaults=True):
    """An image configuration blob: OCI fields and those of Docker's that the Engine API shows."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str | None = None
    author: str | None = None
    comment: str | None = None
    docker_version: str | None = None
    parent: str | None = None
    config: ImageConfig | None = None
    rootfs: RootFSConfig = msgspec.field(default_factory=RootFSConfig)
    history: list[HistoryEntry] | None = None

    @property
    def diff_ids(self) -> list[str]:
        return self.rootfs.diff_ids or []

    @property
    def platform(self) -> Platform:
        return Platform(architecture=self.architecture, os=self.os, variant=self.variant)


def _decode(data: bytes, kind: type[T], what: str) -> T:
    """Counts before it reads: a comma or a bracket a value, those in texts included."""
    if sum(map(data.count, (b",", b"{", b"["))) > VALUES_MAX:
        raise ManifestError(f"invalid {what}: more than {VALUES_MAX} values")
    try:
        return read_json(data, type=kind)
    except msgspec.DecodeError as error:
        raise ManifestError(f"invalid {what}: {error}") from error


def media_type_of(data: bytes, declared: str = "") -> str:
    """Media type of a manifest: what it says of itself, else what it was sent as, else what it looks like.

    Raises:
        ManifestError: not JSON, or of a kind that cannot be run.
    """
    fields = _decode(data, dict[str, Any], "manifest")
    own = fields.get("mediaType") or declared.partition(";")[0].strip()
    if own in (*INDEXES, *MANIFESTS):
        return str(own)
    if str(own).startswith(_SCHEMA1) or fields.get("schemaVersion") == 1:
        raise ManifestError("schema 1 manifests are no longer supported: push the image again with a newer client")
    if "manifests" in fields:
        return OCI_INDEX
    if "config" in fields and "layers" in fields:
        return OCI_MANIFEST
    raise ManifestError(f"unsupported manifest media type {own or 'unknown'}")


def parse_index(data: bytes) -> Index:
    """Raises ManifestError."""
    index = _decode(data, Index, "image index")
    for entry in index.manifests:
        _check_descriptor(entry)
    return index


def parse_manifest(data: bytes) -> Manifest:
    """Raises ManifestError."""
    manifest = _decode(data, Manifest, "image manifest")
    if len(manifest.layers) > LAYERS_MAX:
        raise ManifestError(f"max depth exceeded: {len(manifest.layers)} layers, at most {LAYERS_MAX} can be used")
    for descriptor in (manifest.config, *manifest.layers):
        _check_descriptor(descriptor)
    if manifest.config.media_type in _ARTIFACT_CONFIGS:
        raise ManifestError(f"not a container image: configuration of type {manifest.config.media_type}")
    return manifest


def _check_descriptor(descriptor: Descriptor) -> None:
    try:
        check_digest(descriptor.digest)
    except InvalidReferenceError as error:
        raise ManifestError(f"invalid manifest: {descriptor.digest[:100]!r}: {error}") from error
    if descriptor.size < 0:
        raise ManifestError(f"invalid manifest: {descriptor.digest} has a negative size")


def choose_manifest(index: Index, wanted: Platform) -> Descriptor:
    """Raises PlatformMismatchError if no entry serves ``wanted``."""
    entries = [entry for entry in index.manifests if entry.media_type in (*MANIFESTS, *INDEXES, "")]
    chosen = choose(wanted, entries)
    if chosen is None:
        raise PlatformMismatchError(f"no matching manifest for {wanted} in the manifest list entries")
    return chosen


def parse_config(data: bytes) -> ConfigFile:
    """Raises ManifestError."""
    config = _decode(data, ConfigFile, "image configuration")
    if config.rootfs.type != "layers":
        raise ManifestError(f"invalid image configuration: rootfs of type {config.rootfs.type!r}")
    for diff_id in config.diff_ids:
        try:
            check_digest(diff_id)
        except InvalidReferenceError as error:
            raise ManifestError(f"invalid image configuration: {diff_id[:100]!r}: {error}") from error
    if len(config.diff_ids) > LAYERS_MAX:
        raise ManifestError(f"max depth exceeded: {len(config.diff_ids)} layers, at most {LAYERS_MAX} can be used")
    volumes = (config.config and config.config.Volumes) or ()
    if len(volumes) > VOLUMES_MAX:
        raise ManifestError(f"invalid image configuration: {len(volumes)} volumes, at most {VOLUMES_MAX} can be used")
    return config


def check_platform(config: ConfigFile, wanted: Platform | None, name: str) -> None:
    """Refuse an image that cannot run as asked. Raises PlatformMismatchError."""
    if config.os and config.os != "linux":
        raise PlatformMismatchError(f'image operating system "{config.os}" cannot be used on this platform')
    if wanted is not None and config.architecture and not satisfies(wanted, config.platform):
        raise PlatformMismatchError(
            f"image with reference {name} was found but its platform ({config.platform}) "
            f"does not match the specified platform ({wanted})"
        )


def image_of(image_id: str, config: ConfigFile, names: tuple[str, ...], digests: tuple[str, ...], size: int) -> Image:
    """The value that callers of the store get."""
    chain = chain_ids(config.diff_ids)
    return Image(
        id=image_id,
        repo_tags=names,
        repo_digests=digests,
        architecture=config.architecture,
        os=config.os or "linux",
        variant=config.variant,
        created=config.created or "",
        size_bytes=size,
        config=config.config or ImageConfig(),
        diff_ids=tuple(config.diff_ids),
        chain_id=chain[-1] if chain else "",
    )


def make_manifest(config_digest: str, config_size: int, layers: list[Descriptor]) -> bytes:
    """An OCI manifest of an image that came without one."""
    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": Descriptor(media_type=OCI_CONFIG, digest=config_digest, size=config_size),
            "layers": layers,
        }
    )


def layer_media_type(head: bytes) -> str:
    """OCI media type of a layer blob by its first bytes."""
    if head.startswith(b"\x1f\x8b"):
        return f"{OCI_LAYER}+gzip"
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return f"{OCI_LAYER}+zstd"
    return OCI_LAYER


def epoch_of(text: str | None) -> int:
    """Seconds since the epoch of an RFC 3339 time; 0 for none or nonsense."""
    if not text:
        return 0
    head, dot, fraction = text.partition(".")
    if dot:  # Go writes up to nine digits, Python 3.11 reads six
        digits = len(fraction) - len(fraction.lstrip("0123456789"))
        text = f"{head}.{fraction[:digits][:6].ljust(6, '0')}{fraction[digits:]}"
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0, int(moment.timestamp())) if moment.year > 1 else 0
