"""/volumes of this host.

Source: moby ``daemon/server/router/volume/volume_routes.go``; cluster volumes (CSI) are not served.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from api.engine_routes.context import EngineContext
from api.errors import NotServedError
from api.lenient import convert
from api.requests import filters_of, flag, json_body, json_response, no_content


class VolumeCreateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /volumes/create``."""

    Name: str = ""
    Driver: str = ""
    DriverOpts: dict[str, str] | None = None
    Labels: dict[str, str] | None = None
    ClusterVolumeSpec: dict[str, object] | None = None


class VolumeRoutes:
    """Handlers of volumes."""

    def __init__(self, context: EngineContext) -> None:
        self._engine, self._operations = context.engine, context.operations

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/volumes", self.list),
            web.post("/volumes/create", self.create),
            web.post("/volumes/prune", self.prune),
            web.get("/volumes/{name}", self.inspect),
            web.delete("/volumes/{name}", self.remove),
        ]

    async def list(self, request: web.Request) -> web.Response:
        return json_response({"Volumes": self._engine.volumes.list(filters_of(request)), "Warnings": None})

    async def inspect(self, request: web.Request) -> web.Response:
        return json_response(self._engine.volumes.get(request.match_info["name"]))

    async def create(self, request: web.Request) -> web.Response:
        body = convert(await json_body(request), VolumeCreateRequest)
        if body.ClusterVolumeSpec is not None:
            raise NotServedError("cluster volumes (CSI) are not served")
        change = self._engine.volumes.create(
            body.Name, driver=body.Driver or "local", options=body.DriverOpts, labels=body.Labels
        )
        return json_response(await self._operations.run_to_end(change, name="volume.create"), status=201)

    async def remove(self, request: web.Request) -> web.Response:
        change = self._engine.volumes.remove(request.match_info["name"], force=flag(request, "force"))
        await self._operations.run_to_end(change, name="volume.remove")
        return no_content()

    async def prune(self, request: web.Request) -> web.Response:
        report = await self._operations.run_to_end(self._engine.volumes.prune(filters_of(request)), name="volume.prune")
        return json_response(report)
