"""runc and conmon of one engine: what ``conmon`` does, in threads of a pool of their own."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from runtime.containers import cgroups, conmon

_WORKERS = 4
T = TypeVar("T")


class Runc:
    """Runs the programs that hold containers, and knows their control groups. Raises HostError when one is missing."""

    def __init__(self, *, paths: conmon.Paths, layout: cgroups.Layout, cgroup_parent: str) -> None:
        self.paths, self._layout, self._parent = paths, layout, cgroup_parent
        self.tools = conmon.find_tools()
        # Few workers on purpose: more runc at once than cores only makes each slower.
        self._pool = ThreadPoolExecutor(max_workers=max(_WORKERS, (os.cpu_count() or 1) * 2), thread_name_prefix="runc")

    # Any: the arguments of whatever function it is.
    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call something that runs a program, in the pool for that."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(function, *arguments))

    async def create(self, request: conmon.CreateRequest) -> conmon.Created:
        """Write the bundle and make the container, whose init then waits. Raises StartError, HostError."""
        return await self.run(conmon.create, self.tools, self.paths, request)

    async def start(self, container_id: str, pid: int) -> None:
        """Let the waiting init become the container's process. Raises StartError, HostError."""
        await self.run(conmon.start, self.tools, self.paths, container_id, pid)

    async def abandon(self, created: conmon.Created) -> None:
        """End what was created but is not to be started, its monitor too."""
        await self.run(conmon.abandon, created)

    async def clean(self, container_id: str) -> None:
        """Kill what is left in the container's cgroups; remove them, runc's state and the bundle. Idempotent.

        Raises HostError: something is left.
        """
        await self.run(conmon.clean, self.tools, self.paths, container_id, self.groups(container_id))

    def forget_exit(self, container_id: str) -> None:
        """See ``conmon.forget_exit``: it is the only copy until the state is saved."""
        conmon.forget_exit(self.paths, container_id)

    async def pause(self, container_id: str) -> None:
        """Raises HostError."""
        await self._command(container_id, "pause", container_id)

    async def resume(self, container_id: str) -> None:
        """Raises HostError."""
        await self._command(container_id, "resume", container_id)

    async def apply_limits(self, container_id: str, resources: Mapping[str, Any]) -> None:
        """Give the running container's cgroup these limits (OCI resources). Raises HostError."""
        path = self.paths.bundle(container_id) / "limits.json"
        limits = {key: value for key, value in resources.items() if key != "devices"}
        await asyncio.to_thread(path.write_text, json.dumps(limits))
        await self._command(container_id, "update", "--resources", str(path), container_id)

    async def _command(self, container_id: str, *arguments: str) -> None:
        await self.run(conmon.run_runc, self.tools, self.paths, container_id, *arguments)

    def exit_status(self, container_id: str) -> tuple[int, int] | None:
        """See ``conmon.exit_status``."""
        return conmon.exit_status(self.paths, container_id)

    def groups(self, container_id: str) -> list[Path]:
        """The container's cgroup in each hierarchy."""
        return cgroups.container_paths(self._layout, self._parent, container_id)

    def thaw(self, container_id: str) -> None:
        """Whatever the record says of it; a frozen process dies of no signal."""
        cgroups.thaw(self.groups(container_id))

    def is_frozen(self, container_id: str) -> bool:
        """Whether its processes stand still."""
        return cgroups.is_frozen(self.groups(container_id))

    def was_oom_killed(self, container_id: str) -> bool:
        """Whether the kernel killed one of its processes for memory; known until ``clean``."""
        return cgroups.oom_kills(self._layout, self._parent, container_id) > 0

    def known_ids(self) -> set[str]:
        """All that has runtime state, a bundle, pins, an exit file or a cgroup."""
        found = {path.name for path in self.paths.runc.iterdir() if len(path.name) == 64}
        found |= {path.name for kind in ("bundles", "pins") for path in (self.paths.run / kind).iterdir()}
        found |= {path.name for path in self.paths.exits.iterdir() if len(path.name) == 64}
        for mount in set(self._layout.mounts.values()):
            parent = mount / self._parent.lstrip("/")
            if parent.is_dir():
                found |= {path.name for path in parent.iterdir() if path.is_dir() and len(path.name) == 64}
        return found

    def close(self) -> None:
        """Wait for the calls under way. Blocks."""
        self._pool.shutdown(wait=True)
