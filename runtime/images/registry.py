"""Pulling from v2 registries: manifests and blobs, through mirrors and with resuming.

Sources: OCI distribution-spec v1.1 "Pull"; moby ``distribution/pull_v2.go`` for the order of endpoints and the texts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

import aiohttp
import msgspec
import structlog

from runtime.images.content import digest_of
from runtime.images.endpoints import Endpoint, check_mirror, endpoints_of
from runtime.images.errors import (
    AccessDeniedError,
    ContentError,
    DigestMismatchError,
    ImagesError,
    ManifestUnknownError,
    RegistryError,
    RegistryUnavailableError,
    UnauthorizedError,
)
from runtime.images.login import login
from runtime.images.manifests import (
    ACCEPT,
    CONFIG_BYTES_MAX,
    INDEXES,
    MANIFEST_BYTES_MAX,
    choose_manifest,
    media_type_of,
    parse_config,
    parse_index,
    parse_manifest,
)
from runtime.images.platforms import normalize
from runtime.images.reference import Reference, check_digest
from runtime.images.transport import (
    ATTEMPTS_MAX,
    PROGRESS_BYTES,
    ConnectError,
    StatusError,
    TransientError,
    Transport,
    new_backoff,
    pause_s,
    pieces,
    read_limited,
)
from runtime.images.types import Descriptor, DistributionInspect, Platform, RegistryAuth

log = structlog.get_logger(__name__)
T = TypeVar("T")

MANIFEST_ATTEMPTS_MAX = 3
CHUNK_BYTES = 1 << 18
INDEX_DEPTH_MAX = 2


class FetchedManifest(msgspec.Struct, frozen=True):
    """A manifest or index as the registry has it; ``digest`` was computed from ``data``."""

    data: bytes
    media_type: str
    digest: str
    endpoint: Endpoint

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.data))


class RegistryClient:
    """Asks registries for what references name. Close it."""

    def __init__(self, *, insecure_registries: Sequence[str] = (), mirrors: Sequence[str] = ()) -> None:
        for mirror in mirrors:
            check_mirror(mirror)
        self._insecure, self._mirrors = tuple(insecure_registries), tuple(mirrors)
        self._transport = Transport()
        self._working: dict[str, Endpoint] = {}

    async def login(self, auth: RegistryAuth) -> None:
        """Whether the registry that ``auth`` names accepts it. Raises: LoginRefusedError, RegistryUnavailableError."""
        await login(self._transport, auth, insecure=self._insecure)

    async def warm(self) -> None:
        """Have ready what the first request needs."""
        await self._transport.warm()

    async def close(self) -> None:
        await self._transport.close()

    # ------------------------------------------------------------ manifests

    async def manifest(self, ref: Reference, auth: RegistryAuth | None = None) -> FetchedManifest:
        """The manifest or index behind ``ref`` (its digest if it has one, else its tag), from the first endpoint that has it.

        Raises:
            ManifestUnknownError, AccessDeniedError, UnauthorizedError, RegistryUnavailableError, RegistryError
            DigestMismatchError: the registry sent other bytes than the digest names.
        """
        endpoints = endpoints_of(ref.domain, insecure=self._insecure, mirrors=self._mirrors)
        known = self._working.get(ref.domain)
        if known in endpoints and not known.mirror:  # which of https and http works is settled
            endpoints = [endpoint for endpoint in endpoints if endpoint.mirror or endpoint == known]
        failure: ImagesError | None = None
        for endpoint in endpoints:
            try:
                found = await self.manifest_at(endpoint, ref, auth)
            except ImagesError as error:
                if endpoint is endpoints[-1]:
                    # The first insecure endpoint failed for want of TLS, the second tells what is really wrong.
                    raise
                log.debug("registry.endpoint_failed", endpoint=endpoint.url, reason=str(error))
                failure = error
                if not endpoint.mirror and not isinstance(error, ConnectError):
                    raise
            else:
                if not endpoint.mirror:
                    self._working[ref.domain] = endpoint
                return found
        raise failure or RegistryError(f"no endpoint for {ref.domain}")

    async def manifest_at(self, endpoint: Endpoint, ref: Reference, auth: RegistryAuth | None) -> FetchedManifest:
        """Like ``manifest``, from one endpoint."""
        headers = {"Accept": ", ".join(ACCEPT)}
        path = f"/v2/{ref.path}/manifests/{ref.digest or ref.tag}"

        async def attempt() -> tuple[bytes, str]:
            async with self._transport.request(
                endpoint, "GET", path, scope=_pull_scope(ref), auth=auth, headers=headers
            ) as response:
                return await read_limited(response, MANIFEST_BYTES_MAX), response.headers.get("Content-Type", "")

        try:
            data, declared = await with_retries(attempt, attempts_max=MANIFEST_ATTEMPTS_MAX)
        except StatusError as error:
            raise _translated(error, ref) from error
        digest = digest_of(data)
        if ref.digest and digest != ref.digest:
            raise DigestMismatchError(expected=ref.digest, actual=digest)
        return FetchedManifest(data, media_type_of(data, declared), digest, endpoint)

    async def image_manifest(
        self, ref: Reference, found: FetchedManifest, wanted: Platform, auth: RegistryAuth | None
    ) -> FetchedManifest:
        """Follow an index to the manifest of one image. Raises PlatformMismatchError and what ``manifest`` raises."""
        for _ in range(INDEX_DEPTH_MAX):
            if found.media_type not in INDEXES:
                return found
            entry = choose_manifest(parse_index(found.data), wanted)
            found = await self.manifest_at(found.endpoint, ref.with_digest(check_digest(entry.digest)), auth)
        if found.media_type in INDEXES:
            raise RegistryError(f"{ref.familiar}: indexes are nested too deeply")
        return found

    async def inspect(self, ref: Reference, auth: RegistryAuth | None = None) -> DistributionInspect:
        """Digest and platforms of ``ref`` without fetching any layer. Raises what ``manifest`` raises."""
        found = await self.manifest(ref, auth)
        if found.media_type in INDEXES:
            entries = parse_index(found.data).manifests
            platforms = [entry.platform for entry in entries if entry.platform and entry.platform.os != "unknown"]
            return DistributionInspect(found.descriptor, tuple(normalize(platform) for platform in platforms))
        config = parse_manifest(found.data).config
        chunks = [chunk async for chunk in self.blob(found.endpoint, ref, config, auth, limit_bytes=CONFIG_BYTES_MAX)]
        data = b"".join(chunks)
        if digest_of(data) != config.digest:
            raise DigestMismatchError(expected=config.digest, actual=digest_of(data))
        return DistributionInspect(found.descriptor, (parse_config(data).platform,))

    async def reach(self, ref: Reference, auth: RegistryAuth | None, scope: str) -> tuple[Endpoint, Transport]:
        """The registry itself (no mirror), authorised for ``scope``. Raises RegistryError and what is below it."""
        endpoints = endpoints_of(ref.domain, insecure=self._insecure, mirrors=())
        if (known := self._working.get(ref.domain)) in endpoints:
            endpoints = [known]
        for endpoint in endpoints:

            async def ping(endpoint: Endpoint = endpoint) -> None:
                async with self._transport.request(endpoint, "GET", "/v2/", scope=scope, auth=auth):
                    return

            try:
                await with_retries(ping, attempts_max=MANIFEST_ATTEMPTS_MAX)
            except ConnectError:
                if endpoint is endpoints[-1]:
                    raise
            except StatusError as error:
                raise UnauthorizedError(str(error)) from error
            else:
                self._working[ref.domain] = endpoint
                return endpoint, self._transport
        raise RegistryError(f"no endpoint for {ref.domain}")

    # ---------------------------------------------------------------- blobs

    async def blob(
        self,
        endpoint: Endpoint,
        ref: Reference,
        descriptor: Descriptor,
        auth: RegistryAuth | None,
        *,
        offset: int = 0,
        limit_bytes: int = 0,
    ) -> AsyncGenerator[bytes, None]:
        """Bytes of a blob from ``offset`` to its end, unverified; goes on where a broken connection left off.

        Raises:
            RegistryUnavailableError: several attempts in a row brought next to nothing (``PROGRESS_BYTES``).
            ContentError: there is more of it than ``descriptor`` announces.
            RegistryError: the registry does not have it, or it is larger than ``limit_bytes`` (if that is not 0).
        """
        if limit_bytes and descriptor.size > limit_bytes:
            raise RegistryError(f"{descriptor.digest} is larger than {limit_bytes} bytes")
        position, failures, reached = offset, 0, offset
        backoff = new_backoff()
        while position < descriptor.size:
            try:
                async with contextlib.aclosing(self._blob_once(endpoint, ref, descriptor, auth, position)) as chunks:
                    async for chunk in chunks:
                        position += len(chunk)
                        if position > descriptor.size:
                            raise ContentError(
                                f"content {descriptor.digest} is longer than the {descriptor.size} bytes announced"
                            )
                        if position - reached >= PROGRESS_BYTES:
                            failures, reached = 0, position
                            backoff.reset()
                        yield chunk
                if position < descriptor.size:
                    raise TransientError(f"blob {descriptor.digest}: unexpected EOF")
            except StatusError as error:
                raise _translated(error, ref) from error
            except (TransientError, ConnectError) as error:
                failures += 1
                if failures >= ATTEMPTS_MAX:
                    raise RegistryUnavailableError(str(error)) from error
                wish = error.retry_after_s if isinstance(error, TransientError) else 0.0
                await asyncio.sleep(pause_s(backoff, wish))

    async def _blob_once(
        self, endpoint: Endpoint, ref: Reference, descriptor: Descriptor, auth: RegistryAuth | None, position: int
    ) -> AsyncGenerator[bytes, None]:
        headers = {"Range": f"bytes={position}-"} if position else {}
        path = f"/v2/{ref.path}/blobs/{descriptor.digest}"
        async with self._transport.request(
            endpoint, "GET", path, scope=_pull_scope(ref), auth=auth, headers=headers
        ) as response:
            # Without range support the registry sends it all again: pass over what is there already.
            skip = position if response.status == 200 else 0
            async with contextlib.aclosing(pieces(response, CHUNK_BYTES)) as chunks:
                async for chunk in chunks:
                    if skip >= len(chunk):
                        skip -= len(chunk)
                        continue
                    yield chunk[skip:] if skip else chunk
                    skip = 0


async def with_retries(attempt: Callable[[], Awaitable[T]], *, attempts_max: int) -> T:
    """Repeat what failed in passing. A registry that cannot be reached at all fails at once: callers want to know."""
    backoff = new_backoff()
    for _ in range(1, attempts_max):
        try:
            return await attempt()
        except TransientError as error:
            await asyncio.sleep(pause_s(backoff, error.retry_after_s))
    try:
        return await attempt()
    except (TransientError, aiohttp.ClientError) as error:
        raise RegistryUnavailableError(str(error)) from error


def _pull_scope(ref: Reference) -> str:
    return f"repository:{ref.path}:pull"


def _translated(error: StatusError, ref: Reference) -> RegistryError:
    """dockerd's words for what a registry refused (moby ``distribution/errors.go``)."""
    if error.code == "DENIED" or error.status == 403:
        return AccessDeniedError(
            f"pull access denied for {ref.familiar_name}, repository does not exist or may require 'docker login': {error}"
        )
    if error.code == "NAME_UNKNOWN":
        return ManifestUnknownError(f"repository {ref.familiar_name} not found: {error}")
    if error.code == "MANIFEST_UNKNOWN" or (error.status == 404 and "BLOB" not in error.code):
        return ManifestUnknownError(f"manifest for {ref.familiar} not found: {error}")
    if error.status == 401:
        return UnauthorizedError(str(error) if error.code else "unauthorized: authentication required")
    return RegistryError(str(error))
