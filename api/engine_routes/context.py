"""What every handler of the engine's routes works with."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog

from runtime.engine import Engine
from worker.membership.cluster_member import ClusterMember

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    """What the daemon tells about itself in /version and /info.

    Attributes:
        version: of this distribution, such as "0.1.0".
        state: root folder of the daemon, ``DockerRootDir``.
        daemon_id: stable ID of this daemon, ``ID`` of /info.
        labels: engine labels, ``key=value``.
        git_commit, build_time: of the build, may be empty.
        insecure_registries, mirrors: as the image store was given them.
        warnings: what this host lacks, for people.
    """

    version: str
    state: Path
    daemon_id: str = ""
    name: str = field(default_factory=platform.node)
    labels: Sequence[str] = ()
    git_commit: str = ""
    build_time: str = ""
    debug: bool = False
    insecure_registries: Sequence[str] = ()
    mirrors: Sequence[str] = ()
    warnings: Sequence[str] = ()


class Operations:
    """Changes that go on when their client goes away.

    A handler is cancelled with its connection, which is right for reading and wrong half-way through a stop. Each
    change runs in a task of its own, kept here until it ends; the handler only waits for it.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, change: Coroutine[Any, Any, T], name: str) -> T:
        """Start ``change`` and wait for it; when the waiting is cancelled the change goes on."""
        task = asyncio.get_running_loop().create_task(change, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("operation.failed", operation=task.get_name(), error=str(error))

    async def close(self, *, grace_s: float) -> None:
        """Wait for what is under way, then cancel the rest."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in tuple(self._tasks):
            log.warning("operation.cancelled", operation=task.get_name())
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


@dataclass(frozen=True, slots=True)
class EngineContext:
    """The engine, the host's place in a cluster, and what the daemon says of itself."""

    engine: Engine
    member: ClusterMember
    info: DaemonInfo
    operations: Operations
