"""/nodes (features A4.01 to A4.06)."""

from __future__ import annotations

from aiohttp import web

from api.requests import flag
from api.swarm_routes.context import (
    TIMEOUT_S,
    SwarmContext,
    empty_response,
    message_response,
    read_filters,
    read_message,
    read_version,
)
from api.swarm_routes.parts import PartCache, send_list, whole
from proto.control_pb2 import GetNodeRequest, ListNodesRequest, RemoveNodeRequest, UpdateNodeRequest
from proto.objects_pb2 import Node
from proto.specs_pb2 import NodeSpec


def routes(context: SwarmContext) -> list[web.RouteDef]:
    handlers = _NodeRoutes(context)
    return [
        web.get("/nodes", handlers.list, allow_head=False),
        web.get("/nodes/{id}", handlers.inspect, allow_head=False),
        web.post("/nodes/{id}/update", handlers.update),
        web.delete("/nodes/{id}", handlers.remove),
    ]


class _NodeRoutes:
    def __init__(self, context: SwarmContext) -> None:
        self._context = context
        self._nodes = PartCache(whole(Node))

    async def list(self, request: web.Request) -> web.StreamResponse:
        control = await self._context.control()
        response = await control.ListNodes(ListNodesRequest(filters=read_filters(request)), timeout=TIMEOUT_S)
        return await send_list(request, response.nodes, self._nodes.texts)

    async def inspect(self, request: web.Request) -> web.Response:
        control = await self._context.control()
        response = await control.GetNode(GetNodeRequest(ref=request.match_info["id"]), timeout=TIMEOUT_S)
        return message_response(response.node)

    async def update(self, request: web.Request) -> web.Response:
        spec = await read_message(request, NodeSpec)
        version = read_version(request, "node")
        await (await self._context.control()).UpdateNode(
            UpdateNodeRequest(ref=request.match_info["id"], version=version, spec=spec), timeout=TIMEOUT_S
        )
        return empty_response()

    async def remove(self, request: web.Request) -> web.Response:
        control = await self._context.control()
        await control.RemoveNode(
            RemoveNodeRequest(ref=request.match_info["id"], force=flag(request, "force")), timeout=TIMEOUT_S
        )
        return empty_response()
