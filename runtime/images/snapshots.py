"""Unpacked layers and the root file systems of containers.

Below ``root``: ``layers/<24 hex of the chain ID>`` is the content of one layer, ``meta/<same>.json`` says which chain
ID, diff ID and size it is, ``containers/<id>/{rootfs.json,upper,work,merged}`` belongs to one container, ``tmp/`` holds
what is being made or removed and is emptied at start. A directory appears in ``layers`` or ``containers`` by one rename,
when it is complete. Durability: see ``ImageStore``: layers that no image names are removed at start, and an image is
only recorded after its layers were synced.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Iterable, Sequence, Set
from itertools import count
from pathlib import Path

import msgspec
import structlog

from base.files import remove_leftovers, write_atomic
from base.leftovers import Leftovers
from base.trees import remove_tree, tree_size
from runtime.images.content import disk_full_as_error
from runtime.images.errors import DigestMismatchError, SnapshotError
from runtime.images.overlay import overlay_options, probe_overlay, unmount
from runtime.images.types import RootFS
from runtime.images.unpacking import Unpacked, Unpacker, wait_until_left
from runtime.kernel.mounts import Mounter, mount_overlay, sync_filesystem

# 96 bits: 128 layers fit in a page of mount options, and nobody finds a second chain ID with the same name.
_NAME_LENGTH = 24
_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_EMPTY = "empty"

log = structlog.get_logger(__name__)


class LayerMeta(msgspec.Struct, frozen=True):
    """What a layer directory holds."""

    ChainID: str
    DiffID: str
    SizeBytes: int


class RootFSRecord(msgspec.Struct, frozen=True):
    """What a container's root file system is made of; ``Layers`` are directory names, topmost first."""

    ImageID: str
    ChainID: str
    Layers: list[str]


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Chain ID of each layer, lowest first (OCI image-spec ``config.md``, "Layer ChainID")."""
    chain = list[str]()
    for diff_id in diff_ids:
        if not chain:
            chain.append(diff_id)
        else:
            digest = hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest()
            chain.append(f"sha256:{digest}")
    return chain


class Snapshots:
    """Owner of everything below ``root``. Methods that say they block may be called from any thread."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._layers, self._meta = root / "layers", root / "meta"
        self._containers, self._tmp = root / "containers", root / "tmp"
        self._sizes: dict[str, int] = {}
        self._records: dict[str, RootFSRecord] = {}
        self._lock = threading.Lock()  # threads make root file systems while the event loop condemns layers
        self._ours, self._numbers = secrets.token_hex(8), count()
        self._mounter: Mounter | None = None
        self._leftovers = Leftovers(remove=_unmount_and_remove)
        self.unpacker = Unpacker()

    def open(self) -> None:
        """Make the directories, check overlayfs, clear what a crash left. Blocks. Raises OverlayUnsupportedError.

        On a disk that takes nothing it is not checked, and what cannot be cleared is passed over: containers that run and
        images that are to go need neither.
        """
        for directory in (self._layers, self._meta, self._containers, self._tmp, self._layers / _EMPTY):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self._layers / _EMPTY).chmod(0o755)
        try:
            probe_overlay(self._temporary())
        except OSError as error:
            log.error("overlay.not_checked", path=str(self._tmp), reason=str(error))
        for leftover in self._tmp.iterdir():
            self._leftovers.remove(leftover)
        remove_leftovers(self._meta)
        for meta in self._meta.glob("*.json"):
            layer = self._read_meta(meta)
            if layer is not None and (self._layers / _name(layer.ChainID)).is_dir():
                self._sizes[layer.ChainID] = layer.SizeBytes
            else:
                meta.unlink()
        known = {_name(chain_id) for chain_id in self._sizes} | {_EMPTY}
        for directory in self._layers.iterdir():
            if directory.name not in known:
                try:
                    self._discard(directory)
                except OSError as error:
                    log.error("layer.not_removed", path=str(directory), reason=str(error), retry="next start")
        for home in self._containers.iterdir():
            record = self._read_record(home.name)
            if record is not None:
                self._records[home.name] = record
        self._mounter = Mounter(self._layers)

    def close(self) -> None:
        self.unpacker.close()
        if self._mounter is not None:
            self._mounter.close()
            self._mounter = None
        self._leftovers.close()

    @staticmethod
    def _read_meta(path: Path) -> LayerMeta | None:
        try:
            meta = msgspec.json.decode(path.read_bytes(), type=LayerMeta)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return meta if path.name == f"{_name(meta.ChainID)}.json" else None

    def _temporary(self) -> Path:
        """A name that nobody had before us either: what he left may still be there."""
        return self._tmp / f"{self._ours}-{next(self._numbers)}"

    def _discard(self, directory: Path) -> None:
        trash = self._temporary()
        directory.rename(trash)
        self._leftovers.remove(trash)

    # --------------------------------------------------------------- layers

    def has(self, chain_id: str) -> bool:
        return chain_id in self._sizes

    def chains(self) -> list[str]:
        """Chain IDs of all layers."""
        return list(self._sizes)

    def directories(self, chain: Sequence[str]) -> list[str]:
        """Directories of a chain (lowest first), topmost first, for display."""
        return [str(self._layers / _name(chain_id)) for chain_id in reversed(chain)]

    def size_bytes(self, chain_id: str) -> int:
        """Bytes in the regular files of one layer. Raises SnapshotError."""
        try:
            return self._sizes[chain_id]
        except KeyError:
            raise SnapshotError(f"layer {chain_id} is missing") from None

    def unpack(self, parents: Sequence[str], diff_id: str, blob: int, abort: threading.Event | None = None) -> Unpacked:
        """Unpack the layer at the descriptor ``blob`` onto the chain of ``parents`` (chain IDs, lowest first). Blocks.

        ``diff_id`` may be "" to take what comes. Raises LayerError, DigestMismatchError, NoSpaceError, AbortedError.
        """
        work = self._temporary()
        work.mkdir(mode=0o700)
        try:
            with disk_full_as_error(self._layers):
                below = [self._layers / _name(parent) for parent in reversed(parents)]
                unpacked = self.unpacker.unpack(blob, work, below, abort)
                if diff_id and unpacked.diff_id != diff_id:
                    raise DigestMismatchError(expected=diff_id, actual=unpacked.diff_id)
                diff_id = unpacked.diff_id
                chain_id = _chain_on(parents, diff_id)
                name = _name(chain_id)
                meta = LayerMeta(ChainID=chain_id, DiffID=diff_id, SizeBytes=unpacked.size_bytes)
                with self._lock:
                    if chain_id not in self._sizes:
                        write_atomic(self._meta / f"{name}.json", msgspec.json.encode(meta), durable=True)
                        (work / "fs").rename(self._layers / name)
                        self._sizes[chain_id] = unpacked.size_bytes
            return unpacked
        finally:
            self._leftovers.remove(work)

    def sync(self) -> None:
        """Make all layers durable. Blocks."""
        with disk_full_as_error(self._layers):
            sync_filesystem(self._layers)

    def condemn(self, live: Iterable[str]) -> tuple[list[str], list[Path]]:
        """Take layers that are neither in ``live`` (chain IDs) nor under a container out of the store.

        Returns their chain IDs, topmost of a chain not necessarily first, and the directories for the caller to remove.
        """
        wanted, chains, trash = set(live), list[str](), list[Path]()
        with self._lock:
            used = {name for record in self._records.values() for name in record.Layers}
            for chain_id in list(self._sizes):
                name = _name(chain_id)
                if chain_id in wanted or name in used:
                    continue
                target = self._temporary()
                (self._layers / name).rename(target)
                (self._meta / f"{name}.json").unlink(missing_ok=True)
                del self._sizes[chain_id]
                chains.append(chain_id)
                trash.append(target)
        return chains, trash

    # ----------------------------------------------------------- containers

    def _read_record(self, container_id: str) -> RootFSRecord | None:
        try:
            data = (self._containers / container_id / "rootfs.json").read_bytes()
            return msgspec.json.decode(data, type=RootFSRecord)
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            return None  # a power cut may leave the file empty; see ``recover``

    def _rootfs(self, container_id: str, record: RootFSRecord) -> RootFS:
        home = self._containers / container_id
        return RootFS(container_id, record.ImageID, record.ChainID, home / "merged", home / "upper")

    async def prepare(self, container_id: str, image_id: str, chain: Sequence[str]) -> RootFS:
        """Make the writable layer on top of ``chain`` (chain IDs, lowest first). Raises SnapshotError, NoSpaceError."""
        return await self._get_mounter().run(lambda: self._prepare(container_id, image_id, chain))

    async def recover(self, container_id: str, image_id: str, chain: Sequence[str]) -> None:
        """Have the root file system of a container that was made, whatever power loss left of its record.

        The record is not synced, as that would cost every container 7 ms: what it says can be told from the image.
        The container's files stay. Nothing to do where the record is there. Raises SnapshotError, NoSpaceError.
        """
        if container_id not in self._records:
            await self._get_mounter().run(lambda: self._recover(container_id, image_id, chain))

    def _recover(self, container_id: str, image_id: str, chain: Sequence[str]) -> None:
        home, record = self._containers / container_id, _record_of(image_id, chain)
        if (home / "upper").is_dir():
            with self._lock, disk_full_as_error(self._containers):
                self._need(chain, image_id)
                write_atomic(home / "rootfs.json", msgspec.json.encode(record))
                self._records[container_id] = record
        else:
            self._prepare(container_id, image_id, chain)
        log.warning("rootfs.recovered", container_id=container_id, image_id=image_id)

    def _get_mounter(self) -> Mounter:
        """Its threads also prepare and unmount: long unpacking in the common pool must not delay a container."""
        if self._mounter is None:
            raise SnapshotError("the image store is closed")
        return self._mounter

    def _prepare(self, container_id: str, image_id: str, chain: Sequence[str]) -> RootFS:
        _check_container_id(container_id)
        record = _record_of(image_id, chain)
        with self._lock:
            existing = self._records.get(container_id)
            if existing is not None:
                if existing.ImageID != image_id:
                    raise SnapshotError(
                        f"container {container_id} already has a root file system of {existing.ImageID}"
                    )
                return self._rootfs(container_id, existing)
            self._need(chain, image_id)
            self._records[container_id] = record  # from here on the layers are in use
        try:
            self._make_home(container_id, record)
        except BaseException:
            del self._records[container_id]
            raise
        return self._rootfs(container_id, record)

    def _need(self, chain: Sequence[str], image_id: str) -> None:
        missing = [chain_id for chain_id in chain if chain_id not in self._sizes]
        if missing:
            raise SnapshotError(f"layer {missing[0]} of image {image_id} is missing")

    def _make_home(self, container_id: str, record: RootFSRecord) -> None:
        home, work = self._containers / container_id, self._temporary()
        if home.exists():
            unmount(home / "merged")
            self._discard(home)
        try:
            with disk_full_as_error(self._containers):
                work.mkdir(mode=0o700)
                for name in ("upper", "work", "merged"):
                    (work / name).mkdir(mode=0o755)
                # The root of an overlay looks like its upper directory.
                below = (self._layers / record.Layers[0]).stat()
                os.chown(work / "upper", below.st_uid, below.st_gid)
                os.chmod(work / "upper", below.st_mode & 0o7777)
                (work / "rootfs.json").write_bytes(msgspec.json.encode(record))
                work.rename(home)
        except BaseException:
            self._leftovers.remove(work)
            raise

    def image_of(self, container_id: str) -> str:
        """Image ID of a container's root file system, "" if it has none."""
        record = self._records.get(container_id)
        return record.ImageID if record is not None else ""

    def get(self, container_id: str) -> RootFS:
        """Raises SnapshotError if the container has none."""
        _check_container_id(container_id)
        record = self._records.get(container_id)
        if record is None:
            raise SnapshotError(f"container {container_id} has no root file system")
        return self._rootfs(container_id, record)

    async def mount(self, container_id: str) -> Path:
        """Mount the overlay of a container; mounted already is fine. Raises SnapshotError."""
        return await self._get_mounter().run(lambda: self._mount(container_id))

    def _mount(self, container_id: str) -> Path:
        _check_container_id(container_id)
        record = self._records.get(container_id)
        if record is None:
            raise SnapshotError(f"container {container_id} has no root file system")
        target = self._containers / container_id / "merged"
        if os.path.ismount(target):
            return target
        home = f"../containers/{container_id}"
        try:
            mount_overlay(target, overlay_options(record.Layers, f"{home}/upper", f"{home}/work"))
        except OSError as error:
            raise SnapshotError(
                f"cannot mount the root file system of {container_id} at {target}: {error.strerror}"
            ) from error
        return target

    async def unmount(self, container_id: str) -> None:
        """Raises SnapshotError."""
        _check_container_id(container_id)
        await self._get_mounter().run(lambda: unmount(self._containers / container_id / "merged"))

    async def remove(self, container_id: str) -> None:
        """Unmount and delete; nothing there is fine. Raises SnapshotError."""
        await self.unmount(container_id)
        self._records.pop(container_id, None)
        home = self._containers / container_id
        if home.exists():
            await asyncio.to_thread(self._discard, home)

    async def tidy(self, containers: Set[str], mounted: Set[str]) -> bool:
        """Remove what belongs to none of ``containers``, unmount what is not in ``mounted``; true if one was removed."""
        homes = await asyncio.to_thread(lambda: [home.name for home in self._containers.iterdir()])
        strangers = [name for name in homes if name not in containers]
        for name in (*strangers, *(name for name in homes if name in containers and name not in mounted)):
            try:
                await (self.unmount(name) if name in containers else self.remove(name))
            except (SnapshotError, OSError) as error:
                log.error("rootfs.not_tidied", container_id=name, reason=str(error), retry="next start")
        return bool(strangers)

    async def rw_size(self, container_id: str) -> int:
        """Bytes in the regular files that the container wrote."""
        return await asyncio.to_thread(tree_size, self.get(container_id).upper)


def _unmount_and_remove(tree: Path) -> None:
    """Of what was being made or removed, once nothing of a daemon that was killed writes there. Raises OSError."""
    wait_until_left(tree)
    try:
        unmount(tree / "merged")
    except SnapshotError as error:
        raise OSError(str(error)) from error
    remove_tree(tree)


def _name(chain_id: str) -> str:
    return chain_id.removeprefix("sha256:")[:_NAME_LENGTH]


def _chain_on(parents: Sequence[str], diff_id: str) -> str:
    """Chain ID of a layer on top of a stack: only the ID below matters."""
    return chain_ids([parents[-1], diff_id])[1] if parents else diff_id


def _record_of(image_id: str, chain: Sequence[str]) -> RootFSRecord:
    layers = [_name(chain_id) for chain_id in reversed(chain)] or [_EMPTY]
    return RootFSRecord(ImageID=image_id, ChainID=chain[-1] if chain else "", Layers=layers)


def _check_container_id(container_id: str) -> None:
    if not _CONTAINER_ID.fullmatch(container_id):
        raise SnapshotError(f"invalid container ID {container_id!r}")
