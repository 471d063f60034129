"""/containers: create, list, inspect, life cycle.

Source: moby ``daemon/server/router/container/container_routes.go`` (API 1.51).
"""

from __future__ import annotations

import asyncio
import re
from typing import get_args

import msgspec
from aiohttp import web

from api.engine_routes.context import EngineContext
from api.errors import BadRequestError, message_of
from api.lenient import convert
from api.requests import filters_of, flag, integer, json_body, json_response, no_content
from api.streams import json_line, start_stream
from api.versions import APIVersion, version_of
from base.tasks import cancel_and_wait
from runtime.engine import WaitCondition
from runtime.errors import InvalidNameError
from runtime.errors import NotFoundError as EngineNotFoundError
from runtime.images import ImageNotFoundError
from runtime.types import (
    ContainerConfig,
    ContainerJSON,
    ContainerSummary,
    EndpointSettings,
    HostConfig,
    NetworkingConfig,
)

NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")
WAIT_CONDITIONS: tuple[WaitCondition, ...] = get_args(WaitCondition)
STRING_OR_LIST = ("Cmd", "Entrypoint")
_SEVERAL_NETWORKS_SINCE, _GATEWAY_PRIORITY_SINCE = APIVersion(1, 44), APIVersion(1, 48)
LEGACY_ENDPOINT_FIELDS = (
    "EndpointID",
    "Gateway",
    "GlobalIPv6Address",
    "GlobalIPv6PrefixLen",
    "IPAddress",
    "IPPrefixLen",
    "IPv6Gateway",
    "MacAddress",
)


class CreateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What surrounds the ContainerConfig in the body of ``POST /containers/create``."""

    HostConfig: HostConfig = HostConfig()
    NetworkingConfig: NetworkingConfig = NetworkingConfig()


class LegacyNetworkSettings(msgspec.Struct, kw_only=True):
    """``NetworkSettings`` of inspect with the fields of the default network at the top, as clients <= 1.51 read it."""

    Bridge: str = ""
    SandboxID: str = ""
    SandboxKey: str = ""
    Ports: dict[str, object]
    HairpinMode: bool = False
    LinkLocalIPv6Address: str = ""
    LinkLocalIPv6PrefixLen: int = 0
    SecondaryIPAddresses: list[str] | None = None
    SecondaryIPv6Addresses: list[str] | None = None
    EndpointID: str = ""
    Gateway: str = ""
    GlobalIPv6Address: str = ""
    GlobalIPv6PrefixLen: int = 0
    IPAddress: str = ""
    IPPrefixLen: int = 0
    IPv6Gateway: str = ""
    MacAddress: str = ""
    Networks: dict[str, EndpointSettings]


class ContainerRoutes:
    """Handlers of everything about containers that is one question and one answer."""

    def __init__(self, context: EngineContext) -> None:
        self._engine, self._operations = context.engine, context.operations

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/containers/json", self.list),
            web.post("/containers/create", self.create),
            web.post("/containers/prune", self.prune),
            web.get("/containers/{id}/json", self.inspect),
            web.post("/containers/{id}/start", self.start),
            web.post("/containers/{id}/wait", self.wait),
            web.delete("/containers/{id:[^/]+(?:/[^/]+)?}", self.remove),
            web.post("/containers/{id}/stop", self.stop),
            web.post("/containers/{id}/kill", self.kill),
            web.post("/containers/{id}/restart", self.restart),
            web.post("/containers/{id}/rename", self.rename),
            web.post("/containers/{id}/update", self.update),
            web.post("/containers/{id}/pause", self.pause),
            web.post("/containers/{id}/unpause", self.unpause),
        ]

    async def list(self, request: web.Request) -> web.Response:
        filters = filters_of(request)
        limit = max(integer(request, "limit"), 0)
        found = self._engine.list(filters, all=flag(request, "all"), limit=limit)
        if flag(request, "size"):
            for summary in found:
                await self._fill_size(summary)
        return json_response(found)

    async def create(self, request: web.Request) -> web.Response:
        body = await json_body(request)
        if not body:
            raise BadRequestError("invalid JSON: got EOF while reading request body")
        name = request.query.get("name", "")
        if name and not NAME.fullmatch(name):
            raise InvalidNameError(name)
        for key in list(body):
            if key in STRING_OR_LIST and isinstance(body[key], str):
                body[key] = [body[key]]
        config = convert(body, ContainerConfig)
        around = convert(body, CreateRequest)
        networking = _as_of(version_of(request), around.NetworkingConfig)
        if platform := request.query.get("platform"):
            self._engine.images.check_platform(config.Image, platform)
        try:
            container_id, warnings = await self._operations.run_to_end(
                self._engine.create(config, around.HostConfig, networking, name.lstrip("/") or None),
                name="container.create",
            )
        except EngineNotFoundError as error:
            # A 404 here tells clients to pull the image; a missing network, container or volume must not.
            raise BadRequestError(str(error)) from error
        return json_response({"Id": container_id, "Warnings": warnings}, status=201)

    async def inspect(self, request: web.Request) -> web.Response:
        found = self._engine.inspect(request.match_info["id"])
        if flag(request, "size"):
            await self._fill_size(found)
        return json_response(_inspected(found))

    async def start(self, request: web.Request) -> web.Response:
        await self._operations.run_to_end(self._engine.start(request.match_info["id"]), name="container.start")
        return no_content()

    async def stop(self, request: web.Request) -> web.Response:
        change = self._engine.stop(request.match_info["id"], _grace(request), _signal(request))
        await self._operations.run_to_end(change, name="container.stop")
        return no_content()

    async def restart(self, request: web.Request) -> web.Response:
        change = self._engine.restart(request.match_info["id"], _grace(request), _signal(request))
        await self._operations.run_to_end(change, name="container.restart")
        return no_content()

    async def kill(self, request: web.Request) -> web.Response:
        change = self._engine.kill(request.match_info["id"], _signal(request) or "SIGKILL")
        await self._operations.run_to_end(change, name="container.kill")
        return no_content()

    async def rename(self, request: web.Request) -> web.Response:
        name = request.query.get("name", "")
        if name and not NAME.fullmatch(name):
            raise InvalidNameError(name)
        await self._operations.run_to_end(
            self._engine.rename(request.match_info["id"], name.lstrip("/")), name="container.rename"
        )
        return no_content()

    async def update(self, request: web.Request) -> web.Response:
        wanted = convert(await json_body(request), HostConfig)
        await self._operations.run_to_end(
            self._engine.update(request.match_info["id"], wanted), name="container.update"
        )
        return json_response({"Warnings": None})

    async def pause(self, request: web.Request) -> web.Response:
        await self._operations.run_to_end(self._engine.pause(request.match_info["id"]), name="container.pause")
        return no_content()

    async def unpause(self, request: web.Request) -> web.Response:
        await self._operations.run_to_end(self._engine.unpause(request.match_info["id"]), name="container.unpause")
        return no_content()

    async def remove(self, request: web.Request) -> web.Response:
        if flag(request, "link"):
            await self._operations.run_to_end(self._engine.unlink(request.match_info["id"]), name="container.unlink")
            return no_content()
        change = self._engine.remove(request.match_info["id"], force=flag(request, "force"), volumes=flag(request, "v"))
        await self._operations.run_to_end(change, name="container.remove")
        return no_content()

    async def wait(self, request: web.Request) -> web.StreamResponse:
        """The head goes out as soon as the wait is registered: ``docker run`` starts the container only then."""
        container = request.match_info["id"]
        condition = request.query.get("condition") or "not-running"
        chosen = next((known for known in WAIT_CONDITIONS if known == condition), None)
        if chosen is None:
            raise BadRequestError(f'invalid condition: "{condition}"')
        task = asyncio.get_running_loop().create_task(self._engine.wait(container, chosen), name="container.wait")
        try:
            await asyncio.sleep(0)  # let it look the container up and register
            if task.done() and task.exception() is not None:
                task.result()
            response = await start_stream(request, "application/json")
            try:
                result = await task
                answer: dict[str, object] = {"StatusCode": result.StatusCode}
                if result.Error:
                    answer["Error"] = {"Message": result.Error}
            except Exception as error:
                # The head is out with 200, so the reason can only travel in the answer itself.
                answer = {"StatusCode": -1, "Error": {"Message": message_of(error)}}
            await response.write(json_line(answer))
            await response.write_eof()
            return response
        finally:
            await cancel_and_wait(task)

    async def prune(self, request: web.Request) -> web.Response:
        filters = filters_of(request, ("label", "label!", "until"))
        report = await self._operations.run_to_end(self._engine.prune(filters), name="container.prune")
        return json_response(
            {"ContainersDeleted": report.ContainersDeleted or None, "SpaceReclaimed": report.SpaceReclaimed}
        )

    async def _fill_size(self, found: ContainerSummary | ContainerJSON) -> None:
        found.SizeRw = await self._engine.images.rootfs_size(found.Id)
        image = found.Image if isinstance(found, ContainerJSON) else found.ImageID
        try:
            below = self._engine.images.get(image).size_bytes
        except ImageNotFoundError:
            below = 0  # a force-removed image: its layers are the container's alone and not known by name any more
        found.SizeRootFs = found.SizeRw + below


def _as_of(version: APIVersion, networking: NetworkingConfig) -> NetworkingConfig:
    """As a version of the API means it. Raises BadRequestError."""
    endpoints = networking.EndpointsConfig or {}
    if version < _SEVERAL_NETWORKS_SINCE and len(endpoints) > 1:
        names = ", ".join(sorted(endpoints))
        raise BadRequestError(f"Container cannot be created with multiple network endpoints: {names}")
    for settings in endpoints.values():
        if settings is not None and version < _GATEWAY_PRIORITY_SINCE:
            settings.GwPriority = 0
    return networking


def _grace(request: web.Request) -> float | None:
    """``t`` in seconds; None for the container's own."""
    return float(integer(request, "t")) if request.query.get("t") else None


def _signal(request: web.Request) -> str | None:
    return request.query.get("signal") or None


def _inspected(found: ContainerJSON) -> dict[str, object]:
    """The answer of inspect with the legacy network fields (W16)."""
    answer = {name: getattr(found, name) for name in found.__struct_fields__}
    for name in ("SizeRw", "SizeRootFs"):
        if answer[name] is None:
            del answer[name]
    settings = found.NetworkSettings
    legacy = LegacyNetworkSettings(
        SandboxID=settings.SandboxID,
        SandboxKey=settings.SandboxKey,
        Ports=dict(settings.Ports),
        Networks=settings.Networks,
    )
    if (default := settings.Networks.get("bridge")) is not None:
        for name in LEGACY_ENDPOINT_FIELDS:
            setattr(legacy, name, getattr(default, name))
    answer["NetworkSettings"] = legacy
    return answer
