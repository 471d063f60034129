"""/containers/{id}/stats and /top: what a container uses and runs.

Source: moby ``daemon/stats.go``, ``daemon/top_unix.go``.
"""

from __future__ import annotations

from aiohttp import web

from api.engine_routes.context import EngineContext
from api.requests import flag, json_response
from api.streams import json_line, start_stream

DEFAULT_PS_ARGS = "-ef"


class StatsRoutes:
    """Handlers that look into running containers from outside."""

    def __init__(self, context: EngineContext) -> None:
        self._engine = context.engine

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/containers/{id}/stats", self.stats, allow_head=False),
            web.get("/containers/{id}/top", self.top),
        ]

    async def stats(self, request: web.Request) -> web.StreamResponse:
        """One sample a second; without ``stream`` the second of two, with ``one-shot`` the first at once."""
        container = request.match_info["id"]
        if not flag(request, "stream", default=True):
            return json_response(await self._engine.stats_once(container, at_once=flag(request, "one-shot")))
        samples = self._engine.stats(container)
        response = await start_stream(request, "application/json")
        async for sample in samples:
            await response.write(json_line(sample))
        await response.write_eof()
        return response

    async def top(self, request: web.Request) -> web.Response:
        arguments = request.query.get("ps_args") or DEFAULT_PS_ARGS
        titles, rows = await self._engine.top(request.match_info["id"], arguments)
        return json_response({"Titles": titles, "Processes": rows})
