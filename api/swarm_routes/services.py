"""/services (features A5.01 to A5.09, A2.11, W11)."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence

import msgspec
from aiohttp import web

from api.errors import BadRequestError, ForbiddenError
from api.json_codec import decode_json, encode_json
from api.requests import auth_header, json_response, read_body
from api.swarm_routes.context import (
    TIMEOUT_S,
    NetworkName,
    SwarmContext,
    empty_response,
    message_response,
    read_bool,
    read_filters,
    read_message,
    read_version,
)
from api.swarm_routes.networks import SCOPE
from api.swarm_routes.parts import Part, PartCache, send_list
from proto.control_pb2 import (
    CreateServiceRequest,
    GetServiceRequest,
    ListServicesRequest,
    RemoveServiceRequest,
    ServiceStatus,
    UpdateServiceRequest,
)
from proto.objects_pb2 import Service
from proto.specs_pb2 import ServiceSpec
from runtime.engine import Engine
from runtime.errors import EngineError
from runtime.images import bound_to_image

_AUTH_HEADER = "X-Registry-Auth"

_AUTH_FROM = {
    "": UpdateServiceRequest.REGISTRY_AUTH_FROM_SPEC,
    "spec": UpdateServiceRequest.REGISTRY_AUTH_FROM_SPEC,
    "previous-spec": UpdateServiceRequest.REGISTRY_AUTH_FROM_PREVIOUS_SPEC,
}


def routes(context: SwarmContext) -> list[web.RouteDef]:
    handlers = _ServiceRoutes(context)
    return [
        web.get("/services", handlers.list, allow_head=False),
        web.post("/services/create", handlers.create),
        web.get("/services/{id}", handlers.inspect, allow_head=False),
        web.post("/services/{id}/update", handlers.update),
        web.delete("/services/{id}", handlers.remove),
    ]


class _ServiceRoutes:
    def __init__(self, context: SwarmContext) -> None:
        self._context = context
        self._services = PartCache(service_part)

    async def list(self, request: web.Request) -> web.StreamResponse:
        status = read_bool(request, "status")
        response = await (await self._context.control()).ListServices(
            ListServicesRequest(filters=read_filters(request), status=status), timeout=TIMEOUT_S
        )

        def texts(services: Sequence[bytes]) -> Iterator[bytes]:
            parts = self._services.parts(services)
            if not status:
                return (text + b"}" for _, text, _ in parts)
            return (text + _status_text(response.statuses[service_id]) for _, text, service_id in parts)

        return await send_list(request, response.services, texts)

    async def create(self, request: web.Request) -> web.Response:
        spec = self._with_network_names(await read_message(request, ServiceSpec))
        response = await (await self._context.control()).CreateService(
            CreateServiceRequest(spec=spec, registry_auth=_registry_auth(request, spec)), timeout=TIMEOUT_S
        )
        answer: dict[str, object] = {"ID": response.service.id}
        if response.warnings:
            answer["Warnings"] = list(response.warnings)
        return json_response(answer, status=201)

    async def inspect(self, request: web.Request) -> web.Response:
        defaults = read_bool(request, "insertDefaults")
        response = await (await self._context.control()).GetService(
            GetServiceRequest(ref=request.match_info["id"], insert_defaults=defaults), timeout=TIMEOUT_S
        )
        return message_response(response.service)

    async def update(self, request: web.Request) -> web.Response:
        rollback = _rollback(request)
        body = await read_body(request)
        spec = ServiceSpec() if rollback and not body else decode_json(ServiceSpec, body)
        auth_from = request.query.get("registryAuthFrom", "")
        if auth_from not in _AUTH_FROM:
            raise BadRequestError("unsupported registryAuthFrom value")
        response = await (await self._context.control()).UpdateService(
            UpdateServiceRequest(
                ref=request.match_info["id"],
                version=read_version(request, "service"),
                spec=self._with_network_names(spec),
                registry_auth=_registry_auth(request, spec),
                registry_auth_from=_AUTH_FROM[auth_from],
                rollback=rollback,
            ),
            timeout=TIMEOUT_S,
        )
        return json_response({"Warnings": list(response.warnings) or None})

    async def remove(self, request: web.Request) -> web.Response:
        control = await self._context.control()
        await control.RemoveService(RemoveServiceRequest(ref=request.match_info["id"]), timeout=TIMEOUT_S)
        return empty_response()

    def _with_network_names(self, spec: ServiceSpec) -> ServiceSpec:
        """Networks by name, in place: bridge, host and none are of every host, under an ID of its own."""
        if self._context.network_name is not None:
            for attachment in (*spec.task_template.networks, *spec.networks):
                attachment.target = self._context.network_name(attachment.target) or attachment.target
        return spec


def service_part(data: bytes) -> Part:
    """A service without the brace at its end, before which its status may come."""
    service = Service.FromString(data)
    return Part(data, encode_json(service)[:-1], service.id)


def _status_text(status: ServiceStatus) -> bytes:
    return b',"ServiceStatus":' + encode_json(status) + b"}"


def engine_network_name(engine: Engine) -> NetworkName:
    """Names the networks that every host has; those of the cluster are the managers' to find, and others are refused."""

    def name(ref: str) -> str | None:
        try:
            found = engine.networks.inspect(ref)
        except EngineError:
            return None
        if found.Scope == SCOPE or ref not in (
            found.Id,
            found.Name,
        ):  # a part of an ID may mean another of the cluster's
            return None
        if not engine.networks.is_predefined(found.Name):
            raise ForbiddenError(
                f"The network {found.Name} cannot be used with services. Only networks scoped to the swarm can be used, "
                "such as those created with the overlay driver."
            )
        return found.Name

    return name


def _registry_auth(request: web.Request, spec: ServiceSpec) -> str:
    """The credentials in the client's encoding, "" when there are none in it; they say which registry they are for.

    They stay with the service when its image changes, and must not go to the next one's registry then. Raises:
    BadRequestError.
    """
    fields = auth_header(request, _AUTH_HEADER)
    if not any(value for name, value in fields.items() if name.lower() != "serveraddress"):
        return ""
    bound = bound_to_image(fields, spec.task_template.container_spec.image)
    return base64.urlsafe_b64encode(msgspec.json.encode(bound)).decode()


def _rollback(request: web.Request) -> bool:
    text = request.query.get("rollback", "")
    if text not in ("", "none", "previous"):
        raise BadRequestError(f"unrecognized rollback option {text}")
    return text == "previous"
