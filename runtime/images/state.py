"""What pulling, loading and removing share: the three stores, and the one way an image comes into being."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from base.leftovers import Leftovers
from base.tasks import OwnedTasks
from base.threads import run_abortable
from runtime.images.content import ContentStore
from runtime.images.manifests import ConfigFile
from runtime.images.records import Entry, ImageRecord, ImageRecords, Records, name_image
from runtime.images.snapshots import Snapshots, chain_ids
from runtime.images.types import Descriptor
from runtime.images.work import Listener, SharedWork

log = structlog.get_logger(__name__)


class NewImage(msgspec.Struct, frozen=True):
    """An image whose blobs are stored and whose layers are unpacked. ``layers`` lowest first; names canonical."""

    image_id: str
    config: ConfigFile
    layers: Sequence[Descriptor]
    tags: Sequence[str] = ()
    digests: Sequence[str] = ()
    manifests: Sequence[str] = ()
    comment: str = ""


class State(msgspec.Struct):
    """The stores of one node. Invariant: an image that is recorded has all blobs and all layers, durably."""

    content: ContentStore
    snapshots: Snapshots
    records: ImageRecords
    unpacking: SharedWork[None] = msgspec.field(default_factory=SharedWork)
    removals: OwnedTasks = msgspec.field(default_factory=OwnedTasks)
    leftovers: Leftovers = msgspec.field(default_factory=Leftovers)

    async def ensure_layer(
        self, parents: Sequence[str], diff_id: str, blob: Descriptor, *, listener: Listener | None = None
    ) -> None:
        """Unpack ``blob`` onto the chain ``parents`` unless that is done; callers share the work.

        Raises:
            LayerError, DigestMismatchError, NoSpaceError: nothing partial is left.
        """
        chain_id = chain_ids([parents[-1], diff_id])[1] if parents else diff_id
        if self.snapshots.has(chain_id):
            return

        def unpack(abort: threading.Event) -> None:
            with self.content.path(blob.digest).open("rb") as file:
                self.snapshots.unpack(parents, diff_id, file.fileno(), abort)

        async def work(publish: Listener) -> None:
            publish(("Extracting", 0, blob.size))
            if not self.snapshots.has(chain_id):
                await run_abortable(unpack)

        await self.unpacking.run(chain_id, work, listener=listener)

    async def commit(self, new: NewImage) -> Entry:
        """Record an image and give it its names. Raises NoSpaceError: nothing has changed then."""
        chain = chain_ids(new.config.diff_ids)
        known = self.records.find(new.image_id)
        if known is None:
            await asyncio.to_thread(self.snapshots.sync)
        size = sum(self.snapshots.size_bytes(chain_id) for chain_id in chain)

        def decide(records: Records) -> None:
            old = records.get(new.image_id)
            records[new.image_id] = ImageRecord(
                ID=new.image_id,
                Layers=list(new.layers) if old is None else old.Layers,
                Tags=old.Tags if old else [],
                Digests=old.Digests if old else [],
                Manifests=list(dict.fromkeys([*(old.Manifests if old else []), *new.manifests])),
                SizeBytes=size,
                LastTagTime=old.LastTagTime if old else "",
                Comment=new.comment or (old.Comment if old else ""),
            )
            name_image(records, new.image_id, list(new.tags), list(new.digests), now=now_text())

        await self.records.change(decide)
        entry = self.records.find(new.image_id)
        assert entry is not None  # change() has just installed it
        if known is None:
            log.info("image.added", image_id=new.image_id, names=list(entry.image.repo_tags))
        return entry

    async def collect(self) -> tuple[list[str], int]:
        """Remove layers and blobs that no image, container or work under way needs; none while it is not known which do.

        Returns:
            Chain IDs of the removed layers, and the bytes freed.
        """
        if self.records.set_aside is not None:
            return [], 0
        entries = list(self.records)
        pinned = self.content.pinned
        live_chains = {chain_id for entry in entries for chain_id in chain_ids(entry.config.diff_ids)} | pinned
        sizes = {chain_id: self.snapshots.size_bytes(chain_id) for chain_id in self.snapshots.chains()}
        chains, directories = ([], []) if self.content.held else self.snapshots.condemn(live_chains)
        blobs = self.content.condemn({digest for entry in entries for digest in entry.live_blobs})
        if not chains and not blobs:
            return [], 0
        freed = sum(sizes[chain_id] for chain_id in chains)
        removal = asyncio.to_thread(self._remove, directories, blobs)
        freed += await self.removals.run_to_end(removal, name="images.collect")
        log.info("layers.collected", layers=len(chains), freed_bytes=freed)
        return chains, freed

    def _remove(self, directories: Sequence[Path], blobs: Sequence[Path]) -> int:
        freed = sum(blob.stat().st_size for blob in blobs)
        for path in (*directories, *blobs):
            self.leftovers.remove(path)
        return freed


def now_text() -> str:
    """The time, as Go writes it in UTC."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
