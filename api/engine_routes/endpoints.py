"""/networks/{id}/connect and /disconnect: a container's endpoints.

Source: moby ``daemon/server/router/network/network_routes.go`` (API 1.51).
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from api.engine_routes.context import EngineContext
from api.lenient import convert
from api.requests import json_body
from runtime.errors import ContainerNotFoundError, NotFoundError
from runtime.types import EndpointSettings


class ConnectRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /networks/{id}/connect``."""

    Container: str = ""
    EndpointConfig: EndpointSettings | None = None


class DisconnectRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /networks/{id}/disconnect``."""

    Container: str = ""
    Force: bool = False


class EndpointRoutes:
    """Handlers of what puts containers on networks and takes them off."""

    def __init__(self, context: EngineContext) -> None:
        self._engine, self._operations = context.engine, context.operations

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/networks/{id}/connect", self.connect),
            web.post("/networks/{id}/disconnect", self.disconnect),
        ]

    async def connect(self, request: web.Request) -> web.Response:
        body = convert(await json_body(request), ConnectRequest)
        change = self._engine.connect(request.match_info["id"], body.Container, body.EndpointConfig)
        await self._operations.run_to_end(change, name="network.connect")
        return web.Response()

    async def disconnect(self, request: web.Request) -> web.Response:
        """``Force`` of a container that is gone means the endpoint that it left; here none is left by one."""
        body, network = convert(await json_body(request), DisconnectRequest), request.match_info["id"]
        change = self._engine.disconnect(network, body.Container, force=body.Force)
        try:
            await self._operations.run_to_end(change, name="network.disconnect")
        except ContainerNotFoundError as error:
            if not body.Force:
                raise
            self._engine.networks.find(network)
            raise NotFoundError(f"endpoint {body.Container} not found") from error
        return web.Response()
