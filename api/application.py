"""The web application around the routes: version check, errors, headers, log.

Requests pass: ``VersionedRouter`` -> one middleware -> a handler.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from api import browsers
from api.errors import NotFoundError, error_response, is_expected, message_of, status_of
from api.requests import json_response
from api.router import VersionedRouter, unserved_routes
from api.versions import MAX_VERSION, check_version, version_of

log = structlog.get_logger(__name__)

JSON_BODY_BYTES_MAX = 8 * 1024 * 1024

_SERVER_NAME = web.AppKey("server_name", str)
_OUR_NAMES: web.AppKey[Collection[str]] = web.AppKey("our_names", Collection)


def build(routes: Iterable[web.AbstractRouteDef], *, server: str, our_names: Collection[str] = ()) -> web.Application:
    """An application that serves ``routes`` and refuses the rest of the Engine API by name.

    Args:
        routes: without version prefix.
        server: the ``Server`` header, such as ``swarmd/0.1.0 (linux)``.
        our_names: by which requests may come over TCP, besides loopback addresses (``browsers.names_of``).
    """
    with warnings.catch_warnings():
        # aiohttp deprecates the parameter, but has no other way to another router and keeps it in 3.x.
        warnings.simplefilter("ignore", DeprecationWarning)
        app = web.Application(router=VersionedRouter(), middlewares=[_outermost], client_max_size=JSON_BODY_BYTES_MAX)
    app.on_response_prepare.append(_add_headers)
    app[_SERVER_NAME] = server
    app[_OUR_NAMES] = our_names
    app.add_routes(routes)
    app.add_routes(unserved_routes())
    return app


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """The headers that dockerd puts on every answer (W02)."""
    headers = response.headers
    headers["Api-Version"] = str(MAX_VERSION)
    headers["Docker-Experimental"] = "false"
    headers["Ostype"] = "linux"
    headers["Server"] = request.app[_SERVER_NAME]


@web.middleware
async def _outermost(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Judge the caller and the version, turn exceptions into answers, write the access log (at debug)."""
    status = 0
    try:
        browsers.check(request, request.app[_OUR_NAMES])
        check_version(version_of(request))
        response = await handler(request)
        status = response.status
        return response
    except web.HTTPException as error:
        response = _http_error(error)
        status = response.status
        return response
    except Exception as error:
        if isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing()):
            raise  # the client is gone, nobody to answer
        status = status_of(error)
        if not is_expected(error):
            log.error("request.failed", method=request.method, path=request.path, exc_info=error)
        if request.writer.output_size > 0:
            # The head went out with a success: cut the connection, so that the client sees a broken stream.
            log.info("stream.broken", path=request.path, error=message_of(error))
            raise ConnectionResetError(message_of(error)) from error
        return error_response(error)
    finally:
        log.debug("request.served", method=request.method, path=request.path, status=status)


def _http_error(error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals in the Engine API's form; a wrong path and a wrong method read the same, as in dockerd."""
    if error.status in (404, 405):
        return error_response(NotFoundError("page not found"))
    return json_response({"message": error.text or error.reason}, status=error.status)
