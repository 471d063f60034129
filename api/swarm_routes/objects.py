"""The routes of kinds that are served by their declaration: /secrets and /configs (features A10.14, A10.16).

What is not to be shown, such as a secret's data, never comes here: managers do not send it.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web
from google.protobuf.message import Message

from api.requests import json_response, no_content
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
from proto import control_pb2
from proto.objects_pb2 import Config, Secret
from proto.specs_pb2 import ConfigSpec, SecretSpec


def routes(context: SwarmContext) -> list[web.RouteDef]:
    return [
        *ObjectRoutes(context, "secret", Secret, SecretSpec).routes(),
        *ObjectRoutes(context, "config", Config, ConfigSpec).routes(),
    ]


class ObjectRoutes:
    """The routes of one kind. The RPCs and their fields are called alike, but for the kind's name."""

    def __init__(self, context: SwarmContext, word: str, message: type[Message], spec: type[Message]) -> None:
        self._context, self._word, self._spec = context, word, spec
        self._objects = PartCache(whole(message))
        kind = word.capitalize()
        rpcs = {
            "list": f"List{kind}s",
            "create": f"Create{kind}",
            "get": f"Get{kind}",
            "update": f"Update{kind}",
            "remove": f"Remove{kind}",
        }
        self._rpcs = {verb: (rpc, getattr(control_pb2, f"{rpc}Request")) for verb, rpc in rpcs.items()}

    def routes(self) -> list[web.RouteDef]:
        path = f"/{self._word}s"
        return [
            web.get(path, self.list, allow_head=False),
            web.post(f"{path}/create", self.create),
            web.get(f"{path}/{{id}}", self.inspect, allow_head=False),
            web.post(f"{path}/{{id}}/update", self.update),
            web.delete(f"{path}/{{id}}", self.remove),
        ]

    async def list(self, request: web.Request) -> web.StreamResponse:
        response = await self._call("list", filters=read_filters(request))
        return await send_list(request, getattr(response, f"{self._word}s"), self._objects.texts)

    async def create(self, request: web.Request) -> web.Response:
        response = await self._call("create", spec=await read_message(request, self._spec))
        return json_response({"ID": getattr(response, self._word).id}, status=201)

    async def inspect(self, request: web.Request) -> web.Response:
        response = await self._call("get", ref=request.match_info["id"])
        return message_response(getattr(response, self._word))

    async def update(self, request: web.Request) -> web.Response:
        spec = await read_message(request, self._spec)
        version = read_version(request, self._word)
        await self._call("update", ref=request.match_info["id"], version=version, spec=spec)
        return empty_response()

    async def remove(self, request: web.Request) -> web.Response:
        await self._call("remove", ref=request.match_info["id"])
        return no_content()

    async def _call(self, verb: str, **fields: object) -> Any:
        """One call of the control API; returns its response."""
        rpc, request_type = self._rpcs[verb]
        control = await self._context.control()
        return await getattr(control, rpc)(request_type(**fields), timeout=TIMEOUT_S)
