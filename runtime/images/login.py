"""Whether a registry accepts the credentials of ``docker login``. Nothing is stored: the client keeps them.

Source: moby ``registry/auth.go``.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.images.credentials import registry_domain
from runtime.images.endpoints import endpoints_of
from runtime.images.errors import LoginRefusedError, RegistryUnavailableError, UnauthorizedError
from runtime.images.transport import StatusError, TransientError, Transport
from runtime.images.types import RegistryAuth


async def login(transport: Transport, auth: RegistryAuth, *, insecure: Sequence[str]) -> None:
    """Ask the registry's own endpoints; mirrors never see credentials.

    Raises:
        LoginRefusedError: it does not accept them.
        RegistryUnavailableError: no endpoint of it could be asked.
    """
    domain = registry_domain(auth.server_address)
    failure = f"{domain} has no endpoint"
    for endpoint in endpoints_of(domain, insecure=insecure, mirrors=()):
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
    raise RegistryUnavailableError(failure)


def _reason(error: StatusError | UnauthorizedError) -> str:
    return (error.message if isinstance(error, StatusError) else str(error)) or "incorrect username or password"
