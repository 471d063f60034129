"""Which images this node has and what they are called: one small file, replaced as a whole.

Owner of ``images.json``. A change is computed on a copy, written, and only then seen by readers, so that a full disk or
a crash leaves the former state both in memory and on disk. But for changes that make room: those count at once, as else a
full disk could not be emptied, and are written when there is room. A crash in between loses nothing that was removed: an
image whose parts are gone is left out.

A file that cannot be read is set aside as ``images.json.damaged``, and the node goes on without its images. Somebody may
mend it and put it back, or take it away; until then nothing that it may have named is removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import structlog

from base.files import remove_leftovers, sync_folder
from base.records import Records as KeptFiles
from base.tasks import wait_to_end
from runtime.images.content import disk_full_as_error
from runtime.images.errors import ImageNotFoundError, ImagesError, InvalidReferenceError, NoSpaceError
from runtime.images.manifests import ConfigFile, image_of
from runtime.images.reference import Reference, parse_reference
from runtime.images.types import Descriptor, Image

SHORT_ID_LENGTH = 12

log = structlog.get_logger(__name__)


class ImageRecord(msgspec.Struct, frozen=True):
    """One image. Names are canonical (``docker.io/library/busybox:latest``), layers lowest first as they are stored."""

    ID: str
    Layers: list[Descriptor]
    Tags: list[str]
    Digests: list[str]
    Manifests: list[str]
    SizeBytes: int
    LastTagTime: str = ""
    Comment: str = ""


class _File(msgspec.Struct):
    Version: int
    Images: list[ImageRecord]


class Entry(msgspec.Struct, frozen=True):
    """A record with its configuration and what readers see of both."""

    record: ImageRecord
    config: ConfigFile
    image: Image

    @property
    def live_blobs(self) -> set[str]:
        """Digests that the image needs."""
        return {self.record.ID, *self.record.Manifests, *(layer.digest for layer in self.record.Layers)}


Records = dict[str, ImageRecord]
LoadConfig = Callable[[str], ConfigFile]


def familiar(canonical: str) -> str:
    """The name as users write it."""
    return parse_reference(canonical).familiar


class ImageRecords:
    """Reads are plain lookups in memory; ``change`` is the only way to write."""

    def __init__(self, path: Path, load_config: LoadConfig) -> None:
        self._path, self._load_config = path, load_config
        self._aside = path.with_name(f"{path.name}.damaged")
        self._entries: dict[str, Entry] = {}
        self._names: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self.files = KeptFiles()

    def open(self, is_whole: Callable[[ImageRecord], bool]) -> list[str]:
        """Read the file; returns the IDs of images that were left out because parts of them are gone. Blocks.

        Raises:
            ImagesError: a newer daemon wrote the file.
            OSError: it cannot be read, or is damaged and cannot be set aside.
        """
        remove_leftovers(self._path.parent)
        try:
            stored = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return []
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._path.rename(self._aside)
            sync_folder(self._path.parent)
            log.error("images.unreadable", path=str(self._aside), reason=str(error))
            return []
        if stored.Version != 1:
            raise ImagesError(f"{self._path} has version {stored.Version}, which a newer swarmd wrote")
        whole = {record.ID: record for record in stored.Images if is_whole(record)}
        self._install(whole)
        return [record.ID for record in stored.Images if record.ID not in whole]

    @property
    def set_aside(self) -> Path | None:
        """The damaged file, while it is there: what it named is nobody's to remove."""
        return self._aside if self._aside.exists() else None

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def find(self, image_id: str) -> Entry | None:
        """By full ID."""
        return self._entries.get(image_id)

    def by_name(self, name: Reference) -> Entry | None:
        """By canonical name with tag, or with digest."""
        image_id = self._names.get(str(name))
        return self._entries.get(image_id) if image_id else None

    def get(self, name: str) -> Entry:
        """By ID, name or unique ID prefix, in this order. Raises ImageNotFoundError."""
        bare = name.removeprefix("sha256:")
        entry = self._entries.get(f"sha256:{bare}")
        if entry is not None:
            return entry
        shown = name
        try:
            ref = parse_reference(name)
        except InvalidReferenceError:
            pass
        else:
            if ref.digest:
                ref = ref.with_digest(ref.digest)
            ref = ref.with_default_tag()
            entry, shown = self.by_name(ref), ref.familiar
        if entry is not None:
            return entry
        if bare and set(bare) <= set("0123456789abcdef"):
            matches = [found for image_id, found in self._entries.items() if image_id[7:].startswith(bare)]
            if len(matches) == 1:
                return matches[0]
        raise ImageNotFoundError(shown)

    def is_id(self, name: str, image_id: str) -> bool:
        """Whether ``name`` means the image by its ID or a prefix, not by a name that looks like one."""
        bare = name.removeprefix("sha256:")
        if not bare or not image_id[7:].startswith(bare):
            return False
        try:
            named = self.by_name(parse_reference(name).with_default_tag())
        except InvalidReferenceError:
            named = None
        return named is None or bare == image_id[7:]

    async def change(self, decide: Callable[[Records], None], *, makes_room: bool = False) -> None:
        """Let ``decide`` edit a copy of the records (values are replaced, not changed), then make it the truth.

        Args:
            makes_room: it takes away only, and is not to fail because the disk is full.

        Raises what ``decide`` raises, NoSpaceError: nothing has changed then.
        """
        async with self._lock:
            records = {image_id: entry.record for image_id, entry in self._entries.items()}
            decide(records)
            data = msgspec.json.encode(_File(Version=1, Images=list(records.values())))
            write = asyncio.ensure_future(asyncio.to_thread(self._write, data, keep=makes_room))
            try:
                await asyncio.shield(write)
            except asyncio.CancelledError:
                await wait_to_end(write)
                if write.exception() is None:
                    self._install(records)
                raise
            self._install(records)

    def _write(self, data: bytes, *, keep: bool) -> None:
        try:
            with disk_full_as_error(self._path.parent):
                self.files.write(self._path, data, durable=True)
        except NoSpaceError:
            if not keep:
                raise
            self.files.keep(self._path, data, durable=True)

    def close(self) -> None:
        """Save what could not be saved before. Blocks."""
        self.files.close()

    def _install(self, records: Mapping[str, ImageRecord]) -> None:
        entries = dict[str, Entry]()
        for image_id, record in records.items():
            known = self._entries.get(image_id)
            if known is not None and known.record == record:
                entries[image_id] = known
                continue
            config = known.config if known is not None else self._load_config(image_id)
            tags = tuple(sorted(familiar(name) for name in record.Tags))
            digests = tuple(sorted(familiar(name) for name in record.Digests))
            entries[image_id] = Entry(record, config, image_of(image_id, config, tags, digests, record.SizeBytes))
        self._entries = entries
        self._names = {
            name: image_id
            for image_id, entry in entries.items()
            for name in (*entry.record.Tags, *entry.record.Digests)
        }


def name_image(records: Records, image_id: str, tags: list[str], digests: list[str], *, now: str) -> None:
    """Give names to an image, taking them away from whoever has them. Raises ImageNotFoundError if it is gone."""
    if image_id not in records:
        raise ImageNotFoundError(image_id)
    taken = {*tags, *digests}
    for other_id, other in list(records.items()):
        if other_id != image_id and taken & {*other.Tags, *other.Digests}:
            records[other_id] = msgspec.structs.replace(
                other,
                Tags=[tag for tag in other.Tags if tag not in taken],
                Digests=[digest for digest in other.Digests if digest not in taken],
            )
    record = records[image_id]
    new = [tag for tag in tags if tag not in record.Tags]
    records[image_id] = msgspec.structs.replace(
        record,
        Tags=[*record.Tags, *new],
        Digests=[*record.Digests, *(digest for digest in digests if digest not in record.Digests)],
        LastTagTime=now if new else record.LastTagTime,
    )


def short_id(identifier: str) -> str:
    """Twelve hex digits, as Docker shows IDs."""
    return identifier.removeprefix("sha256:")[:SHORT_ID_LENGTH]
