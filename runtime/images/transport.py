"""HTTP to registries: authorisation, bounded retries, and errors in dockerd's words.

Sources: distribution ``docs/spec/api.md`` and ``docs/spec/auth``; moby ``distribution/errors.go`` for the texts.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any  # Any: a body in whatever form aiohttp takes one
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]  # not in typeshed

import aiohttp
import msgspec
import structlog

from base.backoff import Backoff
from base.json_text import read_json
from runtime.images.challenge import Challenge, choose_challenge
from runtime.images.credentials import is_for
from runtime.images.endpoints import Endpoint
from runtime.images.errors import RegistryError, RegistryUnavailableError, UnauthorizedError
from runtime.images.types import RegistryAuth

log = structlog.get_logger(__name__)

USER_AGENT = "swarmd"
CLIENT_ID = "swarmd"
CONNECT_TIMEOUT_S = 15.0
IDLE_TIMEOUT_S = 60.0
ATTEMPTS_MAX = 5
BACKOFF_S, BACKOFF_S_MAX = 0.25, 8.0
WISH_S_MAX = 30.0
ANSWER_BYTES_MAX = 1 << 20
HEADERS_TIMEOUT_S = 120.0
PROGRESS_BYTES, PROGRESS_PERIOD_S = 16 << 10, 60.0
"""A body must bring so much in each such period: 273 bytes a second. A line of 5 KB/s brings 300 KB, enough for its three
parallel layers and fifteen more downloads beside them; a peer that drips a byte now and then, which never trips
``IDLE_TIMEOUT_S``, would hold a pull, and who waits for it, for ever."""
TOKEN_LIFETIME_S_MIN = 60.0
REDIRECTIONS_MAX = 10
_TOKEN_MARGIN_S = 10.0


class TransientError(Exception):
    """Worth another attempt; ``retry_after_s`` is the registry's own wish, 0 for none."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Progress:
    """Refuses a body that comes too slowly. Pure: the caller measures how long it waited, its own work left out."""

    def __init__(self) -> None:
        self._bytes, self._waited_s = 0, 0.0

    def received(self, size_bytes: int, waited_s: float) -> None:
        """So much came after so long. Raises TransientError."""
        self._bytes += size_bytes
        self._waited_s += waited_s
        if self._bytes >= PROGRESS_BYTES:
            self._bytes, self._waited_s = 0, 0.0
        elif self._waited_s >= PROGRESS_PERIOD_S:
            raise TransientError(f"the registry is too slow: {self._bytes} bytes within {self._waited_s:.0f} s")


class ConnectError(RegistryUnavailableError):
    """No connection, or no TLS on it."""


