"""/networks of this host.

Source: moby ``api/server/router/network/network_routes.go``.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from api.engine_routes.context import EngineContext
from api.errors import NotServedError
from api.lenient import convert
from api.requests import filters_of, flag, json_body, json_response, no_content
from api.versions import APIVersion, version_of
from runtime.errors import NetworkNotFoundError
from runtime.network_types import NetworkCreateRequest

NOT_SERVED = "networks of more than one host are not served yet"
_IPV4_CHOICE_SINCE = APIVersion(1, 48)


class NetworkRoutes:
    """Handlers of networks."""

    def __init__(self, context: EngineContext) -> None:
        self._engine, self._operations = context.engine, context.operations

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/networks", self.list),
            web.get("/networks/", self.list),
            web.post("/networks/create", self.create),
            web.post("/networks/prune", self.prune),
            web.get("/networks/{id}", self.inspect),
            web.delete("/networks/{id}", self.remove),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """Without containers, as dockerd does since 1.28: inspect shows them."""
        found = self._engine.networks.list(filters_of(request))
        return json_response([msgspec.structs.replace(network, Containers={}) for network in found])

    async def inspect(self, request: web.Request) -> web.Response:
        flag(request, "verbose")  # has something to show of services alone, and these are on networks of the cluster
        found = self._engine.networks.inspect(request.match_info["id"])
        if request.query.get("scope", found.Scope) not in ("", found.Scope):
            raise NetworkNotFoundError(request.match_info["id"])
        return json_response(found)

    async def create(self, request: web.Request) -> web.Response:
        body = convert(await json_body(request), NetworkCreateRequest)
        if version_of(request) < _IPV4_CHOICE_SINCE:
            body = msgspec.structs.replace(body, EnableIPv4=None)
        if body.Driver == "overlay" or body.Scope == "swarm":
            raise NotServedError(NOT_SERVED)
        made = await self._operations.run_to_end(self._engine.networks.create(body), name="network.create")
        return json_response(made, status=201)

    async def remove(self, request: web.Request) -> web.Response:
        change = self._engine.networks.remove(request.match_info["id"])
        await self._operations.run_to_end(change, name="network.remove")
        return no_content()

    async def prune(self, request: web.Request) -> web.Response:
        change = self._engine.networks.prune(filters_of(request))
        return json_response(await self._operations.run_to_end(change, name="network.prune"))
