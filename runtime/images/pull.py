"""Pulling one image: manifest, configuration, layers in parallel, unpacked in order.

Source: moby ``distribution/pull_v2.go`` and ``xfer`` for the sequence and words of the progress messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

import msgspec

from runtime.images.content import Lease
from runtime.images.errors import ManifestError
from runtime.images.manifests import (
    CONFIG_BYTES_MAX,
    ConfigFile,
    Manifest,
    check_platform,
    parse_config,
    parse_manifest,
)
from runtime.images.platforms import host_platform, parse_platform
from runtime.images.records import Entry, short_id
from runtime.images.reference import Reference
from runtime.images.registry import FetchedManifest, RegistryClient
from runtime.images.snapshots import chain_ids
from runtime.images.state import NewImage, State
from runtime.images.types import Descriptor, Progress, RegistryAuth
from runtime.images.work import Update

PARALLEL_DOWNLOADS = 3
PROGRESS_PERIOD_S = 0.1


class Puller:
    """Pulls into ``state``. Any number of pulls may run at once; what they have in common is fetched once."""

    def __init__(self, state: State, registry: RegistryClient) -> None:
        self._state, self._registry = state, registry
        self._slots = asyncio.Semaphore(PARALLEL_DOWNLOADS)

    async def pull(
        self, ref: Reference, *, platform: str | None, auth: RegistryAuth | None, progress: Progress
    ) -> Entry:
        """See ``ImageStore.pull``."""
        wanted = parse_platform(platform) if platform else None
        found = await self._registry.manifest(ref, auth)
        progress({"status": f"Pulling from {ref.path}", "id": ref.digest or ref.tag})
        chosen = await self._registry.image_manifest(ref, found, wanted or host_platform(), auth)
        manifest = parse_manifest(chosen.data)
        source = _Source(self._registry, chosen, ref, auth)
        before = self._state.records.by_name(ref.with_digest(ref.digest) if ref.digest else ref)
        with self._state.content.lease() as lease:
            config = await self._config(manifest, source, lease)
            check_platform(config, wanted, ref.familiar)
            await self._layers(manifest, config, source, lease, progress)
            for kept in (found, chosen):
                lease.add(kept.digest)
                await asyncio.to_thread(self._state.content.put, kept.data)
            new = NewImage(
                image_id=manifest.config.digest,
                config=config,
                layers=manifest.layers,
                tags=[] if ref.digest else [str(ref)],
                digests=[str(ref.with_digest(found.digest))],
                manifests=list({found.digest: None, chosen.digest: None}),
            )
            entry = await self._state.commit(new)
        is_new = before is None or before.record.ID != entry.record.ID
        progress({"status": f"Digest: {found.digest}"})
        shown = ref.with_digest(ref.digest).familiar if ref.digest else ref.familiar
        done = "Downloaded newer image" if is_new else "Image is up to date"
        progress({"status": f"Status: {done} for {shown}"})
        return entry

    async def _config(self, manifest: Manifest, source: _Source, lease: Lease) -> ConfigFile:
        descriptor = manifest.config
        if descriptor.size > CONFIG_BYTES_MAX:
            raise ManifestError(f"image configuration of {descriptor.size} bytes is too large")
        content = self._state.content
        lease.add(descriptor.digest)
        await content.ingest(descriptor.digest, descriptor.size, source.fetcher(descriptor))
        config = parse_config(await asyncio.to_thread(content.read, descriptor.digest))
        if len(config.diff_ids) != len(manifest.layers):
            raise ManifestError(
                f"layers from manifest don't match image configuration: {len(manifest.layers)} and {len(config.diff_ids)}"
            )
        return config

    async def _layers(
        self, manifest: Manifest, config: ConfigFile, source: _Source, lease: Lease, progress: Progress
    ) -> None:
        chain = chain_ids(config.diff_ids)
        for descriptor, chain_id in zip(manifest.layers, chain, strict=True):
            lease.add(descriptor.digest)
            lease.add(chain_id)
        reports = [LayerProgress(short_id(layer.digest), progress) for layer in manifest.layers]
        present = [self._is_here(layer, chain_id) for layer, chain_id in zip(manifest.layers, chain, strict=True)]
        for report, here in zip(reports, present, strict=True):
            report.say("Already exists" if here else "Pulling fs layer")
        if not all(present):
            await asyncio.to_thread(self._state.snapshots.unpacker.warm)
        try:
            async with asyncio.TaskGroup() as group:
                downloads = [
                    None
                    if here
                    else group.create_task(self._download(layer, source, report), name=f"pull:{layer.digest}")
                    for layer, report, here in zip(manifest.layers, reports, present, strict=True)
                ]
                for index, download in enumerate(downloads):
                    if download is not None:
                        await download
                        await self._state.ensure_layer(
                            chain[:index],
                            config.diff_ids[index],
                            manifest.layers[index],
                            listener=reports[index].update,
                        )
                        reports[index].say("Pull complete")
        except BaseExceptionGroup as group_error:
            raise first_error(group_error) from None

    def _is_here(self, layer: Descriptor, chain_id: str) -> bool:
        return self._state.snapshots.has(chain_id) and self._state.content.has(layer.digest)

    async def _download(self, layer: Descriptor, source: _Source, report: LayerProgress) -> None:
        if self._slots.locked():
            report.say("Waiting")
        async with self._slots:
            await self._state.content.ingest(layer.digest, layer.size, source.fetcher(layer), listener=report.update)


class _Source(msgspec.Struct, frozen=True):
    """Where the blobs of one image come from."""

    registry: RegistryClient
    manifest: FetchedManifest
    ref: Reference
    auth: RegistryAuth | None

    def fetcher(self, descriptor: Descriptor) -> _Fetcher:
        return _Fetcher(self, descriptor)


class _Fetcher(msgspec.Struct, frozen=True):
    source: _Source
    descriptor: Descriptor

    def __call__(self, offset: int) -> AsyncGenerator[bytes, None]:
        source = self.source
        return source.registry.blob(source.manifest.endpoint, source.ref, self.descriptor, source.auth, offset=offset)


class LayerProgress:
    """Turns updates of shared work into messages about one layer, not too many of them."""

    def __init__(self, layer_id: str, progress: Progress) -> None:
        self._id, self._progress = layer_id, progress
        self._status, self._next = "", 0.0

    def say(self, status: str) -> None:
        """A state without numbers."""
        self._progress({"status": status, "progressDetail": {}, "id": self._id})

    def update(self, update: Update) -> None:
        """A state with bytes done and in all; repeated ones are thinned out."""
        status, done, total = update
        now = time.monotonic()
        if status == self._status and now < self._next:
            return
        self._status, self._next = status, now + PROGRESS_PERIOD_S
        if status in ("Downloading", "Extracting", "Pushing"):
            detail = {"current": done, "total": total}
            self._progress({"status": status, "progressDetail": detail, "id": self._id})
        else:
            self.say(status)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first plain exception in a group: later ones are its consequences."""
    errors: Sequence[BaseException] = group.exceptions
    error = errors[0]
    return first_error(error) if isinstance(error, BaseExceptionGroup) else error
