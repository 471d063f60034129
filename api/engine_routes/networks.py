"""/networks of this host: the predefined ones.

Source: moby ``daemon/server/router/network/network_routes.go``.
"""

from __future__ import annotations

from aiohttp import web

from api.engine_routes.context import EngineContext
from api.errors import ForbiddenError, NotServedError
from api.requests import filters_of, json_response

NOT_SERVED = "networks other than bridge, host and none are not served yet"


class NetworkRoutes:
    """Handlers of networks."""

    def __init__(self, context: EngineContext) -> None:
        self._engine = context.engine

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/networks", self.list),
            web.get("/networks/", self.list),
            web.post("/networks/create", self.refuse),
            web.post("/networks/prune", self.prune),
            web.get("/networks/{id}", self.inspect),
            web.delete("/networks/{id}", self.remove),
            web.post("/networks/{id}/connect", self.refuse),
            web.post("/networks/{id}/disconnect", self.refuse),
        ]

    async def list(self, request: web.Request) -> web.Response:
        return json_response(self._engine.networks.list(filters_of(request)))

    async def inspect(self, request: web.Request) -> web.Response:
        return json_response(self._engine.networks.inspect(request.match_info["id"]))

    async def remove(self, request: web.Request) -> web.Response:
        """Only predefined networks exist, and these stay."""
        found = self._engine.networks.inspect(request.match_info["id"])
        raise ForbiddenError(f"{found.Name} is a pre-defined network and cannot be removed")

    async def prune(self, request: web.Request) -> web.Response:
        """Nothing to prune: ``docker system prune`` asks all the same."""
        filters_of(request, ("label", "label!", "until"))
        return json_response({"NetworksDeleted": None})

    async def refuse(self, request: web.Request) -> web.Response:
        raise NotServedError(NOT_SERVED)
