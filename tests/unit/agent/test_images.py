"""Having an image (feature A5.16)."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from runtime.images import (
    Image,
    ImageConfig,
    ImageNotFoundError,
    ImageStore,
    ManifestUnknownError,
    Progress,
    RegistryAuth,
    RegistryUnavailableError,
)
from worker.agent.executor import ExecutorError
from worker.agent.images import ImagePuller

DIGEST = "sha256:" + "a" * 64
IMAGE = Image("sha256:" + "b" * 64, (), (), "amd64", "linux", "", "", 0, ImageConfig(), (), "")


class FakeRegistry:
    """An image store whose registry does what a test says."""

    def __init__(self, *local: str, error: Exception | None = None, hang: bool = False) -> None:
        self.local = set(local)
        self.error, self.hang = error, hang
        self.pulls: list[str] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    def get(self, name: str) -> Image:
        if name not in self.local:
            raise ImageNotFoundError(name)
        return IMAGE

    async def pull(
        self,
        ref: str,
        *,
        platform: str | None = None,
        auth: RegistryAuth | None = None,
        progress: Progress | None = None,
    ) -> Image:
        self.pulls.append(ref)
        await self.go_on.wait()
        if self.hang:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        self.local |= {
            ref,
            ref.removeprefix("docker.io/library/"),
            ref.removeprefix("docker.io/library/").split(":")[0],
        }
        return IMAGE

    def puller(self) -> ImagePuller:
        stall_s = 0.05 if self.hang else 60.0
        return ImagePuller(cast(ImageStore, self), stall_s=stall_s, stall_s_with_local=stall_s)


async def test_an_image_by_digest_that_is_here_is_not_asked_for() -> None:
    registry = FakeRegistry(f"busybox@{DIGEST}")
    await registry.puller().ensure(f"busybox@{DIGEST}", None)
    assert registry.pulls == []


async def test_a_tag_is_always_asked_for() -> None:
    registry = FakeRegistry("busybox")
    await registry.puller().ensure("busybox", None)
    assert registry.pulls == ["docker.io/library/busybox:latest"]


async def test_a_failed_pull_with_the_image_here_is_no_failure() -> None:
    registry = FakeRegistry("busybox", error=RegistryUnavailableError("connection refused"))
    await registry.puller().ensure("busybox", None)


async def test_without_the_image_the_pulls_error_is_the_tasks() -> None:
    registry = FakeRegistry(error=ManifestUnknownError("manifest unknown: nosuch"))
    with pytest.raises(ExecutorError, match=r"^No such image: nosuch:latest: manifest unknown: nosuch$"):
        await registry.puller().ensure("nosuch", None)
    with pytest.raises(ExecutorError, match="invalid reference format"):
        await registry.puller().ensure("NO such", None)


async def test_fifty_tasks_share_one_pull_and_its_outcome() -> None:
    registry = FakeRegistry()
    puller = registry.puller()
    await asyncio.gather(*(puller.ensure("busybox", None) for _ in range(50)))
    await puller.ensure("busybox", None)
    assert len(registry.pulls) == 1


async def test_a_task_that_is_stopped_does_not_end_the_pull_of_others() -> None:
    registry = FakeRegistry()
    registry.go_on.clear()
    puller = registry.puller()
    async with asyncio.TaskGroup() as group:
        stopped = group.create_task(puller.ensure("busybox", None))
        other = group.create_task(puller.ensure("busybox", None))
        while not registry.pulls:
            await asyncio.sleep(0)
        stopped.cancel()
        await asyncio.wait([stopped])
        registry.go_on.set()
    assert other.done()
    assert len(registry.pulls) == 1


async def test_an_unreachable_registry_is_left_alone_for_a_while() -> None:
    registry = FakeRegistry(error=RegistryUnavailableError("connection refused"))
    puller = registry.puller()
    for name in ("a", "b", "c"):
        with pytest.raises(ExecutorError, match="connection refused"):
            await puller.ensure(name, None)
    assert len(registry.pulls) == 1


async def test_a_registry_that_says_nothing_is_given_up_on() -> None:
    registry = FakeRegistry("busybox", hang=True)
    puller = registry.puller()
    await puller.ensure("busybox", None)
    with pytest.raises(ExecutorError, match=r"registry docker\.io does not answer"):
        await puller.ensure("another", None)
    await puller.close()
