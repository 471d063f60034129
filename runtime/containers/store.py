"""All containers of the engine: on disk, by ID, by name, by prefix."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from base.files import read_text, remove_leftovers, write_atomic
from base.leftovers import Leftovers
from base.records import Records
from base.threads import run_abortable
from runtime.containers.container import Container
from runtime.containers.names import random_name
from runtime.containers.record import Record, RunState
from runtime.containers.states import Status
from runtime.errors import ContainerNotFoundError, HostError, InvalidNameError, InvalidParameterError, NameConflictError
from runtime.images import ContainerUse
from runtime.types import EndpointSettings, HostConfig

log = structlog.get_logger(__name__)

_ID = re.compile(r"[0-9a-f]{64}")
_REMOVED, _STATE = "removed.json", "state.json"
_NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")


class ContainerStore:
    """The containers below ``STATE/containers``; names are claimed in memory before anything is written.

    ``unsaved`` is the folder for what the disk cannot take, see ``Records``; on another one, and without it memory alone.
    """

    def __init__(self, root: Path, *, unsaved: Path | None = None) -> None:
        self._root = root
        self.records = Records(unsaved)
        self._leftovers = Leftovers()
        self._containers: dict[str, Container] = {}
        self._names: dict[str, str] = {}
        self._half_removed: list[Record] = []
        self._linking: dict[str, set[str]] = {}
        """By ID of a container those that link to it."""

    async def open(self) -> None:
        """Read every record. One that cannot be read is left alone on disk and said so."""
        self._root.mkdir(mode=0o710, parents=True, exist_ok=True)
        for folder in self._root.iterdir():
            if not _ID.fullmatch(folder.name):
                continue
            text, removed = read_text(folder / "container.json"), read_text(folder / _REMOVED)
            if text is None and removed is None:  # a create that never ended
                await asyncio.to_thread(self._leftovers.remove, folder)
                continue
            remove_leftovers(folder)
            try:
                record = msgspec.json.decode(text or removed or "", type=Record)
            except msgspec.DecodeError as error:
                log.error("container.unreadable", container_id=folder.name, reason=str(error))
                continue
            if text is None:
                self._half_removed.append(record)
                continue
            container = Container(record, self._read_state(folder), folder)
            self._names[record.Name] = record.ID
            self._hold(container)
        self.records.tidy()

    async def close(self) -> None:
        """Save what could not be saved before."""
        await asyncio.to_thread(self.records.close)
        await asyncio.to_thread(self._leftovers.close)

    def __iter__(self) -> Iterator[Container]:
        return iter(tuple(self._containers.values()))

    def __len__(self) -> int:
        return len(self._containers)

    def find(self, container_id: str) -> Container | None:
        """By full ID."""
        return self._containers.get(container_id)

    def get(self, ref: str) -> Container:
        """By full ID, exact name, name of a link (``PARENT/ALIAS``), unique ID prefix. Raises ContainerNotFoundError, InvalidParameterError."""
        if ref in self._containers:
            return self._containers[ref]
        name, _, alias = ref.removeprefix("/").partition("/")
        if (found_by_name := self._containers.get(self._names.get(name, ""))) is not None:
            if not alias:
                return found_by_name
            if (child := self._containers.get(found_by_name.record.Links.get(alias, ""))) is not None:
                return child
        found = [container_id for container_id in self._containers if ref and container_id.startswith(ref)]
        if len(found) > 1:
            raise InvalidParameterError(f"multiple IDs found with provided prefix: {ref}")
        if not found:
            raise ContainerNotFoundError(ref)
        return self._containers[found[0]]

    def users_of_image(self, image_id: str) -> list[ContainerUse]:
        """The containers made from it."""
        return [ContainerUse(item.id, item.running) for item in self if item.record.ImageID == image_id]

    def users_of_volume(self, name: str) -> list[str]:
        """IDs of the containers it is mounted in, running or not."""
        return [item.id for item in self if any(point.Name == name for point in item.record.Mounts)]

    def name_of(self, container_id: str) -> str:
        """For people; of one that is gone its short ID."""
        container = self.find(container_id)
        return container.record.Name if container else container_id[:12]

    def claim_name(self, name: str | None, container_id: str) -> str:
        """Take a name, or a free random one. Raises InvalidParameterError, NameConflictError."""
        if not name:
            name = next(made for made in iter(random_name, "") if made not in self._names)
        if not _NAME.fullmatch(name):
            raise InvalidNameError(name)
        name = name.removeprefix("/")
        if (owner := self._names.get(name)) is not None and owner != container_id:
            raise NameConflictError(name=name, container_id=owner)
        self._names[name] = container_id
        return name

    def release_name(self, name: str, container_id: str) -> None:
        """Give a name back when it is this container's."""
        if self._names.get(name) == container_id:
            del self._names[name]

    def kept_ids(self) -> set[str]:
        """IDs of all that is on disk, those whose record cannot be read included."""
        return {folder.name for folder in self._root.iterdir() if _ID.fullmatch(folder.name)}

    def new_id(self) -> str:
        """An unused ID; twelve digits that are all decimal would look like a number to some tools."""
        while True:
            container_id = secrets.token_hex(32)
            if container_id not in self._containers and not container_id[:12].isdecimal():
                return container_id

    def folder(self, container_id: str) -> Path:
        """Where a container's files are."""
        return self._root / container_id

    async def add(self, record: Record) -> Container:
        """Write a new container durably. Raises HostError (disk full)."""
        container = Container(record, RunState(), self.folder(record.ID))
        try:
            await run_abortable(lambda _: _write_record(container.folder, record))
        except BaseException as error:
            await asyncio.to_thread(self._leftovers.remove, container.folder)
            if isinstance(error, OSError):
                raise HostError(f"cannot save container {record.ID[:12]}: {error}") from error
            raise
        self._hold(container)
        return container

    def _hold(self, container: Container) -> None:
        self._containers[container.id] = container
        for child_id in container.record.Links.values():
            self._linking.setdefault(child_id, set()).add(container.id)

    def linking_to(self, container_id: str) -> list[tuple[Container, str]]:
        """The containers that link to one, with the alias of each link."""
        parents = [self._containers[each] for each in self._linking.get(container_id, ()) if each in self._containers]
        return [
            (each, alias) for each in parents for alias, child in each.record.Links.items() if child == container_id
        ]

    async def unlink(self, parent: Container, alias: str) -> None:
        """Forget a link. Raises HostError: it is there still."""
        old = parent.record.Links
        parent.record.Links = {name: child for name, child in old.items() if name != alias}
        try:
            await asyncio.to_thread(_write_record, parent.folder, parent.record)
        except OSError as error:
            parent.record.Links = old
            raise HostError(f"cannot save the links of container {parent.id[:12]}: {error}") from error

    async def rename(self, container: Container, name: str) -> None:
        """Under another name. Raises what ``claim_name`` raises, HostError."""
        old = container.record.Name
        name = self.claim_name(name, container.id)
        container.record.Name = name
        try:
            await asyncio.to_thread(_write_record, container.folder, container.record)
        except OSError as error:
            container.record.Name = old
            self.release_name(name, container.id)
            raise HostError(f"cannot rename container {container.id[:12]}: {error}") from error
        if name != old:
            self.release_name(old, container.id)

    async def update(self, container: Container, host: HostConfig) -> None:
        """With other limits or another restart policy. Raises HostError."""
        old = container.record.HostConfig
        container.record.HostConfig = host
        try:
            await asyncio.to_thread(_write_record, container.folder, container.record)
        except OSError as error:
            container.record.HostConfig = old
            raise HostError(f"cannot update container {container.id[:12]}: {error}") from error

    async def set_endpoints(self, container: Container, endpoints: dict[str, EndpointSettings]) -> None:
        """On these networks. Raises HostError: it is on those it was on."""
        old = container.record.Endpoints
        container.record.Endpoints = endpoints
        try:
            await asyncio.to_thread(_write_record, container.folder, container.record)
        except OSError as error:
            container.record.Endpoints = old
            raise HostError(f"cannot save the networks of container {container.id[:12]}: {error}") from error

    def save_state(self, container: Container, *, required: bool = False) -> None:
        """Write what changed, now or when the disk can take it (``is_safe``).

        When it is ``required``, as before a process is let go that the next daemon would not know for a container's,
        HostError is raised instead.
        """
        path, data = _state_file(container), msgspec.json.encode(container.state)
        if not required:
            self.records.keep(path, data)
            return
        try:
            self.records.write(path, data)
        except OSError as error:
            raise HostError(f"cannot save the state of container {container.id[:12]}: {error}") from error

    def is_safe(self, container: Container) -> bool:
        """Whether its state would be found by the next daemon if this one were killed."""
        return self.records.is_safe(_state_file(container))

    async def forget(self, container: Container, *, volumes: bool) -> None:
        """First half of a removal: from now on no container; ``discard`` follows. Raises OSError.

        With ``volumes`` the record is kept under another name, in the same instant, and its volumes go in between: the
        next start of a daemon that dies there knows from it which (``half_removed``).
        """

        def _forget() -> None:
            record = container.folder / "container.json"
            if volumes:
                record.rename(container.folder / _REMOVED)
            else:
                record.unlink(missing_ok=True)

        await asyncio.to_thread(_forget)
        self.records.drop(_state_file(container))
        self._containers.pop(container.id, None)
        self._linking.pop(container.id, None)
        for child_id in container.record.Links.values():
            self._linking.get(child_id, set()).discard(container.id)
        self.release_name(container.record.Name, container.id)

    async def discard(self, container_id: str) -> None:
        """Second half: the files, log included."""
        await asyncio.to_thread(self._leftovers.remove, self.folder(container_id))

    def half_removed(self) -> list[Record]:
        """Containers that ``open`` found forgotten, but for their volumes; handed out once."""
        found, self._half_removed = self._half_removed, []
        return found

    def _read_state(self, folder: Path) -> RunState:
        text = self.records.read(folder / _STATE)
        if text is None:
            return RunState()
        try:
            return msgspec.json.decode(text, type=RunState)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("state.unreadable", container_id=folder.name, reason=str(error))
            return RunState(Status=Status.EXITED, ExitCode=255, Error="the record of its last run was lost")


def _write_record(folder: Path, record: Record) -> None:
    folder.mkdir(mode=0o710, exist_ok=True)
    write_atomic(folder / "container.json", msgspec.json.encode(record), durable=True)


def _state_file(container: Container) -> Path:
    return container.folder / _STATE
