"""A host on which containers are two sleeping processes each: programs, images, networks and bundles that note down what
is asked of them and refuse where a test wants it. Everything above them is real."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypeVar

from runtime.containers.bundle import BundleBuilder
from runtime.containers.conmon import Created, CreateRequest, Paths
from runtime.containers.container import Container
from runtime.containers.lifecycle import Lifecycle
from runtime.containers.record import Record
from runtime.containers.runc import Runc
from runtime.containers.store import ContainerStore
from runtime.errors import HostError
from runtime.events import EventBus
from runtime.images import ImageStore
from runtime.kernel.syscalls import Watcher
from runtime.networks import Networks, Sandbox
from runtime.networks.ports import PortRequest
from runtime.networks.reservations import Reservations
from runtime.types import ContainerConfig, EndpointSettings, HostConfig
from runtime.volumes import Volumes
from tests.unit.resolver.fakes import FakeResolver

T = TypeVar("T")


class Asked:
    """What was asked of the host, in order; a step whose name is in ``refused`` fails, one in ``broken`` as none should."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.refused: set[str] = set()
        self.broken: set[str] = set()

    def step(self, name: str) -> None:
        self.steps.append(name)
        if name in self.refused:
            raise HostError(f"{name} refused")
        if name in self.broken:
            raise LookupError(f"{name} has a defect")


class FakeRunc(Runc):
    def __init__(self, paths: Paths, asked: Asked) -> None:
        self.paths, self._asked = paths, asked
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.exit_codes: dict[str, tuple[int, int]] = {}

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)

    async def create(self, request: CreateRequest) -> Created:
        self._asked.step("create")
        init, monitor = (self._sleep() for _ in range(2))
        return Created(init.pid, monitor.pid)

    async def start(self, container_id: str, pid: int) -> None:
        self._asked.step("start")

    async def abandon(self, created: Created) -> None:
        self._asked.step("abandon")
        for pid in (created.pid, created.conmon_pid):
            self.end(pid)

    async def clean(self, container_id: str) -> None:
        self._asked.step("clean")

    def forget_exit(self, container_id: str) -> None:
        self.exit_codes.pop(container_id, None)

    async def pause(self, container_id: str) -> None:
        self._asked.step("pause")

    async def resume(self, container_id: str) -> None:
        self._asked.step("resume")

    def exit_status(self, container_id: str) -> tuple[int, int] | None:
        return self.exit_codes.get(container_id)

    def was_oom_killed(self, container_id: str) -> bool:
        return False

    def known_ids(self) -> set[str]:
        return set()

    def thaw(self, container_id: str) -> None:
        self._asked.step("thaw")

    def _sleep(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["sleep", "1000"])
        self._processes[process.pid] = process
        return process

    def end(self, pid: int) -> None:
        """Of one process, which is waited for by whoever holds it or here."""
        process = self._processes.pop(pid)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for pid in tuple(self._processes):
            self.end(pid)


class FakeImages(ImageStore):
    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    async def mount_rootfs(self, container_id: str) -> Path:
        self._asked.step("mount")
        return Path("/nowhere")

    async def unmount_rootfs(self, container_id: str) -> None:
        self._asked.step("unmount")

    async def remove_rootfs(self, container_id: str) -> None:
        self._asked.step("remove layer")

    async def recover_rootfs(self, image_id: str, container_id: str) -> None:
        """Nothing is ever lost here."""

    async def tidy_rootfs(self, containers: Set[str], running: Set[str]) -> None:
        self._asked.step("tidy")


class FakeNetworks(Networks):
    def __init__(self, asked: Asked) -> None:
        self._asked, self.reservations = asked, Reservations()

    async def reserve(
        self, container_id: str, wanted: Mapping[str, EndpointSettings], ports: Sequence[PortRequest]
    ) -> Sandbox:
        self._asked.step("reserve")
        return Sandbox()

    async def attach(self, container_id: str, pid: int) -> None:
        self._asked.step("attach")

    async def release(self, container_id: str, *, staying: str = "") -> None:
        self._asked.step("release")

    async def reconcile(self) -> None:
        self._asked.step("reconcile")


class FakeBundles(BundleBuilder):
    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def build(self, container: Container, rootfs: Path, sandbox: Sandbox) -> CreateRequest:
        self._asked.step("build")
        record = container.record
        return CreateRequest(record.ID, record.Name, {}, container.log_path, "none", False, False, False)


class FakeHost:
    """The lifecycle of containers on such a host."""

    def __init__(self, folder: Path) -> None:
        self.asked = asked = Asked()
        self.said: list[str] = []
        events = EventBus()
        events.on_event(lambda event: self.said.append(event.Action))
        self.store = ContainerStore(folder / "containers", unsaved=folder / "run" / "unsaved")
        self.runc = FakeRunc(Paths(folder / "run"), asked)
        self._watcher = Watcher()
        self.lifecycle = Lifecycle(
            store=self.store,
            runc=self.runc,
            images=FakeImages(asked),
            networks=FakeNetworks(asked),
            resolver=FakeResolver(),
            volumes=Volumes(folder / "volumes", events),
            bundles=FakeBundles(asked),
            events=events,
            capabilities=(),
        )
        self.starting, self.stopping, self.removal = (
            self.lifecycle.starting,
            self.lifecycle.stopping,
            self.lifecycle.removal,
        )

    async def open(self) -> None:
        self.runc.paths.prepare()
        await self.store.open()
        await self.lifecycle.open(self._watcher)
        self.asked.steps.clear()

    async def close(self) -> None:
        await self.lifecycle.close()
        await self.store.close()
        self._watcher.close()

    async def create(self, host: HostConfig | None = None) -> Container:
        """A container's record."""
        record = Record(
            ID=self.store.new_id(),
            Name="web",
            CreatedNs=0,
            Created="",
            ImageID="",
            Config=ContainerConfig(),
            HostConfig=host or HostConfig(),
            Endpoints={"bridge": EndpointSettings()},
            Mounts=[],
        )
        return await self.store.add(record)

    def exit(self, container: Container, code: int) -> None:
        """Its process ends, and conmon says so and ends as well."""
        self.runc.exit_codes[container.id] = code, 0
        self.runc.end(container.state.Pid)
        self.runc.end(container.state.ConmonPid)
