"""The Engine API version of a request: announced range, path prefix, refusal.

Clients put the version they speak in front of the path (``/v1.47/info``); a bare path means the newest. 1.51 is the
newest version in which the old fields that docker-py and older tools still read (``NetworkSettings.IPAddress``,
``status``/``id``/``from`` of events, the arrays of ``/system/df``) are part of every answer, so one form serves every
client; a newer CLI negotiates down to it (features W01, W16).

Source: moby ``daemon/server/middleware/version.go``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from aiohttp import web

from api.errors import BadRequestError


class APIVersion(NamedTuple):
    """``major.minor``; ordered."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


MAX_VERSION = APIVersion(1, 51)
MIN_VERSION = APIVersion(1, 24)

_PREFIX = re.compile(r"/v(\d{1,4})\.(\d{1,4})(?:\.\d+)*(?=/|$)")
_VERSION_KEY = web.RequestKey("api_version", APIVersion)


def split_version(path: str) -> tuple[APIVersion | None, str]:
    """``/v1.44/info`` -> (1.44, ``/info``); a path without a version prefix comes back as it is, with None."""
    match = _PREFIX.match(path)
    if match is None:
        return None, path
    return APIVersion(int(match[1]), int(match[2])), path[match.end() :] or "/"


def check_version(version: APIVersion) -> None:
    """Raises: BadRequestError with dockerd's words when the version is out of the served range."""
    if version > MAX_VERSION:
        raise BadRequestError(f"client version {version} is too new. Maximum supported API version is {MAX_VERSION}")
    if version < MIN_VERSION:
        raise BadRequestError(
            f"client version {version} is too old. Minimum supported API version is {MIN_VERSION}, "
            "please upgrade your client to a newer version"
        )


def set_version(request: web.Request, version: APIVersion) -> None:
    """Remember what the client asked for; called by the router."""
    request[_VERSION_KEY] = version


def version_of(request: web.Request) -> APIVersion:
    """The version this request is to be answered in."""
    version: APIVersion = request.get(_VERSION_KEY, MAX_VERSION)
    return version
