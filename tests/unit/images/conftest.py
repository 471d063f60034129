"""A store on a directory of its own, and one registry for all tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from runtime.images import ContainerUse, ImageStore
from tests.support_images import Registry, running_registry


@pytest.fixture
def used_images() -> dict[str, list[ContainerUse]]:
    """What the store is told of containers, by image ID; a test changes it."""
    return {}


@pytest.fixture
async def store(tmp_path: Path, used_images: dict[str, list[ContainerUse]]) -> AsyncIterator[ImageStore]:
    store = ImageStore(tmp_path / "engine", users=lambda image_id: used_images.get(image_id, ()))
    await store.open()
    yield store
    await store.close()


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    with running_registry() as running:
        yield running