class StatusError(Exception):
    """The registry answered with an error status; ``code`` and ``message`` are of the first error in the body."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message

    def __str__(self) -> str:
        if not self.code:
            return f"received unexpected HTTP status: {self.status} {self.message}".rstrip()
        return f"{self.code.lower().replace('_', ' ')}: {self.message}"


class _ErrorItem(msgspec.Struct):
    code: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct):
    errors: list[_ErrorItem] | None = None


class _TokenBody(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


def new_backoff() -> Backoff:
    """For one request that may be repeated."""
    return Backoff(BACKOFF_S, BACKOFF_S_MAX, jitter=(0.5, 1.0))


def pause_s(backoff: Backoff, wish_s: float = 0.0) -> float:
    """How long to wait now; longer where the registry wishes so, up to ``WISH_S_MAX``."""
    return min(max(wish_s, backoff.next_s(random.random())), WISH_S_MAX)


class Transport:
    """One session to all registries. Tokens are kept in memory until they expire. Close it."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._tokens: dict[tuple[str, str, RegistryAuth | None], tuple[str, float]] = {}
        self._unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._unverified.check_hostname = False
        self._unverified.verify_mode = ssl.CERT_NONE
        self._verified: ssl.SSLContext | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def warm(self) -> None:
        """Have ready what the first request needs. A daemon whose service begins does not have the time then."""
        await self._get_verified()

    def _get_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=IDLE_TIMEOUT_S)
            headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
            # Neither the environment nor an earlier answer adds credentials: no netrc (whose default entry is for any
            # host), no cookies. Proxies are looked up for each request.
            self._session = aiohttp.ClientSession(
                timeout=timeout,
                headers=headers,
                auto_decompress=False,
                max_line_size=65536,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def _get_verified(self) -> ssl.SSLContext:
        """Trusts the host's certificates. Made by ``warm`` or when first needed: to read them takes 40 ms and more."""
        if self._verified is None:
            self._verified = await asyncio.to_thread(ssl.create_default_context)
        return self._verified

    @contextlib.asynccontextmanager
    async def request(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        *,
        scope: str,
        auth: RegistryAuth | None,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, authorised; the answer has a status below 400.

        Args:
            url: a path below the endpoint, or a whole URL that the registry gave.
            scope: what a token is asked for, such as ``repository:library/busybox:pull``.

        Raises:
            StatusError: the registry refused.
            TransientError, ConnectError: as their names say.
            UnauthorizedError: it wants credentials that are missing or wrong.
        """
        target = url if "://" in url else f"{endpoint.url}{url}"
        credentials = _credentials_for(endpoint, auth)
        key = (endpoint.url, scope, credentials)
        async with contextlib.AsyncExitStack() as stack:
            response = await stack.enter_async_context(
                self._send_authorized(endpoint, method, target, headers, data, key)
            )
            challenge = self._challenge(endpoint, response)
            if challenge is not None:
                await stack.aclose()
                await self._authorize(endpoint, challenge, scope, credentials, key)
                again = self._send_authorized(endpoint, method, target, headers, data, key)
                response = await stack.enter_async_context(again)
                challenge = self._challenge(endpoint, response)
                if challenge is not None and challenge.scheme == "bearer":  # a token, but not for this
                    raise StatusError(401, "DENIED", "requested access to the resource is denied")
            await _raise_for_status(response)
            yield response

    def _send_authorized(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        data: Any,
        key: tuple[str, str, RegistryAuth | None],
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        sent = dict(headers or {})
        # A location that the registry gave may be another host, which must not see the authorisation.
        if endpoint.is_origin_of(url) and (authorization := self._known(key)):
            sent["Authorization"] = authorization
        return self._send(endpoint, method, url, sent, data)

    @staticmethod
    def _challenge(endpoint: Endpoint, response: aiohttp.ClientResponse) -> Challenge | None:
        if response.status != 401 or not endpoint.is_origin_of(str(response.url)):
            return None
        return choose_challenge(response.headers.getall("WWW-Authenticate", []))

    @contextlib.asynccontextmanager
    async def _send(
        self, endpoint: Endpoint, method: str, url: str, headers: Mapping[str, str], data: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The raw exchange, its failures as ConnectError and TransientError."""
        try:
            check = await self._get_verified() if endpoint.verify else self._unverified
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(HEADERS_TIMEOUT_S if data is None else None):  # what is sent takes its time
                    response = await self._follow(stack, endpoint, method, url, dict(headers), data, check)
                yield response
        except aiohttp.ClientConnectorError as error:
            raise ConnectError(f'{method.capitalize()} "{endpoint.url}/v2/": {_dial_text(endpoint, error)}') from error
        except (TimeoutError, aiohttp.ServerTimeoutError) as error:
            reason = "net/http: request canceled (Client.Timeout exceeded while awaiting headers)"
            raise TransientError(f'{method.capitalize()} "{endpoint.url}/v2/": {reason}') from error
        except (aiohttp.InvalidURL, ValueError) as error:
            raise RegistryError(f"the registry {endpoint.host} sent a redirection that leads nowhere") from error
        except (aiohttp.ClientError, ConnectionError, ssl.SSLError) as error:
            raise TransientError(f'{method.capitalize()} "{url.partition("?")[0]}": {str(error) or "EOF"}') from error

    async def _follow(
        self,
        stack: contextlib.AsyncExitStack,
        endpoint: Endpoint,
        method: str,
        url: str,
        headers: dict[str, str],
        data: Any,
        check: ssl.SSLContext,
    ) -> aiohttp.ClientResponse:
        """The answer at the end of all redirections, which are followed for what sends nothing alone.

        The authorisation is for the server that was asked first; whoever it names next gets none, for good. Raises
        RegistryError.
        """
        for _ in range(REDIRECTIONS_MAX):
            proxy, proxy_headers = proxy_of(url)
            sending = self._get_session().request(
                method,
                url,
                headers=headers,
                data=data,
                ssl=check,
                allow_redirects=False,
                proxy=proxy,
                proxy_headers=proxy_headers,
            )
            response = await stack.enter_async_context(sending)
            if response.status not in (301, 302, 303, 307, 308):
                return response
            if method not in ("GET", "HEAD"):  # what is sent may be a token or an image, and is for the one asked
                raise RegistryError(f"the registry {endpoint.host} redirects a {method}, which is not followed")
            location = response.headers.get("Location", "")
            await stack.aclose()
            target = urljoin(url, location)
            if not location or not target.startswith(("http://", "https://")):
                raise aiohttp.InvalidURL(location)
            if not Endpoint(url).is_origin_of(target):
                headers.pop("Authorization", None)
            url = target
        raise RegistryError(f"the registry {endpoint.host} sent a redirection that leads nowhere")

    # -------------------------------------------------------- authorisation

    def _known(self, key: tuple[str, str, RegistryAuth | None]) -> str:
        auth = key[2]
        if auth is not None and auth.registry_token:
            return f"Bearer {auth.registry_token}"
        value, expires = self._tokens.get(key, ("", 0.0))
        return value if time.monotonic() < expires else ""

    async def _authorize(
        self,
        endpoint: Endpoint,
        challenge: Challenge,
        scope: str,
        auth: RegistryAuth | None,
        key: tuple[str, str, RegistryAuth | None],
    ) -> None:
        """Learn what ``_known`` shall answer for ``key`` from now on."""
        now = time.monotonic()
        self._tokens = {known: entry for known, entry in self._tokens.items() if entry[1] > now}
        if challenge.scheme == "basic":
            if auth is None or not auth.username:
                raise UnauthorizedError(f'Get "{endpoint.url}/v2/": no basic auth credentials')
            self._tokens[key] = (_basic(auth), now + 3600.0)
            return
        token = await self._fetch_token(endpoint, challenge, scope, auth)
        value = token.token or token.access_token or ""
        if not value or any(char in value for char in "\r\n"):
            raise RegistryError("authorization server did not include a token in the response")
        lifetime = max(token.expires_in or TOKEN_LIFETIME_S_MIN, TOKEN_LIFETIME_S_MIN)
        self._tokens[key] = (f"Bearer {value}", now + lifetime - _TOKEN_MARGIN_S)

    async def _fetch_token(
        self, endpoint: Endpoint, challenge: Challenge, scope: str, auth: RegistryAuth | None
    ) -> _TokenBody:
        realm = challenge.parameters.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RegistryError(f"the registry {endpoint.host} sent an invalid token realm")
        if parts.scheme == "http" and endpoint.verify:
            raise RegistryError(f"the registry {endpoint.host} wants a token from {realm}, which is not encrypted")
        fields = {"service": challenge.parameters.get("service", ""), "scope": scope}
        issuer = Endpoint(f"{parts.scheme}://{parts.netloc}", verify=endpoint.verify)
        if auth is not None and auth.identity_token:
            form = {
                **fields,
                "grant_type": "refresh_token",
                "refresh_token": auth.identity_token,
                "client_id": CLIENT_ID,
            }
            sending = self._send(issuer, "POST", realm, {}, form)
        else:
            headers = {"Authorization": _basic(auth)} if auth is not None and auth.username else {}
            if auth is not None and auth.username:
                fields["account"] = auth.username
            query = "&".join(f"{name}={quote(value, safe='')}" for name, value in fields.items() if value)
            sending = self._send(issuer, "GET", f"{realm}{'&' if parts.query else '?'}{query}", headers, None)
        async with sending as response:
            if response.status in (401, 403):
                raise UnauthorizedError(
                    f'Get "{realm}": unauthorized: {await _message(response) or "incorrect username or password"}'
                )
            await _raise_for_status(response)
            body = await read_limited(response, ANSWER_BYTES_MAX)
        try:
            return read_json(body, type=_TokenBody)
        except msgspec.DecodeError as error:
            raise RegistryError(f"unable to decode token response: {error}") from error


def _credentials_for(endpoint: Endpoint, auth: RegistryAuth | None) -> RegistryAuth | None:
    """What of the caller's credentials this endpoint may know."""
    if auth is None or endpoint.mirror:
        return None
    if not is_for(auth, endpoint.domain):
        log.warning("registry.credentials_withheld", registry=endpoint.domain, belong_to=auth.server_address[:200])
        return None
    return auth


def proxy_of(url: str) -> tuple[str | None, dict[str, str] | None]:
    """The proxy that the environment names for ``url`` (HTTPS_PROXY, HTTP_PROXY, NO_PROXY), and headers for it alone."""
    parts = urlsplit(url)
    proxies = getproxies_environment()
    proxy = proxies.get(parts.scheme)
    if not proxy or proxy_bypass_environment(parts.netloc, proxies):
        return None, None
    whole = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    login, _, host = whole.netloc.rpartition("@")
    if not login:
        return whole.geturl(), None
    encoded = base64.b64encode(unquote(login).encode()).decode()
    return whole._replace(netloc=host).geturl(), {"Proxy-Authorization": f"Basic {encoded}"}


async def pieces(response: aiohttp.ClientResponse, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body in pieces of at most ``chunk_bytes``. Raises TransientError when it is too slow (see ``Progress``)."""
    progress = Progress()
    while True:
        asked = time.monotonic()
        if not (chunk := await response.content.read(chunk_bytes)):
            return
        progress.received(len(chunk), time.monotonic() - asked)
        yield chunk


async def read_limited(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """The body. Raises RegistryError if it is longer than ``limit_bytes``, TransientError if it breaks off or drips."""
    parts, size = [], 0
    async with contextlib.aclosing(pieces(response, limit_bytes)) as chunks:
        async for chunk in chunks:
            size += len(chunk)
            if size > limit_bytes:
                raise RegistryError(f"the registry {response.url.host} sent an answer of more than {limit_bytes} bytes")
            parts.append(chunk)
    return b"".join(parts)


async def _message(response: aiohttp.ClientResponse) -> str:
    error = await _status_error(response)
    return error.message if error.code else ""


async def _status_error(response: aiohttp.ClientResponse) -> StatusError:
    try:
        body = read_json(await read_limited(response, ANSWER_BYTES_MAX), type=_ErrorBody)
        first = (body.errors or [_ErrorItem()])[0]
    except (msgspec.DecodeError, RegistryError):
        first = _ErrorItem()
    if first.code:
        return StatusError(response.status, first.code[:100], first.message[:1000])
    return StatusError(response.status, "", response.reason or "")


async def _raise_for_status(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    error = await _status_error(response)
    if response.status in (408, 429) or response.status >= 500:
        wish = response.headers.get("Retry-After", "")
        raise TransientError(str(error), float(wish) if wish.isdecimal() else 0.0)
    raise error


def _dial_text(endpoint: Endpoint, error: aiohttp.ClientConnectorError) -> str:
    """What Go's dialer says for the same failure."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"tls: failed to verify certificate: x509: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        reason = getattr(error.os_error, "reason", "") or ""
        if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"):
            return "http: server gave HTTP response to HTTPS client"
        return f"tls: {reason or error.os_error}"
    if isinstance(error, aiohttp.ClientConnectorDNSError) or isinstance(error.os_error, socket.gaierror):
        return f"dial tcp: lookup {error.host}: no such host"
    reason = (error.os_error.strerror or str(error.os_error)).lower()
    if isinstance(error.os_error, ConnectionRefusedError):
        reason = "connection refused"
    return f"dial tcp {error.host}:{error.port}: connect: {reason}"


def _basic(auth: RegistryAuth | None) -> str:
    if auth is None:
        return ""
    return "Basic " + base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()
