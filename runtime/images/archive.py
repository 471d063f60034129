"""Reading image archives: ``docker save`` tars and OCI layouts.

Sources: moby ``image/tarexport`` (``manifest.json``), OCI image-spec ``image-layout.md``.
"""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Sequence

import msgspec

from base.json_text import read_json
from runtime.images.content import ContentStore
from runtime.images.errors import ArchiveError, ContentError, DigestMismatchError, InvalidReferenceError
from runtime.images.manifests import (
    INDEXES,
    check_platform,
    choose_manifest,
    layer_media_type,
    media_type_of,
    parse_config,
    parse_index,
    parse_manifest,
)
from runtime.images.platforms import host_platform
from runtime.images.records import short_id
from runtime.images.reference import parse_reference
from runtime.images.snapshots import chain_ids
from runtime.images.state import NewImage, State
from runtime.images.types import Descriptor, Progress
from runtime.unpack import headers
from runtime.unpack.compression import Decompressed, Reader
from runtime.unpack.errors import MalformedArchiveError
from runtime.unpack.rooted import split_name
from runtime.unpack.tar import TarStream

MEMBERS_MAX = 100_000
_BLOBS = "blobs/sha256/"
_NAME_ANNOTATION = "io.containerd.image.name"
_TAG_ANNOTATION = "org.opencontainers.image.ref.name"


class DockerManifestItem(msgspec.Struct):
    """One element of ``manifest.json``; layers lowest first."""

    Config: str
    RepoTags: list[str] | None = None
    Layers: list[str] | None = None


class Archive(msgspec.Struct, frozen=True):
    """An archive whose files have become blobs: path in the archive -> digest."""

    files: dict[str, str]

    def digest(self, path: str) -> str:
        """Raises ArchiveError if the archive lacks the file."""
        found = self.files.get(posixpath.normpath(path))
        if found is None:
            raise ArchiveError(f"invalid archive: {path} is missing")
        return found


def read_archive(source: Reader, content: ContentStore) -> Archive:
    """Store every file of the tar as a blob. Blocks. Raises ArchiveError, NoSpaceError, DigestMismatchError."""
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    try:
        with Decompressed(source) as plain:
            stream = TarStream(plain)
            for member in stream:
                name = "/".join(split_name(member.name))
                if len(files) + len(links) >= MEMBERS_MAX:
                    raise ArchiveError("invalid archive: too many files")
                if member.kind == headers.REGULAR and member.segments is None:
                    expected = f"sha256:{name.removeprefix(_BLOBS)}" if name.startswith(_BLOBS) else ""
                    files[name], _ = content.ingest_file(stream, expected=expected)
                elif member.kind == headers.SYMLINK:
                    links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.link_name))
                elif member.kind == headers.LINK:
                    links[name] = posixpath.normpath(member.link_name)
            stream.drain()
    except MalformedArchiveError as error:
        raise ArchiveError(f"invalid archive: {error}") from error
    for name, target in links.items():  # older docker save: a layer that occurs twice is a link
        for _ in range(8):
            if target in files:
                files[name] = files[target]
                break
            target = links.get(target, "")
    return Archive(files)


