"""A server with the engine's routes over a fake engine, and a client that speaks to it over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from api import engine_routes
from api.application import build
from api.engine_routes.context import EngineContext
from base.tasks import OwnedTasks
from tests.unit.api.fakes import INFO, FakeEngine, LoneHost

Client = TestClient[web.Request, web.Application]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[Client]:
    operations = OwnedTasks()
    context = EngineContext(engine, LoneHost(), INFO, operations)
    app = build(engine_routes.routes(context), server="swarmd/0.1.0 (linux)")
    async with TestClient(TestServer(app)) as made:
        yield made
    await operations.close(grace_s=0)
