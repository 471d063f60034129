"""The images of this node: the one object that the rest of the engine talks to."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence, Set
from pathlib import Path

import msgspec
import structlog

from runtime.events import EventBus
from runtime.images import listing
from runtime.images.archive import Loader, layer_descriptor, read_archive
from runtime.images.changes import apply_changes
from runtime.images.content import ContentStore
from runtime.images.errors import (
    ImageConflictError,
    ImagesError,
    InvalidArgumentError,
    LayerError,
    NoSpaceError,
    PlatformMismatchError,
)
from runtime.images.manifests import ConfigFile, HistoryEntry, RootFSConfig, parse_config
from runtime.images.platforms import host_platform, parse_platform, satisfies
from runtime.images.pull import Puller
from runtime.images.push import Pusher
from runtime.images.records import Entry, ImageRecord, ImageRecords, Records, familiar, name_image
from runtime.images.reference import Reference, check_tag, parse_reference
from runtime.images.registry import RegistryClient
from runtime.images.removal import Removal, decide_removal
from runtime.images.save import save_archive
from runtime.images.snapshots import Snapshots, chain_ids
from runtime.images.state import NewImage, State, now_text
from runtime.images.types import (
    ContainerUse,
    DeletedItem,
    DistributionInspect,
    Image,
    ImageConfig,
    ImageHistoryItem,
    Platform,
    Progress,
    ProgressMessage,
    PruneReport,
    RegistryAuth,
    RootFS,
)
from runtime.images.work import BytePipe, run_with_stream
from runtime.unpack.compression import Decompressed
from runtime.unpack.errors import MalformedArchiveError

log = structlog.get_logger(__name__)

Filters = Mapping[str, Sequence[str]]
Summaries = list[dict[str, object]]
DeletedItems = list[DeletedItem]
HistoryItems = list[ImageHistoryItem]
Names = list[str]


class ImageStore:
    """Images, their layers and the root file systems of containers, kept below one directory.

    ``open`` before anything else, ``close`` at the end; one event loop. Methods that touch the disk for longer than a
    moment run in threads. ``users`` tells which containers were made from an image ID.

    Below ``root``: ``content`` (blobs), ``snapshots`` (layers, root file systems), ``images.json`` (names).
    """

    def __init__(
        self,
        root: Path,
        *,
        events: EventBus | None = None,
        insecure_registries: Sequence[str] = (),
        mirrors: Sequence[str] = (),
        users: Callable[[str], Sequence[ContainerUse]] = lambda _image_id: (),
    ) -> None:
        self._events = events or EventBus()
        root = self._root = root.absolute()  # threads that mount have a working directory of their own
        content, snapshots = ContentStore(root / "content"), Snapshots(root / "snapshots")
        records = ImageRecords(root / "images.json", lambda image_id: parse_config(content.read(image_id)))
        self._state = State(content, snapshots, records)
        self._registry = RegistryClient(insecure_registries=insecure_registries, mirrors=mirrors)
        self._puller = Puller(self._state, self._registry)
        self._pusher = Pusher(self._state, self._registry)
        self._changing = asyncio.Lock()  # removals decide on what they saw
        self._users = users

    async def open(self) -> None:
        """Read the state, remove what a crash left.

        Raises:
            OverlayUnsupportedError: the directory cannot hold root file systems.
            ImagesError: the record of the images is a newer daemon's.
            OSError: it cannot be read, or is damaged and cannot be set aside.
        """
        left_out = await asyncio.to_thread(self._open)
        for image_id in left_out:
            log.warning("image.dropped", image_id=image_id, reason="parts of it are missing")
        try:
            await self._state.collect()
        except OSError as error:
            log.error("layers.not_collected", reason=str(error), retry="with the next image that goes")

    def _open(self) -> Sequence[str]:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._state.content.open()
        self._state.snapshots.open()
        return self._state.records.open(self._is_whole)

    def _is_whole(self, record: ImageRecord) -> bool:
        """Whether everything the record names is here; a damaged configuration counts as missing."""
        content, snapshots = self._state.content, self._state.snapshots
        try:
            config = parse_config(content.read(record.ID))
        except ImagesError:
            return False
        blobs = (*record.Manifests, *(layer.digest for layer in record.Layers))
        return all(map(content.has, blobs)) and all(map(snapshots.has, chain_ids(config.diff_ids)))

    @property
    def unsaved(self) -> tuple[int, str]:
        """How many records are not on the disk, and why."""
        return self._state.records.files.unsaved

    @property
    def set_aside(self) -> Path | None:
        """The damaged record of the images, while it is there and nothing is removed for its sake."""
        return self._state.records.set_aside

    async def warm(self) -> None:
        """Have ready what the first request to a registry needs: 0.1 s of CPU on its way otherwise."""
        await self._registry.warm()

    async def close(self) -> None:
        """Cancel what is under way, but for removals, which are waited for. Mounted root file systems stay mounted."""
        await self._state.content.close()
        await self._state.unpacking.close()
        await self._state.removals.wait()
        await self._registry.close()
        await asyncio.to_thread(self._state.snapshots.close)
        await asyncio.to_thread(self._state.records.close)
        await asyncio.to_thread(self._state.leftovers.close)

    # -------------------------------------------------------------- reading

    def get(self, name: str) -> Image:
        """By ID, name, ``name@digest`` or unique ID prefix. Raises ImageNotFoundError."""
        return self._state.records.get(name).image

    def check_platform(self, name: str, platform: str) -> None:
        """Whether the image is for ``platform``, such as ``linux/arm64``; one that does not say is for any.

        Raises:
            ImageNotFoundError, InvalidArgumentError
            PlatformMismatchError: with which clients pull the image for that platform.
        """
        image, wanted = self.get(name), parse_platform(platform)
        actual = Platform(architecture=image.architecture, os=image.os, variant=image.variant)
        if image.architecture and not satisfies(wanted, actual):
            raise PlatformMismatchError(
                f"image with reference {name} was found but its platform ({actual}) "
                f"does not match the specified platform ({wanted})"
            )

    def list(self, *, filters: Filters | None = None, all: bool = False) -> Summaries:  # noqa: A002  # the API's word
        """``GET /images/json``, newest first; ``all`` changes nothing, there are no intermediate images.

        Raises:
            InvalidArgumentError: a filter that does not exist or makes no sense.
        """
        return [listing.summary(entry) for entry in listing.select(self._state.records, filters or {}, now=time.time())]

    def inspect(self, name: str) -> dict[str, object]:
        """``GET /images/{name}/json``. Raises ImageNotFoundError."""
        entry = self._state.records.get(name)
        return listing.details(entry, self._state.snapshots.directories(chain_ids(entry.config.diff_ids)))

    def history(self, name: str) -> HistoryItems:
        """``GET /images/{name}/history``, newest first. Raises ImageNotFoundError."""
        entry = self._state.records.get(name)
        sizes = [self._state.snapshots.size_bytes(chain_id) for chain_id in chain_ids(entry.config.diff_ids)]
        return listing.history(entry, sizes)

    def layer_sizes(self, name: str) -> dict[str, int]:
        """Unpacked bytes of an image's layers by chain ID, lowest first. Raises ImageNotFoundError."""
        chain = chain_ids(self._state.records.get(name).config.diff_ids)
        return {chain_id: self._state.snapshots.size_bytes(chain_id) for chain_id in chain}

    # -------------------------------------------------------------- changes

    async def pull(
        self,
        ref: str,
        *,
        platform: str | None = None,
        auth: RegistryAuth | None = None,
        progress: Progress | None = None,
    ) -> Image:
        """Fetch an image from its registry.

        Args:
            ref: a name; without tag and digest ``latest`` is meant.
            platform: like ``linux/arm64/v8``; this machine's if None.
            progress: gets the Engine API's messages, on the event loop.

        Raises:
            InvalidReferenceError, InvalidArgumentError, PlatformMismatchError, RegistryError (and what is below it),
            ManifestError, LayerError, DigestMismatchError, NoSpaceError: the images here are as they were.
        """
        reference = parse_reference(ref).with_default_tag()
        try:
            entry = await self._puller.pull(reference, platform=platform, auth=auth, progress=progress or _ignore)
        except NoSpaceError:
            # What was fetched so far would speed up the next attempt, and prevent it.
            self._state.content.drop_partials()
            await self._state.collect()
            raise
        self._publish("pull", ref, name=ref.partition("@")[0])
        return entry.image

    async def tag(self, name: str, target: str) -> None:
        """Give an image one more name; the name moves if another image had it.

        Raises:
            ImageNotFoundError, InvalidReferenceError, NoSpaceError
        """
        ref = parse_reference(target)
        if ref.digest:
            raise InvalidArgumentError("refusing to create a tag with a digest reference")
        tag = str(ref.with_default_tag())
        image_id = self._state.records.get(name).record.ID
        await self._state.records.change(lambda records: name_image(records, image_id, [tag], [], now=now_text()))
        self._publish("tag", image_id, name=target)

    async def remove(self, name: str, *, force: bool = False, prune: bool = True) -> DeletedItems:
        """``DELETE /images/{name}``; ``prune`` changes nothing, there are no untagged parents.

        Raises:
            ImageNotFoundError, ImageConflictError
        """
        async with self._changing:
            entry = self._state.records.get(name)
            reference = None if self._state.records.is_id(name, entry.record.ID) else _canonical(name)
            removal = decide_removal(entry.record, reference, self._users(entry.record.ID), force=force)
            return await self._apply(entry, removal)

    async def _apply(self, entry: Entry, removal: Removal) -> DeletedItems:
        image_id = entry.record.ID

        def decide(records: Records) -> None:
            if removal.delete:
                del records[image_id]
                return
            old = records[image_id]
            records[image_id] = msgspec.structs.replace(
                old,
                Tags=[tag for tag in old.Tags if tag not in removal.untag],
                Digests=[digest for digest in old.Digests if digest not in removal.untag],
            )

        await self._state.records.change(decide, makes_room=True)
        items = [DeletedItem(Untagged=familiar(name)) for name in removal.untag]
        if removal.delete:
            chains, _ = await self._state.collect()
            log.info("image.removed", image_id=image_id)
            items += [DeletedItem(Deleted=deleted) for deleted in (image_id, *chains)]
        for item in items:
            if item.Untagged:
                self._publish("untag", image_id, name=item.Untagged)
            else:
                self._publish("delete", item.Deleted, name=item.Deleted)
        return items

    async def prune(self, *, filters: Filters | None = None) -> PruneReport:
        """``POST /images/prune``: dangling images, or with ``dangling=false`` all that no container uses.

        Raises:
            InvalidArgumentError
        """
        filters = dict(filters or {})
        listing.check_filters(filters, listing.PRUNE_FILTERS)
        only_dangling = listing.truth("dangling", filters.pop("dangling", ["true"]))
        items, before = DeletedItems(), self._layer_bytes()
        async with self._changing:
            for entry in self._state.records:
                doomed = listing.matches(entry, filters, now=time.time())
                if not doomed or (only_dangling and not listing.is_dangling(entry)) or self._users(entry.record.ID):
                    continue
                with contextlib.suppress(ImageConflictError):
                    names = (*entry.record.Tags, *entry.record.Digests)
                    items += await self._apply(entry, Removal(names, delete=True))
            await self._state.collect()  # pulls that failed left layers no image has
        report = PruneReport(items, max(0, before - self._layer_bytes()))
        self._publish("prune", "", reclaimed=str(report.SpaceReclaimed))
        return report

    def _publish(self, action: str, object_id: str, **attributes: str) -> None:
        self._events.publish("image", action, object_id, attributes)

    def _layer_bytes(self) -> int:
        snapshots = self._state.snapshots
        return sum(snapshots.size_bytes(chain_id) for chain_id in snapshots.chains())

    # -------------------------------------------------------------- archives

    async def load(self, source: AsyncIterable[bytes], *, progress: Progress | None = None) -> Names:
        """``POST /images/load``: names (or IDs of nameless images) in the archive's order.

        Raises:
            ArchiveError, ManifestError, LayerError, DigestMismatchError, PlatformMismatchError, NoSpaceError
        """
        content = self._state.content

        try:
            with content.hold():
                await asyncio.to_thread(self._state.snapshots.unpacker.warm)
                archive = await run_with_stream(source, lambda pipe: read_archive(pipe, content))
                names = await Loader(self._state).load(archive, progress or _ignore)
            for name in names:
                self._publish("load", self.get(name).id, name=name)
            return names
        finally:
            await self._state.collect()

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
        """``POST /images/create?fromSrc=-``: a root file system tar (compressed or not) becomes an image of one layer.

        Raises:
            InvalidReferenceError, InvalidArgumentError, LayerError, NoSpaceError
        """
        name = _import_name(repo, tag)
        config = apply_changes(ImageConfig(), changes)
        wanted = parse_platform(platform) if platform else host_platform()
        content = self._state.content

        def store(pipe: BytePipe) -> str:
            try:
                with Decompressed(pipe) as plain:
                    return content.ingest_file(plain)[0]
            except MalformedArchiveError as error:
                raise LayerError(str(error)) from error

        try:
            with content.hold():
                diff_id = await run_with_stream(source, store)
                layer = await asyncio.to_thread(layer_descriptor, content, diff_id)
                await self._state.ensure_layer([], diff_id, layer)
                now = now_text()
                image = ConfigFile(
                    architecture=wanted.architecture,
                    os=wanted.os,
                    variant=wanted.variant,
                    created=now,
                    config=config,
                    rootfs=RootFSConfig(diff_ids=[diff_id]),
                    history=[HistoryEntry(created=now, comment=message or "Imported from -")],
                )
                image_id = await asyncio.to_thread(content.put, msgspec.json.encode(image))
                new = NewImage(image_id, image, [layer], tags=[name] if name else [], comment=message)
                made = (await self._state.commit(new)).image
                self._publish("import", made.id, name=made.id)
                return made
        finally:
            await self._state.collect()

    def save(self, names: Sequence[str]) -> AsyncIterator[bytes]:
        """``GET /images/get``: a tar in docker-save format that is an OCI layout too; iterate or ``aclose`` it.

        Raises:
            ImageNotFoundError: at once, before the first piece.
        """
        wanted = dict[str, tuple[Entry, dict[str, None]]]()
        for name in names:
            entry = self._state.records.get(name)
            image_id = entry.record.ID
            tags = wanted.setdefault(image_id, (entry, {}))[1]
            if not self._state.records.is_id(name, image_id):
                canonical = _canonical(name)
                tags.update({canonical: None} if canonical in entry.record.Tags else {})
        told = [(self._state.records.get(name).record.ID, name) for name in names]
        return self._save([(entry, list(tags)) for entry, tags in wanted.values()], told)

    async def _save(
        self, wanted: Sequence[tuple[Entry, Sequence[str]]], told: Sequence[tuple[str, str]]
    ) -> AsyncIterator[bytes]:
        with self._state.content.lease() as lease:
            for entry, _ in wanted:
                for digest in entry.live_blobs:
                    lease.add(digest)
            async for chunk in save_archive(self._state.content, wanted):
                yield chunk
        for image_id, name in told:
            self._publish("save", image_id, name=name)

    # -------------------------------------------------------------- registry

    async def distribution_inspect(self, ref: str, auth: RegistryAuth | None = None) -> DistributionInspect:
        """``GET /distribution/{name}/json``: asks the registry, fetches no layer. Raises like ``pull``."""
        return await self._registry.inspect(parse_reference(ref).with_default_tag(), auth)

    async def push(self, ref: str, *, auth: RegistryAuth | None = None, progress: Progress | None = None) -> str:
        """``POST /images/{name}/push`` of one tag; returns the digest of the manifest.

        Raises:
            InvalidReferenceError, InvalidArgumentError (a digest), ImageNotFoundError, RegistryError
        """
        reference = parse_reference(ref).with_default_tag()
        if reference.digest:
            raise InvalidArgumentError("cannot push a digest reference")
        digest = await self._pusher.push(reference, auth, progress or _ignore)
        self._publish("push", ref, name=ref)
        return digest

    async def login(self, auth: RegistryAuth) -> None:
        """``POST /auth``: ask the registry whether it accepts these.

        Raises:
            LoginRefusedError, RegistryUnavailableError
        """
        await self._registry.login(auth)

    # ----------------------------------------------------- root file systems

    async def prepare_rootfs(self, image_id: str, container_id: str) -> RootFS:
        """Make the writable layer of a container. Idempotent for the same pair.

        Raises:
            ImageNotFoundError, SnapshotError, NoSpaceError
        """
        entry = self._state.records.get(image_id)
        chain = chain_ids(entry.config.diff_ids)
        return await self._state.snapshots.prepare(container_id, entry.record.ID, chain)

    async def recover_rootfs(self, image_id: str, container_id: str) -> None:
        """Have the writable layer of a container from before a start, also when power loss took its record.

        Raises:
            ImageNotFoundError, SnapshotError, NoSpaceError: it stays lost.
        """
        if not self._state.snapshots.image_of(container_id):
            entry = self._state.records.get(image_id)
            await self._state.snapshots.recover(container_id, entry.record.ID, chain_ids(entry.config.diff_ids))

    def rootfs(self, container_id: str) -> RootFS:
        """What ``prepare_rootfs`` made. Raises SnapshotError."""
        return self._state.snapshots.get(container_id)

    async def mount_rootfs(self, container_id: str) -> Path:
        """Mount it and tell where. Idempotent. Raises SnapshotError."""
        return await self._state.snapshots.mount(container_id)

    async def unmount_rootfs(self, container_id: str) -> None:
        """Idempotent; lazily if something is still inside. Raises SnapshotError."""
        await self._state.snapshots.unmount(container_id)

    async def remove_rootfs(self, container_id: str) -> None:
        """Unmount and delete the writable layer, and layers that only it still needed. Idempotent."""
        image_id = self._state.snapshots.image_of(container_id)
        await self._state.snapshots.remove(container_id)
        if image_id and self._state.records.find(image_id) is None:
            await self._state.collect()

    async def tidy_rootfs(self, containers: Set[str], running: Set[str]) -> None:
        """After a crash: remove the root file systems of all but ``containers``, unmount all but those of ``running``.

        Raises:
            SnapshotError
        """
        if await self._state.snapshots.tidy(containers, running):
            await self._state.collect()

    async def rootfs_size(self, container_id: str) -> int:
        """Bytes of the container's own changes (``SizeRw``). Raises SnapshotError."""
        return await self._state.snapshots.rw_size(container_id)


def _ignore(message: ProgressMessage) -> None:
    return


def _canonical(name: str) -> str:
    ref: Reference = parse_reference(name)
    return str(ref.with_digest(ref.digest) if ref.digest else ref.with_default_tag())


def _import_name(repo: str, tag: str) -> str:
    """Canonical name of an imported image, "" for none. Raises InvalidReferenceError, InvalidArgumentError."""
    if not repo:
        return ""
    ref = parse_reference(repo)
    if ref.digest:
        raise InvalidArgumentError("cannot import digest reference")
    return str(ref.with_tag(check_tag(tag)) if tag else ref.with_default_tag())
