"""One daemon for the module's tests, with busybox imported; skipped where root or a tool is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import docker
import pytest

from tests.conformance.busybox import root_tar
from tests.conformance.hosts import EngineHost

TOOLS = ("docker", "runc", "conmon", "nft", "unshare", "tini", "busybox")
IMAGE = "busybox:latest"


@pytest.fixture(scope="package")
def host() -> Iterator[EngineHost]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    made = EngineHost()
    try:
        made.start()
        made.ok("import", "-c", 'CMD ["sh"]', "-c", "ENV PATH=/bin", "-", IMAGE, stdin=root_tar())
        yield made
    finally:
        made.close()


@pytest.fixture
def client(host: EngineHost) -> Iterator[docker.DockerClient]:
    made = host.client()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_containers(host: EngineHost) -> Iterator[None]:
    """Every test starts and ends without containers."""
    yield
    if left := host.ok("ps", "-aq").split():
        host.ok("rm", "-fv", *left)
