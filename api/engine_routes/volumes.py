"""/volumes of this host."""

from __future__ import annotations

from aiohttp import web

from api.engine_routes.context import EngineContext


class VolumeRoutes:
    def __init__(self, context: EngineContext) -> None:
        self._engine = context.engine

    def routes(self) -> list[web.RouteDef]:
        return []
