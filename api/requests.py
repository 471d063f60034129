"""What handlers read out of a request: flags, numbers, filters, times, JSON bodies; and how they answer JSON.

The rules are dockerd's: a flag is false for ``""``, ``0``, ``no``, ``false`` and ``none``.

Source: moby ``daemon/server/httputils/form.go``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection

import msgspec
from aiohttp import web

from api.errors import BadRequestError
from api.filters import Filters, parse_filters
from api.lenient import decode_object
from base.json_text import read_json

FALSE_WORDS = frozenset(("", "0", "no", "false", "none"))
_encoder = msgspec.json.Encoder()


def flag(request: web.Request, name: str, *, default: bool = False) -> bool:
    """A boolean query parameter."""
    text = request.query.get(name)
    return default if text is None else text.strip().lower() not in FALSE_WORDS


def integer(request: web.Request, name: str, *, default: int = 0) -> int:
    """An integer query parameter. Raises: BadRequestError."""
    text = request.query.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise BadRequestError(f"invalid value for {name}: {text!r} is no integer") from None


def filters_of(request: web.Request, known: Collection[str] | None = None) -> Filters:
    """The ``filters`` query parameter; see ``parse_filters``."""
    return parse_filters(request.query.get("filters", ""), known)


async def read_body(request: web.Request) -> bytes:
    """The body, which must say that it is JSON, as dockerd wants it.

    Raises: BadRequestError.
    """
    body = await request.read()
    if body and request.content_type != "application/json":
        raise BadRequestError(f"unsupported Content-Type header ({request.content_type}): must be 'application/json'")
    return body


async def json_body(request: web.Request) -> dict[str, object]:
    """The JSON object in the body, ``{}`` when there is none. Raises: BadRequestError."""
    body = await read_body(request)
    return decode_object(body) if body else {}


def auth_header(request: web.Request, name: str = "X-Registry-Auth") -> dict[str, object]:
    """The JSON object in a base64url header; empty when absent. The header's content is never part of an error."""
    text = request.headers.get(name, "")
    if not text:
        return {}
    try:
        decoded = read_json(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=object)
    except (binascii.Error, msgspec.DecodeError, ValueError):
        raise BadRequestError(f"invalid {name} header: want base64url of a JSON object") from None
    if decoded is None:  # what some clients send when they have none
        return {}
    if not isinstance(decoded, dict):
        raise BadRequestError(f"invalid {name} header: want base64url of a JSON object")
    return decoded


def json_response(value: object, *, status: int = 200) -> web.Response:
    """``value`` (Structs, dicts, lists) as JSON."""
    return web.Response(body=_encoder.encode(value) + b"\n", status=status, content_type="application/json")


def no_content() -> web.Response:
    """204."""
    return web.Response(status=204)
