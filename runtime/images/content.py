"""Content-addressed blobs: ``blobs/sha256/<hex>``, whole and verified or not there at all.

A blob is written to ``ingest/<hex>`` while its digest is computed, made durable, and renamed into place; what a crash
leaves in ``ingest`` is where the next download of that digest goes on. Nobody else writes below the root.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from base.files import remove_leftovers, sync_folder, write_atomic
from base.threads import run_abortable
from runtime.images.errors import ContentError, DigestMismatchError, NoSpaceError
from runtime.images.reference import check_digest
from runtime.images.work import Listener, SharedWork
from runtime.unpack.compression import Reader
from runtime.unpack.room import DISK_FULL, keep_reserve

CHUNK_BYTES = 1 << 20
PARTIAL_AGE_S_MAX = 7 * 24 * 3600.0
Fetch = Callable[[int], AsyncGenerator[bytes, None]]
"""Yields the bytes of one blob from an offset on."""


@contextlib.contextmanager
def disk_full_as_error(path: Path) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT into NoSpaceError."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise NoSpaceError(str(path)) from error
        raise


class Lease:
    """Keeps blobs from the collector while no image names them yet."""

    def __init__(self, pins: Counter[str]) -> None:
        self._pins, self._held = pins, list[str]()

    def add(self, digest: str) -> None:
        self._pins[digest] += 1
        self._held.append(digest)

    def release(self) -> None:
        for digest in self._held:
            self._pins[digest] -= 1
            if self._pins[digest] <= 0:
                del self._pins[digest]
        self._held.clear()


class ContentStore:
    """The blobs below ``root``. Methods of one event loop unless they say that they block."""

    def __init__(self, root: Path) -> None:
        self._blobs, self._ingest = root / "blobs" / "sha256", root / "ingest"
        self._shared: SharedWork[None] = SharedWork()
        self._pins: Counter[str] = Counter()
        self._holds = 0

    def open(self) -> None:
        """Make the directories and drop partial blobs that nobody came back for. Blocks."""
        for directory in (self._blobs, self._ingest):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove_leftovers(self._blobs)
        for partial in self._ingest.iterdir():
            resumable = len(partial.name) == 64 and time.time() - partial.stat().st_mtime < PARTIAL_AGE_S_MAX
            if not resumable:
                partial.unlink()

    async def close(self) -> None:
        """Cancel downloads; their partial files stay for the next start."""
        await self._shared.close()

    def path(self, digest: str) -> Path:
        """Where the blob is or would be. Raises InvalidReferenceError for what is no digest, ContentError if not sha256."""
        check_digest(digest)
        if not digest.startswith("sha256:"):
            raise ContentError(f"{digest}: only sha256 content can be stored")
        return self._blobs / digest[7:]

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def size(self, digest: str) -> int:
        """Bytes of a stored blob. Raises ContentError."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise ContentError(f"content {digest} is missing") from None

    def read(self, digest: str, *, limit_bytes: int = 8 << 20) -> bytes:
        """A small blob, verified again. Blocks. Raises ContentError, DigestMismatchError."""
        if self.size(digest) > limit_bytes:
            raise ContentError(f"content {digest} is larger than {limit_bytes} bytes")
        data = self.path(digest).read_bytes()
        actual = digest_of(data)
        if actual != digest:
            raise DigestMismatchError(expected=digest, actual=actual)
        return data

    @contextlib.contextmanager
    def lease(self) -> Iterator[Lease]:
        """While inside, ``lease.add(digest)`` keeps a blob from ``collect``."""
        lease = Lease(self._pins)
        try:
            yield lease
        finally:
            lease.release()

    async def ingest(self, digest: str, size: int, fetch: Fetch, *, listener: Listener | None = None) -> None:
        """Have the blob stored, fetching it if need be; callers for the same digest share one download.

        Args:
            digest: what the bytes must hash to.
            size: what they must count, from the descriptor.
            fetch: called with the offset where a former attempt ended.
            listener: gets ``("Downloading" | "Verifying Checksum" | "Download complete", done, size)``.

        Raises:
            DigestMismatchError, NoSpaceError: nothing partial is left.
            ContentError: more or fewer bytes than ``size``.
        """
        path = self.path(digest)
        if path.is_file():
            return
        await self._shared.run(digest, lambda publish: self._download(digest, size, fetch, publish), listener=listener)

    async def _download(self, digest: str, size: int, fetch: Fetch, publish: Listener) -> None:
        partial = self._ingest / digest[7:]
        keep = False
        try:
            with disk_full_as_error(self._ingest):
                resumed = partial.exists()
                try:
                    await self._attempt(partial, digest, size, fetch, publish)
                except DigestMismatchError:
                    if not resumed:
                        raise
                    # A power cut may have left zeros in the part that was there: once more from the start.
                    partial.unlink(missing_ok=True)
                    await self._attempt(partial, digest, size, fetch, publish)
        except (ContentError, OSError):
            raise
        except BaseException:
            keep = True  # cancelled, or the peer went away: the bytes so far are worth keeping
            raise
        finally:
            if not keep:
                partial.unlink(missing_ok=True)

    async def _attempt(self, partial: Path, digest: str, size: int, fetch: Fetch, publish: Listener) -> None:
        with await run_abortable(lambda _: _open_partial(partial, size)) as writer:
            publish(("Downloading", writer.size, size))
            await self._receive(writer, digest, size, fetch, publish)
            publish(("Verifying Checksum", size, size))
            await run_abortable(lambda _: writer.finish(digest, self._blobs))
        publish(("Download complete", size, size))

    async def _receive(self, writer: BlobWriter, digest: str, size: int, fetch: Fetch, publish: Listener) -> None:
        if writer.size >= size:
            return
        pending, pending_bytes = list[bytes](), 0
        async with contextlib.aclosing(fetch(writer.size)) as chunks:
            async for chunk in chunks:
                pending.append(chunk)
                pending_bytes += len(chunk)
                if writer.size + pending_bytes > size:
                    raise ContentError(f"content {digest} is longer than the {size} bytes announced")
                if pending_bytes >= CHUNK_BYTES:
                    await _write(writer, b"".join(pending))
                    pending, pending_bytes = [], 0
                    publish(("Downloading", writer.size, size))
        await _write(writer, b"".join(pending))
        if writer.size != size:
            raise ContentError(f"content {digest} is {writer.size} bytes, {size} were announced")

    def ingest_file(self, source: Reader, *, expected: str = "") -> tuple[str, int]:
        """Store what ``source`` yields until its end; returns digest and size. Blocks, any thread.

        Raises:
            DigestMismatchError: ``expected`` is given and is not the digest.
            NoSpaceError: nothing partial is left.
        """
        partial = self._ingest / f"stream-{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}"
        try:
            with disk_full_as_error(self._ingest), BlobWriter(partial) as writer:
                while data := source.read(CHUNK_BYTES):
                    writer.write(data)
                return writer.finish(expected, self._blobs), writer.size
        finally:
            partial.unlink(missing_ok=True)

    def drop_partials(self) -> None:
        """Give back what interrupted downloads have left and none that runs goes on with."""
        for partial in list(self._ingest.iterdir()):
            if len(partial.name) == 64 and not self._shared.is_running(f"sha256:{partial.name}"):
                partial.unlink(missing_ok=True)

    def put(self, data: bytes) -> str:
        """Store a small blob and return its digest. Blocks. Raises NoSpaceError."""
        digest = digest_of(data)
        if not self.has(digest):
            with disk_full_as_error(self._blobs):
                write_atomic(self.path(digest), data, durable=True)
        return digest

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """While inside, nothing is condemned: for work that learns digests only when the blobs are there already."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    @property
    def held(self) -> bool:
        return self._holds > 0

    @property
    def pinned(self) -> set[str]:
        """What leases keep now."""
        return set(self._pins)

    def condemn(self, live: set[str]) -> list[Path]:
        """Take every blob that is neither in ``live`` nor leased out of the store; the caller unlinks the paths.

        The choice and the renames are one step of the event loop, so that no download can count on a doomed blob.
        """
        if self._holds:
            return []
        doomed = list[Path]()
        for blob in list(self._blobs.iterdir()):
            digest = f"sha256:{blob.name}"
            being_put = blob.name.startswith(".")  # the temporary file of a ``put`` on another thread
            if not being_put and digest not in live and digest not in self._pins:
                trash = self._ingest / f"trash-{os.getpid()}-{time.monotonic_ns()}"
                blob.rename(trash)
                doomed.append(trash)
        return doomed


class BlobWriter:
    """Appends to a partial file and hashes on the way. Blocks."""

    def __init__(self, partial: Path) -> None:
        self._partial = partial
        self._hash = hashlib.sha256()
        self._file: BinaryIO = partial.open("ab", buffering=0)
        self.size = 0

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def hash_existing(self) -> None:
        """Take in what a former attempt wrote."""
        with self._partial.open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                self._hash.update(data)
                self.size += len(data)

    def write(self, data: bytes) -> None:
        keep_reserve(self._file.fileno(), len(data))
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._hash.update(data)
        self.size += len(data)

    def finish(self, expected: str, directory: Path) -> str:
        """Verify, make durable, move into place; returns the digest."""
        actual = f"sha256:{self._hash.hexdigest()}"
        if expected and actual != expected:
            raise DigestMismatchError(expected=expected, actual=actual)
        os.fsync(self._file.fileno())
        self._partial.rename(directory / actual[7:])
        sync_folder(directory)
        return actual


async def _write(writer: BlobWriter, data: bytes) -> None:
    """In a thread that has ended when this ends, cancelled or not: the file may be somebody else's then."""
    await run_abortable(lambda _: writer.write(data))


def _open_partial(partial: Path, size: int) -> BlobWriter:
    if partial.exists() and partial.stat().st_size > size:
        partial.unlink()
    writer = BlobWriter(partial)
    writer.hash_existing()
    return writer


def digest_of(data: bytes) -> str:
    """``sha256:<hex>`` of ``data``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
