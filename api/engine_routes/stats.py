"""/containers/{id}/stats and /top: what a container uses and runs.

Source: moby ``daemon/stats.go``, ``daemon/top_unix.go``, ``api/types/container/stats.go``.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import msgspec
from aiohttp import web

from api.engine_routes.context import EngineContext
from api.requests import flag, json_response
from api.streams import json_line, start_stream
from runtime.containers import cgroups
from runtime.containers.types import NEVER, ContainerJSON
from runtime.containers.usage import CPUStats, Usage, list_processes, read_usage
from runtime.errors import ConflictError, ContainerNotFoundError

PERIOD_S = 1.0
DEFAULT_PS_ARGS = "-ef"


class StatsRoutes:
    """Handlers that look into running containers from outside."""

    def __init__(self, context: EngineContext) -> None:
        self._engine = context.engine
        self._layout = cgroups.detect()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/containers/{id}/stats", self.stats, allow_head=False),
            web.get("/containers/{id}/top", self.top),
        ]

    async def stats(self, request: web.Request) -> web.StreamResponse:
        """One sample a second; without ``stream`` the second of two, with ``one-shot`` the first at once."""
        container = self._engine.inspect(request.match_info["id"])
        sampler = Sampler(self._layout)
        if flag(request, "stream", default=True):
            return await self._stream(request, container.Id, sampler)
        if not flag(request, "one-shot") and container.State.Running:
            sampler.sample(container)
            await asyncio.sleep(PERIOD_S)
            container = self._engine.inspect(container.Id)
        return json_response(sampler.sample(container))

    async def _stream(self, request: web.Request, container_id: str, sampler: Sampler) -> web.StreamResponse:
        response = await start_stream(request, "application/json")
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                sample = sampler.sample(self._engine.inspect(container_id))
            except ContainerNotFoundError:
                await response.write_eof()
                return response
            await response.write(json_line(sample))
            due = max(due + PERIOD_S, loop.time())
            await asyncio.sleep(due - loop.time())

    async def top(self, request: web.Request) -> web.Response:
        container = self._engine.inspect(request.match_info["id"])
        if not container.State.Running:
            raise ConflictError(f"container {container.Id} is not running")
        arguments = request.query.get("ps_args") or DEFAULT_PS_ARGS
        titles, rows = await asyncio.to_thread(list_processes, container.State.Pid, self._layout, arguments)
        return json_response({"Titles": titles, "Processes": rows})


class Sampler:
    """Makes samples of one container, each with the CPU counters of the one before."""

    def __init__(self, layout: cgroups.Layout) -> None:
        self._layout = layout
        self._read = NEVER
        self._cpu = CPUStats()

    def sample(self, container: ContainerJSON) -> dict[str, object]:
        """One line of the answer; all counters are zero for a container that does not run."""
        usage = read_usage(container.State.Pid, self._layout) if container.State.Running else Usage()
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        sample: dict[str, object] = {
            "id": container.Id,
            "name": container.Name,
            "read": now,
            "preread": self._read,
            "num_procs": 0,
            "pids_stats": usage.pids_stats,
            "cpu_stats": usage.cpu_stats,
            "precpu_stats": self._cpu,
            "memory_stats": usage.memory_stats,
            "blkio_stats": {"io_service_bytes_recursive": msgspec.to_builtins(usage.blkio) or None},
            "storage_stats": {},
        }
        if usage.networks:
            sample["networks"] = usage.networks
        self._read, self._cpu = now, usage.cpu_stats
        return sample
