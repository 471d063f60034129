"""/auth: whether a registry accepts the credentials of ``docker login``."""

from __future__ import annotations

from aiohttp import web

from api.engine_routes.context import EngineContext
from api.engine_routes.images import registry_auth
from api.errors import BadRequestError
from api.requests import json_body, json_response


class AuthRoutes:
    """One handler."""

    def __init__(self, context: EngineContext) -> None:
        self._images = context.engine.images

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/auth", self.auth)]

    async def auth(self, request: web.Request) -> web.Response:
        auth = registry_auth(await json_body(request))
        if auth is None:
            raise BadRequestError("no credentials are given")
        await self._images.login(auth)
        return json_response({"Status": "Login Succeeded", "IdentityToken": auth.identity_token})
