"""/events: past and future, filters, fields of older clients."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from api.engine_routes.events import event_filter, event_line
from runtime.events import Actor, EventMessage
from tests.unit.api.conftest import Client
from tests.unit.api.fakes import FakeEngine

DEADLINE_S = 30.0


def message(kind: str, action: str, object_id: str, **attributes: str) -> EventMessage:
    return EventMessage(kind, action, Actor(object_id, attributes), "local", 1, 1_000_000_000)


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({}, [0, 1, 2]),
        ({"type": ["container"]}, [0]),
        ({"event": ["start", "pull"]}, [1]),
        ({"event": ["exec_create"]}, [0]),
        ({"container": ["abc"]}, [0]),
        ({"container": ["web"]}, [0]),
        ({"container": ["other"]}, []),
        ({"image": ["busybox"]}, [0, 1]),
        ({"image": ["busybox:1"]}, [0, 1]),
        ({"label": ["tier=front"]}, [0]),
        ({"label": ["tier", "missing"]}, []),
        ({"network": ["bridge"], "type": ["network"]}, [2]),
        ({"scope": ["swarm"]}, []),
    ],
)
def test_filters(filters: dict[str, list[str]], kept: list[int]) -> None:
    messages = [
        message("container", "exec_create: sh", "abcdef", name="web", image="busybox:1", tier="front"),
        message("image", "pull", "busybox:1", name="busybox"),
        message("network", "connect", "n1", name="bridge"),
    ]
    assert [index for index, one in enumerate(messages) if event_filter(filters)(one)] == kept


def test_line_has_the_fields_that_older_clients_read() -> None:
    line = json.loads(event_line(message("container", "start", "abc", image="busybox")))
    assert (line["status"], line["id"], line["from"]) == ("start", "abc", "busybox")
    assert (line["Type"], line["Action"], line["Actor"]["ID"], line["scope"]) == ("container", "start", "abc", "local")
    assert "status" not in json.loads(event_line(message("network", "create", "n")))


async def test_past_events_then_those_that_happen(client: Client, engine: FakeEngine) -> None:
    engine.events.publish("container", "create", "a")
    engine.events.publish("image", "pull", "i")
    async with asyncio.timeout(DEADLINE_S):
        answer = await client.get("/events", params={"since": "0", "filters": '{"type":["container"]}'})
        assert json.loads(await answer.content.readline())["Action"] == "create"
        engine.events.publish("container", "start", "a")
        assert json.loads(await answer.content.readline())["Action"] == "start"
        answer.close()


async def test_until_ends_the_stream(client: Client, engine: FakeEngine) -> None:
    engine.events.publish("container", "create", "a")
    async with asyncio.timeout(DEADLINE_S):
        past = await client.get("/events", params={"since": "0", "until": str(int(time.time()) + 0)})
        assert len((await past.read()).splitlines()) <= 1
        soon = await client.get("/events", params={"until": f"{time.time() + 0.1:.9f}"})
        assert await soon.read() == b""


async def test_head_comes_before_the_first_event_and_unknown_filters_are_refused(client: Client) -> None:
    async with asyncio.timeout(DEADLINE_S):
        answer = await client.get("/events")
        assert answer.status == 200
        answer.close()
        refused = await client.get("/events", params={"filters": '{"colour":["red"]}'})
        assert (refused.status, await refused.json()) == (400, {"message": "invalid filter 'colour'"})
