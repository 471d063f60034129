"""The local volume driver: a folder per volume, bound into containers; see ``mounting`` for what its options mount.

``ROOT/NAME/_data`` is the content, ``ROOT/NAME/volume.json`` what the API says about it. A volume exists when its
volume.json does; it is written last, so a crash while making one leaves a folder that the next ``open`` removes. A removal
renames the folder to ``.removed-...``, which is no volume's name, and that goes then, or with the next ``open``.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec
import structlog

from base.files import make_public_folder, read_text, remove_leftovers, write_atomic
from base.labels import has_labels
from base.leftovers import Leftovers
from base.threads import run_abortable
from base.trees import remove_tree, tree_size
from runtime.errors import ConflictError, HostError, InvalidParameterError, VolumeNotFoundError
from runtime.events import EventBus
from runtime.volumes import mounting

log = structlog.get_logger(__name__)

ANONYMOUS_LABEL = "com.docker.volume.anonymous"
_REMOVED = ".removed-"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as the API shows it. ``CreatedAt`` is RFC 3339, ``Mountpoint`` the folder with its content."""

    Name: str
    Driver: str = "local"
    Mountpoint: str
    CreatedAt: str
    Labels: dict[str, str] | None = None
    Scope: str = "local"
    Options: dict[str, str] | None = None

    @property
    def is_anonymous(self) -> bool:
        """Whether it was made for one container without a name."""
        return ANONYMOUS_LABEL in (self.Labels or {})


class VolumePruneReport(msgspec.Struct, frozen=True, kw_only=True):
    """``SpaceReclaimed`` in bytes."""

    VolumesDeleted: list[str]
    SpaceReclaimed: int


