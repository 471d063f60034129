"""A cluster of one manager."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.ca.support import SmallCluster, small_cluster
from tests.unit.pki.support import Authority


@pytest.fixture
async def cluster() -> AsyncIterator[SmallCluster]:
    async with small_cluster(Authority()) as made:
        yield made
