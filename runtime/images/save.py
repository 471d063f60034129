"""Writing image archives: one tar that is an OCI layout and what ``docker load`` of any age reads.

Sources: OCI image-spec ``image-layout.md``; moby ``image/tarexport/save.go`` (``manifest.json``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import BinaryIO

import msgspec

from runtime.images.archive import DockerManifestItem
from runtime.images.content import CHUNK_BYTES, ContentStore, digest_of
from runtime.images.errors import ContentError
from runtime.images.manifests import OCI_INDEX, OCI_MANIFEST, make_manifest
from runtime.images.records import Entry
from runtime.images.reference import parse_reference
from runtime.images.tar_members import END_OF_ARCHIVE, data_member, directory_member, padding
from runtime.images.types import Descriptor

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


async def save_archive(content: ContentStore, wanted: Sequence[tuple[Entry, Sequence[str]]]) -> AsyncIterator[bytes]:
    """The tar, piece by piece.

    Args:
        wanted: images and the canonical tags to save each with; the blobs must not be collected meanwhile.

    Raises:
        ContentError: a blob is damaged or gone.
    """
    items, manifests, blobs = list[DockerManifestItem](), list[Descriptor](), dict[str, bytes]()
    files = dict[str, int]()
    for entry, tags in wanted:
        config_size = content.size(entry.record.ID)
        manifest = make_manifest(entry.record.ID, config_size, entry.record.Layers)
        digest = digest_of(manifest)
        blobs[digest] = manifest
        files[entry.record.ID] = config_size
        files.update((layer.digest, content.size(layer.digest)) for layer in entry.record.Layers)
        manifests += _index_entries(digest, len(manifest), tags)
        layers = [_blob_path(layer.digest) for layer in entry.record.Layers]
        familiar = [parse_reference(tag).familiar for tag in tags]
        items.append(DockerManifestItem(Config=_blob_path(entry.record.ID), RepoTags=familiar, Layers=layers))

    yield directory_member("blobs/") + directory_member("blobs/sha256/")
    for digest, data in blobs.items():
        yield _member(_blob_path(digest), data)
    for digest, size in files.items():
        async for chunk in _blob_member(content, digest, size):
            yield chunk
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    yield _member("index.json", msgspec.json.encode(index))
    yield _member("manifest.json", msgspec.json.encode(items))
    yield _member("oci-layout", _LAYOUT)
    yield END_OF_ARCHIVE


def _index_entries(digest: str, size: int, tags: Sequence[str]) -> list[Descriptor]:
    plain = Descriptor(media_type=OCI_MANIFEST, digest=digest, size=size)
    named = []
    for tag in tags:
        ref = parse_reference(tag)
        annotations = {"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": ref.tag}
        named.append(msgspec.structs.replace(plain, annotations=annotations))
    return named or [plain]


def _blob_path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _member(path: str, data: bytes) -> bytes:
    return data_member(path, len(data)) + data + padding(len(data))


async def _blob_member(content: ContentStore, digest: str, size: int) -> AsyncIterator[bytes]:
    file: BinaryIO = await asyncio.to_thread(content.path(digest).open, "rb")
    with file:
        yield data_member(_blob_path(digest), size)
        left = size
        while left:
            data = await asyncio.to_thread(file.read, min(left, CHUNK_BYTES))
            if not data:
                raise ContentError(f"content {digest} is shorter than it was")
            left -= len(data)
            yield data
        yield padding(size)
