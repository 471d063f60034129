"""Fixtures of the multi-host tests: testbeds, and what they leave when a test fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.multihost.testbed import Testbed
from tests.support_images import busybox_rootfs

STORY_LINES_MAX = 400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.multihost)
            item.add_marker(pytest.mark.timeout(600))
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="multi-host tests need root"))


def make_testbed(count: int, managers: int, *, name: str, network: str, heartbeat_s: float = 5.0) -> Iterator[Testbed]:
    """A cluster with the image ``busybox:latest`` on every host."""
    testbed = Testbed(count, name=name, network=network, log_level="debug")
    try:
        testbed.up()
        rootfs = busybox_rootfs()
        for host in testbed.hosts():
            testbed.import_image(host, rootfs)
        testbed.form_cluster(managers, heartbeat_s=heartbeat_s)
        yield testbed
    finally:
        testbed.down()


@pytest.fixture(scope="module")
def three() -> Iterator[Testbed]:
    """Three hosts, all managers."""
    yield from make_testbed(3, 3, name="mt", network="192.168.91")


@pytest.fixture(scope="module")
def five() -> Iterator[Testbed]:
    """Five hosts, three of them managers."""
    yield from make_testbed(5, 3, name="mf", network="192.168.92")


@pytest.fixture(scope="module")
def patient() -> Iterator[Testbed]:
    """Four hosts, three of them managers; none is given up while its daemon starts again, however slow that is."""
    yield from make_testbed(4, 3, name="mp", network="192.168.97", heartbeat_s=60.0)


@pytest.fixture(scope="module")
def four() -> Iterator[Testbed]:
    """Four hosts, three of them managers; no image is needed."""
    testbed = Testbed(4, name="mm", network="192.168.94", log_level="debug")
    try:
        testbed.up()
        testbed.form_cluster(3, heartbeat_s=2.0)
        yield testbed
    finally:
        testbed.down()


@pytest.fixture(autouse=True)
def unbroken(request: pytest.FixtureRequest) -> Iterator[None]:
    """A manager that ended because its state was not as it has to be is started again, and a test may not notice."""
    yield
    for value in request.node.funcargs.values():
        if isinstance(value, Testbed):
            assert not value.broken_invariants()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add to a failure what the cluster says of its tasks, and the story of those that are not as they should be."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.when != "call" or not report.failed:
        return
    since = datetime.fromtimestamp(call.start, UTC).isoformat()
    for value in getattr(item, "funcargs", {}).values():
        if isinstance(value, Testbed):
            report.sections.append(("cluster", value.snapshot()))
            lines = value.story(value.unsettled(), since=since).splitlines()
            left_out = (
                [f"({len(lines) - STORY_LINES_MAX} earlier lines left out)"] if len(lines) > STORY_LINES_MAX else []
            )
            report.sections.append(("story since the test began", "\n".join(left_out + lines[-STORY_LINES_MAX:])))
