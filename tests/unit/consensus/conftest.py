"""The library's clock is a module global: tests that move it put it back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pysyncobj import syncobj


@pytest.fixture(autouse=True)
def _real_clock_afterwards() -> Iterator[None]:
    clock = syncobj.monotonicTime
    yield
    syncobj.monotonicTime = clock