class Loader:
    """Makes images of archives."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def load(self, archive: Archive, progress: Progress) -> list[str]:
        """Names, or IDs of nameless images, in the archive's order. The caller holds the content."""
        if "manifest.json" in archive.files:
            items = _decode_items(await self._blob(archive.digest("manifest.json")))
            found = [await self._docker_image(archive, item) for item in items]
        elif "index.json" in archive.files:
            found = await self._oci_images(archive)
        else:
            raise ArchiveError("invalid archive: does not contain a manifest.json")
        if not found:
            raise ArchiveError("invalid archive: it holds no image")
        loaded = list[str]()
        for new in found:
            await self._unpack(new, progress)
            entry = await self._state.commit(new)
            loaded += [parse_reference(tag).familiar for tag in new.tags] or [entry.record.ID]
        return loaded

    async def _docker_image(self, archive: Archive, item: DockerManifestItem) -> NewImage:
        paths = item.Layers or []
        return await self._image(
            archive.digest(item.Config), [archive.digest(path) for path in paths], _canonical_tags(item.RepoTags or [])
        )

    async def _oci_images(self, archive: Archive) -> list[NewImage]:
        content = self._state.content
        index = parse_index(await asyncio.to_thread(content.read, archive.digest("index.json")))
        images = []
        for entry in index.manifests:
            data = await self._blob(entry.digest)
            kept = [entry.digest]
            if media_type_of(data, entry.media_type) in INDEXES:
                chosen = choose_manifest(parse_index(data), host_platform())
                data = await self._blob(chosen.digest)
                kept.append(chosen.digest)
            manifest = parse_manifest(data)
            annotations = entry.annotations or {}
            name = annotations.get(_NAME_ANNOTATION) or annotations.get(_TAG_ANNOTATION, "")
            named = _NAME_ANNOTATION in annotations or "/" in name or ":" in name  # else it is a tag of nothing
            tags = _canonical_tags([name] if name and named else [])
            layers = [layer.digest for layer in manifest.layers]
            images.append(await self._image(manifest.config.digest, layers, tags, kept))
        return images

    async def _blob(self, digest: str) -> bytes:
        try:
            return await asyncio.to_thread(self._state.content.read, digest)
        except DigestMismatchError:
            raise
        except (ContentError, InvalidReferenceError) as error:
            raise ArchiveError(f"invalid archive: {error}") from error

    async def _image(
        self, config_digest: str, layers: Sequence[str], tags: list[str], manifests: Sequence[str] = ()
    ) -> NewImage:
        config = parse_config(await self._blob(config_digest))
        if len(config.diff_ids) != len(layers):
            raise ArchiveError(
                f"invalid archive: {len(layers)} layers, but the configuration lists {len(config.diff_ids)}"
            )
        check_platform(config, None, config_digest)
        descriptors = [await asyncio.to_thread(layer_descriptor, self._state.content, digest) for digest in layers]
        return NewImage(config_digest, config, descriptors, tags=tags, manifests=manifests)

    async def _unpack(self, new: NewImage, progress: Progress) -> None:
        chain = chain_ids(new.config.diff_ids)
        for index, (diff_id, layer) in enumerate(zip(new.config.diff_ids, new.layers, strict=True)):
            if self._state.snapshots.has(chain[index]):
                continue
            shown = {"id": short_id(diff_id), "status": "Loading layer"}
            progress({**shown, "progressDetail": {"current": 0, "total": layer.size}})
            await self._state.ensure_layer(chain[:index], diff_id, layer)
            progress({**shown, "progressDetail": {"current": layer.size, "total": layer.size}})


def layer_descriptor(content: ContentStore, digest: str) -> Descriptor:
    """Descriptor of a stored layer blob. Blocks. Raises ArchiveError."""
    try:
        with content.path(digest).open("rb") as file:
            media_type = layer_media_type(file.read(8))
        return Descriptor(media_type=media_type, digest=digest, size=content.size(digest))
    except (FileNotFoundError, ContentError, InvalidReferenceError) as error:
        raise ArchiveError(f"invalid archive: layer {digest} is missing") from error


def _decode_items(data: bytes) -> list[DockerManifestItem]:
    try:
        return read_json(data, type=list[DockerManifestItem])
    except msgspec.DecodeError as error:
        raise ArchiveError(f"invalid archive: manifest.json: {error}") from error


def _canonical_tags(names: Sequence[str]) -> list[str]:
    """Raises ArchiveError for what is no name with a tag."""
    try:
        refs = [parse_reference(name).with_default_tag() for name in names]
    except InvalidReferenceError as error:
        raise ArchiveError(f"invalid archive: name {error.text[:200]!r}: {error}") from error
    return [str(ref.with_tag(ref.tag)) for ref in refs if ref.tag]
