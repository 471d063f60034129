"""What the engine's tests share."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # Any: fields of ContainerConfig, of many types

import pytest

from runtime.engine import Engine
from runtime.errors import EngineError
from runtime.types import ContainerConfig, EndpointSettings, HostConfig, NetworkingConfig
from tests.support_images import BUSYBOX_TAG, busybox_rootfs


@dataclass
class Bench:
    """The engine under test (``engine`` may be replaced by a test) and what it stands on."""

    engine: Engine
    make: Callable[[], Engine]
    folder: Path
    cgroup: str

    async def run(
        self,
        *command: str,
        host: HostConfig | None = None,
        networks: Mapping[str, EndpointSettings | None] | None = None,
        name: str | None = None,
        **config: Any,
    ) -> str:
        """Create and start a container; returns its ID."""
        container_id = await self.create(*command, host=host, networks=networks, name=name, **config)
        await self.engine.start(container_id)
        return container_id

    async def create(
        self,
        *command: str,
        host: HostConfig | None = None,
        networks: Mapping[str, EndpointSettings | None] | None = None,
        name: str | None = None,
        **config: Any,
    ) -> str:
        """Create one; no network unless ``host`` says so."""
        wanted = ContainerConfig(Image=BUSYBOX_TAG, Cmd=list(command), **config)
        container_id, _ = await self.engine.create(
            wanted, host or HostConfig(NetworkMode="none"), NetworkingConfig(EndpointsConfig=dict(networks or {})), name
        )
        return container_id

    async def output(self, container_id: str) -> str:
        """All that it printed."""
        return b"".join([line.data async for line in self.engine.logs(container_id)]).decode()


async def load_image(engine: Engine, name: str = "busybox") -> None:
    """``name``:latest from the distribution's binary of busybox."""

    async def chunks() -> AsyncIterator[bytes]:
        yield busybox_rootfs()

    await engine.images.import_tar(chunks(), repo=name, tag="latest")


class Held:
    """A blocking step that stands still: ``reached`` tells that it has come, ``go_on`` lets it end."""

    def __init__(self) -> None:
        self._reached, self._go_on = threading.Event(), threading.Event()

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, 30)

    def go_on(self) -> None:
        self._go_on.set()

    def stop(self) -> None:
        """Called by the step."""
        self._reached.set()
        self._go_on.wait(30)


@contextlib.contextmanager
def hold(module: object, name: str, *, before: bool = True) -> Iterator[Held]:
    """Hold a function of a module, which threads call, before or after it does its work."""
    step, original = Held(), getattr(module, name)

    def held(*args: object) -> object:
        if before:
            step.stop()
        made = original(*args)
        if not before:
            step.stop()
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, held)
        yield step
        step.go_on()


async def clean_up(bench: Bench) -> None:
    """Remove every container and device, close the engine, and see that nothing of it is left."""
    engine = bench.engine
    for summary in engine.list(all=True):
        with contextlib.suppress(EngineError):
            await engine.remove(summary.Id, force=True, volumes=True)
    await engine.networks.remove_devices()
    await engine.close()
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    disk = str(bench.folder / "state")  # a test may put that on one of its own
    assert [point for point in points if str(bench.folder) in point and point != disk] == []
    left = [path for name in ("runc", "bundles", "exits", "pins") for path in (bench.folder / "run" / name).iterdir()]
    assert left == []
