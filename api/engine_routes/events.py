"""/events: what happened on this host, as a stream of JSON objects.

Source: moby ``daemon/server/router/system/system_routes.go``, ``daemon/events/filter.go``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

from aiohttp import web

from api.engine_routes.context import EngineContext
from api.engine_routes.images import without_tag
from api.filters import timestamp_ns
from api.requests import filters_of
from api.streams import json_line, start_stream
from base.labels import has_labels
from base.times import NANOSECONDS
from runtime.events import EventMessage

OBJECT_TYPES = frozenset(
    ("builder", "config", "container", "daemon", "image", "network", "node", "plugin", "secret", "service", "volume")
)
FILTER_KEYS = OBJECT_TYPES | {"event", "label", "scope", "type"}


class EventRoutes:
    """One handler; a reader that falls too far behind loses its stream, see ``runtime.events``."""

    def __init__(self, context: EngineContext) -> None:
        self._events = context.engine.events

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/events", self.events, allow_head=False)]

    async def events(self, request: web.Request) -> web.StreamResponse:
        wanted = event_filter(filters_of(request, FILTER_KEYS))
        since_text = request.query.get("since", "")
        since_ns = timestamp_ns(since_text, "since")
        until_ns = timestamp_ns(request.query.get("until", ""), "until")
        subscription = self._events.subscribe()
        past = self._events.recent(since_ns) if since_text else []
        try:
            response = await start_stream(request, "application/json")
            for message in past:
                if wanted(message) and (not until_ns or message.timeNano <= until_ns):
                    await response.write(event_line(message))
            left_s = (until_ns - time.time_ns()) / NANOSECONDS if until_ns else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    async for message in subscription:
                        if wanted(message):
                            await response.write(event_line(message))
            await response.write_eof()
            return response
        finally:
            subscription.close()


def event_line(message: EventMessage) -> bytes:
    """One line, with the fields that came before ``Actor`` and that clients <= 1.51 still read (W16)."""
    line: dict[str, object] = {}
    if message.Type in ("container", "image"):
        line = {"status": message.Action, "id": message.Actor.ID}
        image = message.Actor.Attributes.get("image", "") if message.Type == "container" else ""
        if image:
            line["from"] = image
    return json_line(line | {name: getattr(message, name) for name in EventMessage.__struct_fields__})


def event_filter(filters: Mapping[str, Sequence[str]]) -> Callable[[EventMessage], bool]:
    """A predicate: values of one key are alternatives, except labels, which must all match; keys must all match."""

    def matches(message: EventMessage) -> bool:
        return all(_matches_key(message, key, values) for key, values in filters.items())

    return matches


def _matches_key(message: EventMessage, key: str, values: Sequence[str]) -> bool:
    if not values:
        return True
    if key == "event":
        # "exec_create: sh" and "health_status: healthy" are also found by their first word
        return message.Action in values or message.Action.partition(":")[0] in values
    if key == "type":
        return message.Type in values
    if key == "scope":
        return message.scope in values
    if key == "label":
        return has_labels(message.Actor.Attributes, values)
    if key == "image":
        return _matches_image(message, values)
    return message.Type == key and _matches_object(message, values)


def _matches_object(message: EventMessage, values: Sequence[str]) -> bool:
    name = message.Actor.Attributes.get("name", "")
    return any(value and (message.Actor.ID.startswith(value) or name == value) for value in values)


def _matches_image(message: EventMessage, values: Sequence[str]) -> bool:
    """An image by ID or name, or a container by its image; a name without tag matches every tag."""
    if message.Type not in ("image", "container"):
        return False
    attributes = message.Actor.Attributes
    names = [message.Actor.ID, attributes.get("name", "")] if message.Type == "image" else [attributes.get("image", "")]
    return any(value in (name, without_tag(name)) for value in values for name in names if name)
