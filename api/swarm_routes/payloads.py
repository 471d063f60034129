"""/secrets and /configs (features A10.14, A10.16): the same routes twice, but that a secret's data never comes back."""

from __future__ import annotations

from aiohttp import web

from api.requests import json_response, no_content
from api.swarm_routes.context import (
    TIMEOUT_S,
    SwarmContext,
    empty_response,
    list_response,
    message_response,
    read_filters,
    read_message,
    read_version,
)
from proto.control_pb2 import (
    CreateConfigRequest,
    CreateSecretRequest,
    GetConfigRequest,
    GetSecretRequest,
    ListConfigsRequest,
    ListSecretsRequest,
    RemoveConfigRequest,
    RemoveSecretRequest,
    UpdateConfigSpecRequest,
    UpdateSecretRequest,
)
from proto.specs_pb2 import ConfigSpec, SecretSpec


def routes(context: SwarmContext) -> list[web.RouteDef]:
    secrets, configs = _SecretRoutes(context), _ConfigRoutes(context)
    return [
        web.get("/secrets", secrets.list, allow_head=False),
        web.post("/secrets/create", secrets.create),
        web.get("/secrets/{id}", secrets.inspect, allow_head=False),
        web.post("/secrets/{id}/update", secrets.update),
        web.delete("/secrets/{id}", secrets.remove),
        web.get("/configs", configs.list, allow_head=False),
        web.post("/configs/create", configs.create),
        web.get("/configs/{id}", configs.inspect, allow_head=False),
        web.post("/configs/{id}/update", configs.update),
        web.delete("/configs/{id}", configs.remove),
    ]


class _SecretRoutes:
    def __init__(self, context: SwarmContext) -> None:
        self._context = context

    async def list(self, request: web.Request) -> web.Response:
        control = self._context.control()
        response = await control.ListSecrets(ListSecretsRequest(filters=read_filters(request)), timeout=TIMEOUT_S)
        return list_response(response.secrets)

    async def create(self, request: web.Request) -> web.Response:
        spec = await read_message(request, SecretSpec)
        response = await self._context.control().CreateSecret(CreateSecretRequest(spec=spec), timeout=TIMEOUT_S)
        return json_response({"ID": response.secret.id}, status=201)

    async def inspect(self, request: web.Request) -> web.Response:
        control = self._context.control()
        response = await control.GetSecret(GetSecretRequest(ref=request.match_info["id"]), timeout=TIMEOUT_S)
        return message_response(response.secret)

    async def update(self, request: web.Request) -> web.Response:
        spec = await read_message(request, SecretSpec)
        version = read_version(request, "secret")
        await self._context.control().UpdateSecret(
            UpdateSecretRequest(ref=request.match_info["id"], version=version, spec=spec), timeout=TIMEOUT_S
        )
        return empty_response()

    async def remove(self, request: web.Request) -> web.Response:
        control = self._context.control()
        await control.RemoveSecret(RemoveSecretRequest(ref=request.match_info["id"]), timeout=TIMEOUT_S)
        return no_content()


class _ConfigRoutes:
    def __init__(self, context: SwarmContext) -> None:
        self._context = context

    async def list(self, request: web.Request) -> web.Response:
        control = self._context.control()
        response = await control.ListConfigs(ListConfigsRequest(filters=read_filters(request)), timeout=TIMEOUT_S)
        return list_response(response.configs)

    async def create(self, request: web.Request) -> web.Response:
        spec = await read_message(request, ConfigSpec)
        response = await self._context.control().CreateConfig(CreateConfigRequest(spec=spec), timeout=TIMEOUT_S)
        return json_response({"ID": response.config.id}, status=201)

    async def inspect(self, request: web.Request) -> web.Response:
        control = self._context.control()
        response = await control.GetConfig(GetConfigRequest(ref=request.match_info["id"]), timeout=TIMEOUT_S)
        return message_response(response.config)

    async def update(self, request: web.Request) -> web.Response:
        spec = await read_message(request, ConfigSpec)
        version = read_version(request, "config")
        await self._context.control().UpdateConfigSpec(
            UpdateConfigSpecRequest(ref=request.match_info["id"], version=version, spec=spec), timeout=TIMEOUT_S
        )
        return empty_response()

    async def remove(self, request: web.Request) -> web.Response:
        control = self._context.control()
        await control.RemoveConfig(RemoveConfigRequest(ref=request.match_info["id"]), timeout=TIMEOUT_S)
        return no_content()
