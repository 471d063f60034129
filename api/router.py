"""Routes without the version prefix, and what exists in the Engine API but is not served."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from api.errors import NotServedError
from api.versions import set_version, split_version

UNSERVED: tuple[tuple[str, str, str], ...] = (
    ("POST", "/build", "building images is not served yet: build elsewhere and push to a registry, or `docker load`"),
    ("POST", "/build/cancel", "building images is not served yet"),
    ("POST", "/session", "BuildKit sessions are not served"),
    ("POST", "/grpc", "BuildKit over HTTP/2 is not served"),
    ("POST", "/commit", "making an image of a container is not served yet"),
    ("GET", "/containers/{id}/export", "exporting a container's file system is not served yet"),
    ("GET", "/containers/{id}/changes", "listing a container's changed files is not served yet"),
    ("GET", "/containers/{id}/attach/ws", "attaching over a WebSocket is not served: use /containers/{id}/attach"),
    ("GET", "/containers/{id}/archive", "copying files out of a container is not served yet"),
    ("PUT", "/containers/{id}/archive", "copying files into a container is not served yet"),
    ("GET", "/images/search", "searching a registry is not served"),
    ("GET", "/plugins/privileges", "managed plugins are not served"),
    ("POST", "/plugins/pull", "managed plugins are not served"),
    ("POST", "/plugins/create", "managed plugins are not served"),
    ("DELETE", "/plugins/{name:.+}", "managed plugins are not served"),
    ("POST", "/plugins/{name:.+}/{action:enable|disable|push|upgrade|set}", "managed plugins are not served"),
)
"""Method, path and the one sentence a client gets with 501. A route that gets served moves out of this table."""


class VersionedRouter(web.UrlDispatcher):
    """Strips ``/v1.NN`` before it looks for a route.

    A variable first segment in every route would make the router try them all in turn (measured: half the requests a
    second at 110 routes).
    """

    async def resolve(self, request: web.Request) -> web.UrlMappingMatchInfo:
        """The route of a request; its version is remembered, not judged: what is raised here no middleware sees."""
        version, path = split_version(request.rel_url.raw_path)
        if version is None:
            return await super().resolve(request)
        set_version(request, version)
        return await super().resolve(request.clone(rel_url=request.rel_url.with_path(path, encoded=True)))


def unserved_routes() -> list[web.RouteDef]:
    """A route for each row of ``UNSERVED``; to be added after the served ones."""
    return [web.route(method, path, _refuse(text)) for method, path, text in UNSERVED]


def _refuse(text: str) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise NotServedError(text)

    return handler
