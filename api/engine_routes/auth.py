"""/auth: whether a registry accepts the credentials of ``docker login``. Nothing is stored: the client keeps them.

Source: moby ``registry/auth.go``.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import web

from api.engine_routes.context import EngineContext
from api.engine_routes.images import registry_auth
from api.errors import APIError, BadRequestError
from api.requests import json_body, json_response
from runtime.images import RegistryAuth, RegistryUnavailableError, UnauthorizedError
from runtime.images.endpoints import endpoints_of
from runtime.images.reference import DEFAULT_DOMAIN
from runtime.images.transport import StatusError, TransientError, Transport

HUB_NAMES = ("", "docker.io", "index.docker.io", "registry-1.docker.io")


class LoginRefusedError(APIError):
    """The registry does not accept the credentials (401)."""

    status = 401


class AuthRoutes:
    """One handler."""

    def __init__(self, context: EngineContext) -> None:
        self._insecure, self._mirrors = context.info.insecure_registries, context.info.mirrors

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/auth", self.auth)]

    async def auth(self, request: web.Request) -> web.Response:
        auth = registry_auth(await json_body(request))
        if auth is None:
            raise BadRequestError("no credentials are given")
        await self._check(registry_domain(auth.server_address), auth)
        return json_response({"Status": "Login Succeeded", "IdentityToken": auth.identity_token})

    async def _check(self, domain: str, auth: RegistryAuth) -> None:
        """Ask the registry's own endpoints; mirrors never see credentials.

        Raises: LoginRefusedError, RegistryUnavailableError.
        """
        transport = Transport()
        failure = f"{domain} has no endpoint"
        try:
            for endpoint in endpoints_of(domain, insecure=self._insecure, mirrors=()):
                try:
                    async with transport.request(endpoint, "GET", "/v2/", scope="", auth=auth):
                        return
                except (StatusError, UnauthorizedError) as error:
                    if isinstance(error, StatusError) and error.status not in (401, 403):
                        failure = f'Get "{endpoint.url}/v2/": {error}'
                        continue
                    raise LoginRefusedError(f'Get "{endpoint.url}/v2/": unauthorized: {_reason(error)}') from None
                except (TransientError, RegistryUnavailableError) as error:
                    failure = str(error)
        finally:
            await transport.close()
        raise RegistryUnavailableError(failure)


def registry_domain(address: str) -> str:
    """``host[:port]`` of what the client calls the registry: a URL, a host, or the old name of the default one."""
    host = urlsplit(address if "://" in address else f"//{address}").netloc
    return DEFAULT_DOMAIN if host in HUB_NAMES else host


def _reason(error: StatusError | UnauthorizedError) -> str:
    return (error.message if isinstance(error, StatusError) else str(error)) or "incorrect username or password"