class Volumes:
    """The volumes below one folder.

    ``users`` tells which containers use a volume name; one in use is not removed.
    Making and removing a volume exclude each other by its name.
    """

    def __init__(
        self, root: Path, events: EventBus, *, users: Callable[[str], Sequence[str]] = lambda _name: ()
    ) -> None:
        self._root = root
        self._events = events
        self._volumes: dict[str, Volume] = {}
        self._mounts = mounting.VolumeMounts()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._claims: dict[str, set[str]] = {}
        self._leftovers = Leftovers(remove=_remove)
        self.users = users

    async def open(self) -> None:
        """Read what is there; remove folders that a crash left without a description."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root.chmod(0o700)
        for folder in self._root.iterdir():
            text = None if folder.name.startswith(_REMOVED) else read_text(folder / "volume.json")
            if text is None:
                await asyncio.to_thread(self._clear, folder)
                continue
            try:
                volume = msgspec.json.decode(text, type=Volume)
            except msgspec.DecodeError as error:
                log.error("volume.unreadable", path=str(folder), reason=str(error))
                continue
            self._volumes[volume.Name] = volume
            remove_leftovers(folder)

    def get(self, name: str) -> Volume:
        """Raises VolumeNotFoundError."""
        try:
            return self._volumes[name]
        except KeyError:
            raise VolumeNotFoundError(name) from None

    def list(self, filters: Mapping[str, Sequence[str]] | None = None) -> list[Volume]:
        """Sorted by name. Filters: dangling, driver, label, name. Raises InvalidParameterError for another."""
        filters = filters or {}
        if unknown := set(filters) - {"dangling", "driver", "label", "name"}:
            raise InvalidParameterError(f"invalid filter '{min(unknown)}'")
        return [self._volumes[name] for name in sorted(self._volumes) if self._matches(self._volumes[name], filters)]

    @contextlib.contextmanager
    def claiming(self, container_id: str) -> Iterator[None]:
        """While a container is made: what ``create`` gives it is in use, though no record says so yet."""
        self._claims[container_id] = set()
        try:
            yield
        finally:
            del self._claims[container_id]

    async def create(
        self,
        name: str = "",
        *,
        driver: str = "local",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        claimed_by: str = "",
    ) -> Volume:
        """Make a volume, or return the one of that name. No name makes an anonymous one.

        ``claimed_by`` is the container it is for; see ``claiming``.

        Raises:
            InvalidParameterError: bad name, or options the local driver does not have.
            HostError: it could not be written.
        """
        if driver not in ("", "local"):
            raise InvalidParameterError(f'error looking up volume plugin {driver}: plugin "{driver}" not found')
        try:
            mounting.validate(options or {})
        except InvalidParameterError as error:
            raise InvalidParameterError(f"create {name}: {error}") from error
        tags = dict(labels or {})
        if not name:
            name = secrets.token_hex(32)
            tags.setdefault(ANONYMOUS_LABEL, "")
        if not _NAME.fullmatch(name):
            raise InvalidParameterError(
                f'create {name}: "{name}" includes invalid characters for a local volume name, only '
                '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
            )
        async with self._lock(name):
            volume = self._volumes.get(name) or await self._make(name, tags, options or {})
            if claimed_by:
                self._claims[claimed_by].add(name)
            return volume

    async def _make(self, name: str, labels: dict[str, str], options: Mapping[str, str]) -> Volume:
        folder = self._root / name
        volume = Volume(
            Name=name,
            Mountpoint=str(folder / "_data"),
            CreatedAt=dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            Labels=labels or None,
            Options=dict(options) or None,
        )
        try:
            await run_abortable(lambda _: _make(folder, volume))
        except BaseException as error:
            await run_abortable(lambda _: self._set_aside(folder))
            if isinstance(error, OSError):
                raise HostError(f"create {name}: {error}") from error
            raise
        self._volumes[name] = volume
        self._events.publish("volume", "create", name, {"driver": "local"})
        return volume

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Delete the volume and its content. Raises VolumeNotFoundError (not with ``force``), ConflictError, HostError."""
        async with self._lock(name):
            if name not in self._volumes and force:
                return
            volume = self.get(name)
            claimed = [container_id for container_id, names in self._claims.items() if name in names]
            if users := list(dict.fromkeys([*self.users(name), *claimed])):
                raise ConflictError(f"remove {name}: volume is in use - [{', '.join(users)}]")
            folder = self._root / name
            try:
                if volume.Options:
                    await run_abortable(lambda _: self._mounts.unmount_unused(Path(volume.Mountpoint)))
                await run_abortable(lambda _: self._delete(folder))
            except OSError as error:
                raise HostError(f"remove {name}: {error}") from error
            finally:
                if not folder.exists():  # so too when the caller went away meanwhile
                    del self._volumes[name]
                    self._events.publish("volume", "destroy", name, {"driver": "local"})

    def _lock(self, name: str) -> asyncio.Lock:
        """Lives as long as somebody holds it or waits for it."""
        return self._locks.setdefault(name, asyncio.Lock())

    async def prune(self, filters: Mapping[str, Sequence[str]] | None = None) -> VolumePruneReport:
        """Delete volumes no container uses: anonymous ones, and with ``all=true`` the named ones too."""
        wanted = dict(filters or {})
        everything = any(value.lower() in ("true", "1") for value in wanted.pop("all", ()))
        deleted, size = [], 0
        for volume in self.list(wanted):
            if self.users(volume.Name) or not (volume.is_anonymous or everything):
                continue
            freed = await self.size_bytes(volume) or 0
            try:
                await self.remove(volume.Name)
            except (ConflictError, VolumeNotFoundError):  # used or removed meanwhile
                continue
            size += freed
            deleted.append(volume.Name)
        return VolumePruneReport(VolumesDeleted=deleted, SpaceReclaimed=size)

    async def size_bytes(self, volume: Volume) -> int | None:
        """What is in it; None when it cannot be measured."""
        try:
            return await asyncio.to_thread(tree_size, Path(volume.Mountpoint))
        except OSError as error:
            log.warning("volume.not_measured", volume=volume.Name, reason=str(error))
            return None

    async def close(self) -> None:
        """What would not go is the next start's."""
        await asyncio.to_thread(self._leftovers.close)

    def hold(self, name: str, container_id: str) -> Path:
        """The volume's folder for a container about to start, mounted when the volume has options. Blocks.

        Raises: VolumeNotFoundError, HostError.
        """
        volume = self.get(name)
        if volume.Options:
            self._mounts.hold(Path(volume.Mountpoint), volume.Options, container_id)
        return Path(volume.Mountpoint)

    def adopt(self, name: str, container_id: str) -> None:
        """A container runs with it since before this daemon."""
        volume = self._volumes.get(name)
        if volume is not None and volume.Options:
            self._mounts.adopt(Path(volume.Mountpoint), container_id)

    async def release(self, container_id: str) -> None:
        """The container has ended; what no other one uses is unmounted. Raises HostError."""
        if self._mounts.is_held_by(container_id):
            await asyncio.to_thread(self._mounts.release, container_id)

    async def unmount_unused(self) -> None:
        """After every running container was adopted. A mount that stays is logged."""
        for volume in tuple(self._volumes.values()):
            if volume.Options:
                try:
                    await asyncio.to_thread(self._mounts.unmount_unused, Path(volume.Mountpoint))
                except HostError as error:
                    log.error("volume.not_unmounted", volume=volume.Name, reason=str(error))

    def _delete(self, folder: Path) -> None:
        """In one step, under a name that no volume has: half of one would be gone with the next start. Blocks.

        Raises: OSError: nothing has changed; something is mounted there, and that is never deleted.
        """
        if mounting.is_mounted(folder / "_data"):
            raise OSError(f"{folder / '_data'} is a mount point")
        self._set_aside(folder)

    def _set_aside(self, folder: Path) -> None:
        """Needs no descriptor: what does is tried again. Raises: OSError: nothing has changed."""
        removed = self._root / f"{_REMOVED}{secrets.token_hex(16)}"
        with contextlib.suppress(FileNotFoundError):
            folder.rename(removed)
            self._leftovers.remove(removed)

    def _clear(self, folder: Path) -> None:
        """Remove what is no volume. Blocks."""
        try:
            self._delete(folder)
        except OSError as error:
            log.error("volume.remains_left", path=str(folder), reason=str(error), retry="next start")

    def _matches(self, volume: Volume, filters: Mapping[str, Sequence[str]]) -> bool:
        labels = volume.Labels or {}
        for key, values in filters.items():
            if key == "driver":
                good = volume.Driver in values
            elif key == "name":
                good = any(value in volume.Name for value in values)
            elif key == "label":
                good = has_labels(labels, values)
            else:
                dangling = not self.users(volume.Name)
                good = any((value.lower() in ("true", "1")) == dangling for value in values)
            if not good:
                return False
        return True


def _remove(folder: Path) -> None:
    """Never what is mounted there. Raises: OSError."""
    if mounting.is_mounted(folder / "_data"):
        raise OSError(f"{folder / '_data'} is a mount point")
    remove_tree(folder)


def _make(folder: Path, volume: Volume) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    make_public_folder(folder / "_data")
    write_atomic(folder / "volume.json", msgspec.json.encode(volume), durable=True)
