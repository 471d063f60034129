"""The JSON texts kept for lists: whose they are, how many, how long."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from api.json_codec import encode, encode_json
from api.swarm_routes import parts
from api.swarm_routes.parts import ENTRY_BYTES_MAX, KEPT_S, Part, PartCache, send_list, whole
from proto.objects_pb2 import Node

ID = "0123456789abcdefghijklmn"


def message(number: int, hostname: str = "alpha") -> bytes:
    node = Node(id=f"{ID}{number}")
    node.description.hostname = hostname
    return node.SerializeToString()


class Counted:
    """Encodes nodes, and says how many."""

    def __init__(self) -> None:
        self.encoded = 0

    def __call__(self, data: bytes) -> Part:
        self.encoded += 1
        return whole(Node)(data)


async def test_an_object_is_encoded_once_and_again_when_it_has_changed() -> None:
    counted = Counted()
    cache = PartCache(counted)
    for _ in range(3):
        (text,) = cache.texts([message(1)])
        assert text == encode_json(Node.FromString(message(1)))
    assert counted.encoded == 1
    (text,) = cache.texts([message(1, "beta")])
    assert json.loads(text)["Description"]["Hostname"] == "beta"
    assert (counted.encoded, len(cache)) == (2, 1), "the new version takes the place of the old one"


async def test_what_is_not_listed_any_more_is_forgotten_with_the_second_turn() -> None:
    counted = Counted()
    cache = PartCache(counted)
    cache.texts([message(1), message(2)])
    cache.turn()
    cache.texts([message(1)])
    cache.turn()
    assert len(cache) == 1
    cache.texts([message(1)])
    assert counted.encoded == 2
    cache.turn()
    cache.turn()
    assert (len(cache), cache.size_bytes) == (0, 0)


async def test_turns_come_by_themselves_until_nothing_is_kept() -> None:
    loop = asyncio.get_running_loop()
    cache = PartCache(Counted())
    cache.texts([message(1)])
    planned = cache._turn
    assert planned is not None
    assert planned.when() - loop.time() <= KEPT_S
    planned.cancel()
    cache.turn()
    assert cache._turn is not None
    cache._turn.cancel()
    cache.turn()
    assert cache._turn is None


async def test_no_more_is_kept_than_there_is_room_for() -> None:
    counted = Counted()
    size = len(message(1)) + len(encode_json(Node.FromString(message(1)))) + 300
    cache = PartCache(counted, bytes_max=2 * size)
    everything = [message(number) for number in range(5)]
    for _ in range(2):
        assert [json.loads(text) for text in cache.texts(everything)] == [
            encode(Node.FromString(data)) for data in everything
        ]
    assert (len(cache), counted.encoded) == (2, 5 + 3)
    assert cache.size_bytes <= 2 * size
    large = PartCache(counted)
    large.texts([message(1, "x" * ENTRY_BYTES_MAX)])
    assert len(large) == 0


async def test_a_long_list_comes_in_pieces_and_others_have_their_turn_meanwhile() -> None:
    cache, turns = PartCache(whole(Node)), 0
    counts = [0, 1, parts.OBJECTS_AT_A_TIME, parts.OBJECTS_AT_A_TIME + 1, 5 * parts.OBJECTS_AT_A_TIME]
    turns_of: dict[int, int] = {}

    async def answer(request: web.Request) -> web.StreamResponse:
        count = int(request.query["count"])
        before = turns
        response = await send_list(request, [message(number) for number in range(count)], cache.texts)
        turns_of[count] = turns - before
        return response

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestClient(TestServer(app)) as client, asyncio.TaskGroup() as group:
        taking = group.create_task(take_turns(), name="turns")
        for count in counts:
            async with client.get("/", params={"count": count}) as response:
                body = await response.read()
                assert response.content_type == "application/json"
                assert body.endswith(b"]\n")
                found = json.loads(body)
            assert [node["ID"] for node in found] == [f"{ID}{number}" for number in range(count)]
        taking.cancel()
    assert turns_of[1] <= 1
    assert turns_of[counts[-1]] >= 4
