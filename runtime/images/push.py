"""Pushing one tag: blobs that the registry lacks, then the manifest.

The manifest an image was pulled with is pushed as it was, so that its digest stays the same; other images get an OCI
manifest over the layer blobs as they are stored (an imported layer goes uncompressed, as it is).

Sources: OCI distribution-spec v1.1 "Push"; moby ``distribution/push_v2.go`` for the progress messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import BinaryIO, TypeVar
from urllib.parse import urljoin

import msgspec

from runtime.images.content import CHUNK_BYTES, ContentStore, digest_of
from runtime.images.endpoints import Endpoint
from runtime.images.errors import AccessDeniedError, ImageNotFoundError, ManifestError, RegistryError
from runtime.images.manifests import (
    INDEXES,
    OCI_CONFIG,
    make_manifest,
    media_type_of,
    parse_manifest,
)
from runtime.images.pull import PARALLEL_DOWNLOADS, LayerProgress, first_error
from runtime.images.records import Entry, name_image, short_id
from runtime.images.reference import Reference
from runtime.images.registry import RegistryClient, with_retries
from runtime.images.state import State, now_text
from runtime.images.transport import ATTEMPTS_MAX, StatusError, Transport
from runtime.images.types import Descriptor, Progress, RegistryAuth

T = TypeVar("T")


class Pusher:
    """Pushes images of ``state``."""

    def __init__(self, state: State, registry: RegistryClient) -> None:
        self._state, self._registry = state, registry

    async def push(self, ref: Reference, auth: RegistryAuth | None, progress: Progress) -> str:
        """Push what is called ``ref`` here; returns the digest of its manifest.

        Raises:
            ImageNotFoundError, AccessDeniedError, UnauthorizedError, RegistryUnavailableError, RegistryError
        """
        progress({"status": f"The push refers to repository [{ref.name}]"})
        entry = self._state.records.by_name(ref)
        if entry is None:
            raise ImageNotFoundError(ref.familiar)
        with self._state.content.lease() as lease:
            for digest in entry.live_blobs:
                lease.add(digest)
            manifest, media_type, layers = await asyncio.to_thread(self._manifest, entry)
            scope = f"repository:{ref.path}:pull,push"
            endpoint, transport = await self._registry.reach(ref, auth, scope)
            upload = _Upload(self._state.content, endpoint, transport, ref, auth, scope)
            await self._blobs(upload, layers, progress)
            config = Descriptor(
                media_type=OCI_CONFIG, digest=entry.record.ID, size=self._state.content.size(entry.record.ID)
            )
            await upload.ensure_blob(config, None)
            await upload.put_manifest(manifest, media_type)
        digest = digest_of(manifest)
        pushed = str(ref.with_digest(digest))
        await self._state.records.change(
            lambda records: name_image(records, entry.record.ID, [], [pushed], now=now_text())
        )
        progress({"status": f"{ref.tag}: digest: {digest} size: {len(manifest)}"})
        progress({"progressDetail": {}, "aux": {"Tag": ref.tag, "Digest": digest, "Size": len(manifest)}})
        return digest

    def _manifest(self, entry: Entry) -> tuple[bytes, str, list[Descriptor]]:
        """Bytes, media type and layers of the manifest to push. Blocks."""
        content = self._state.content
        for digest in entry.record.Manifests:
            data = content.read(digest)
            media_type = media_type_of(data)
            if media_type in INDEXES:
                continue
            manifest = parse_manifest(data)
            if manifest.config.digest == entry.record.ID and all(
                content.has(layer.digest) for layer in manifest.layers
            ):
                return data, media_type, manifest.layers
        data = make_manifest(entry.record.ID, content.size(entry.record.ID), entry.record.Layers)
        return data, media_type_of(data), entry.record.Layers

    async def _blobs(self, upload: _Upload, layers: list[Descriptor], progress: Progress) -> None:
        slots = asyncio.Semaphore(PARALLEL_DOWNLOADS)
        different = {layer.digest: layer for layer in layers}

        async def one(layer: Descriptor) -> None:
            report = LayerProgress(short_id(layer.digest), progress)
            report.say("Preparing")
            async with slots:
                await upload.ensure_blob(layer, report)

        try:
            async with asyncio.TaskGroup() as group:
                for layer in different.values():
                    group.create_task(one(layer), name=f"push:{layer.digest}")
        except BaseExceptionGroup as error:
            raise first_error(error) from None


class _Upload(msgspec.Struct, frozen=True):
    """One repository of one registry, authorised to write."""

    content: ContentStore
    endpoint: Endpoint
    transport: Transport
    ref: Reference
    auth: RegistryAuth | None
    scope: str

    async def ensure_blob(self, blob: Descriptor, report: LayerProgress | None) -> None:
        if await self._retried(lambda: self._has(blob)):
            if report is not None:
                report.say("Layer already exists")
            return
        await self._retried(lambda: self._upload(blob, report))
        if report is not None:
            report.say("Pushed")

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            return await with_retries(attempt, attempts_max=ATTEMPTS_MAX)
        except StatusError as error:
            if error.status in (401, 403) or error.code == "DENIED":
                raise AccessDeniedError(str(error)) from error
            raise RegistryError(str(error)) from error

    async def _has(self, blob: Descriptor) -> bool:
        path = f"/v2/{self.ref.path}/blobs/{blob.digest}"
        try:
            async with self.transport.request(self.endpoint, "HEAD", path, scope=self.scope, auth=self.auth):
                return True
        except StatusError as error:
            if error.status == 404:
                return False
            raise

    async def _upload(self, blob: Descriptor, report: LayerProgress | None) -> None:
        start = f"/v2/{self.ref.path}/blobs/uploads/"
        async with self.transport.request(
            self.endpoint, "POST", start, scope=self.scope, auth=self.auth, data=b""
        ) as response:
            location = response.headers.get("Location", "")
        if not location:
            raise RegistryError(f"the registry {self.endpoint.host} did not say where to upload to")
        target = urljoin(f"{self.endpoint.url}{start}", location)
        if not target.startswith(("https://", "http://" if not self.endpoint.verify else "https://")):
            raise RegistryError(
                f"the registry {self.endpoint.host} wants the upload at {target}, which is not encrypted"
            )
        url = f"{target}{'&' if '?' in target else '?'}digest={blob.digest}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        async with self.transport.request(
            self.endpoint, "PUT", url, scope=self.scope, auth=self.auth, headers=headers, data=self._read(blob, report)
        ):
            return

    async def _read(self, blob: Descriptor, report: LayerProgress | None) -> AsyncIterator[bytes]:
        file: BinaryIO = await asyncio.to_thread(self.content.path(blob.digest).open, "rb")
        done = 0
        with file:
            while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield data
                done += len(data)
                if report is not None:
                    report.update(("Pushing", done, blob.size))

    async def put_manifest(self, manifest: bytes, media_type: str) -> None:
        path = f"/v2/{self.ref.path}/manifests/{self.ref.tag}"

        async def attempt() -> None:
            async with self.transport.request(
                self.endpoint,
                "PUT",
                path,
                scope=self.scope,
                auth=self.auth,
                headers={"Content-Type": media_type},
                data=manifest,
            ) as response:
                claimed = response.headers.get("Docker-Content-Digest", digest_of(manifest))
                if claimed != digest_of(manifest):
                    raise ManifestError(f"the registry stored {claimed} instead of {digest_of(manifest)}")

        await self._retried(attempt)
