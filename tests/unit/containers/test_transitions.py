"""Starts, exits and removals step by step, on a host that refuses where it is told to."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.containers.states import Status
from runtime.errors import ConflictError, HostError, NotModifiedError
from runtime.types import HostConfig, RestartPolicy
from tests.unit.containers.fake_host import FakeHost
from tests.waiting import until

WALK = ["reserve", "mount", "build", "create", "attach", "start"]
RELEASE = ["release", "clean", "unmount"]


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    host = FakeHost(tmp_path)
    await host.open()
    yield host
    await host.close()


async def test_a_life(host: FakeHost) -> None:
    container = await host.create()
    await host.starting.start(container)
    assert (host.asked.steps, container.state.Status) == (WALK, Status.RUNNING)
    with pytest.raises(NotModifiedError):
        await host.starting.start(container)
    with pytest.raises(
        ConflictError, match=r'cannot remove container "/web": container is running: stop the container'
    ):
        await host.removal.remove(container, force=False, volumes=False)
    ended = container.wait("exit")
    host.exit(container, 3)
    assert (await ended).StatusCode == 3
    await until(lambda: host.asked.steps == [*WALK, *RELEASE], what="the release")
    assert (container.state.Status, container.state.ExitCode) == (Status.EXITED, 3)
    removed = container.wait("removed")
    await host.removal.remove(container, force=False, volumes=False)
    assert (await removed).StatusCode == 3
    assert host.said == ["start", "die", "destroy"]
    assert len(host.store) == 0


@pytest.mark.parametrize("step", WALK)
async def test_a_step_that_fails_undoes_what_was_done_before_it(host: FakeHost, step: str) -> None:
    container = await host.create()
    ended = container.wait("exit")
    host.asked.refused = {step}
    with pytest.raises(HostError, match=f"{step} refused"):
        await host.starting.start(container)
    abandoned = ["abandon"] if step in ("attach", "start") else []
    assert host.asked.steps == [*WALK[: WALK.index(step) + 1], *abandoned, *RELEASE]
    state = container.state
    assert (state.Status, state.Error, state.ExitCode, state.Pid) == (Status.CREATED, f"{step} refused", 128, 0)
    assert (await ended).StatusCode == 128  # who waits for it hears of it
    assert host.said == []
    host.asked.refused = set()
    await host.starting.start(container)
    assert container.state.Status is Status.RUNNING


async def test_a_defect_undoes_what_was_done_as_well(host: FakeHost) -> None:
    container = await host.create()
    host.asked.broken = {"build"}
    with pytest.raises(HostError, match="build has a defect"):
        await host.starting.start(container)
    assert host.asked.steps == ["reserve", "mount", "build", *RELEASE]
    assert (container.state.Status, container.state.Error) == (Status.CREATED, "build has a defect")


async def test_a_process_whose_monitor_cannot_be_watched_is_ended(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await host.create()
    opened: list[int] = []

    def one_pidfd(pid: int) -> int:
        opened.append(pid)
        if len(opened) > 1:  # the init's was one
            raise OSError(errno.EMFILE, "Too many open files")
        return os.open("/", os.O_PATH)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", one_pidfd)
        with pytest.raises(HostError, match="Too many open files"):
            await host.starting.start(container)
    assert host.asked.steps == [*WALK, "abandon", *RELEASE]
    assert container.state.Status is Status.CREATED


async def test_what_cannot_be_given_back_does_not_keep_the_rest(host: FakeHost) -> None:
    container = await host.create()
    host.asked.refused = {"build", *RELEASE}
    with pytest.raises(HostError, match="build refused"):
        await host.starting.start(container)
    assert host.asked.steps[-3:] == RELEASE


async def test_an_ended_container_whose_start_fails_stays_exited(host: FakeHost) -> None:
    container = await host.create()
    await host.starting.start(container)
    host.exit(container, 0)
    await container.wait("exit")
    host.asked.refused = {"start"}
    with pytest.raises(HostError):
        await host.starting.start(container)
    assert container.state.Status is Status.EXITED


async def test_a_monitor_that_ends_without_a_word_ends_its_container(host: FakeHost) -> None:
    container = await host.create()
    await host.starting.start(container)
    host.runc.end(container.state.ConmonPid)
    assert (await container.wait("exit")).StatusCode == 137
    assert "conmon" in container.state.Error


@pytest.mark.parametrize("how", ["refused", "broken"])
async def test_restarts_go_on_through_a_failed_one_until_a_stop(host: FakeHost, how: str) -> None:
    container = await host.create(HostConfig(RestartPolicy=RestartPolicy(Name="always")))
    await host.starting.start(container)
    setattr(host.asked, how, {"start"})
    host.exit(container, 1)
    await until(lambda: "start " in container.state.Error, what="a restart that fails")
    assert container.state.Status is Status.RESTARTING
    setattr(host.asked, how, set())
    await until(lambda: container.state.Status is Status.RUNNING, what="one that works")
    host.exit(container, 1)
    await until(lambda: container.state.Status is Status.RESTARTING, what="waiting to restart")
    await host.stopping.stop(container, None, None)
    assert (container.state.Status, container.restart_timer) == (Status.EXITED, None)


async def test_a_policy_that_has_enough_gives_up(host: FakeHost) -> None:
    policy = RestartPolicy(Name="on-failure", MaximumRetryCount=1)
    container = await host.create(HostConfig(RestartPolicy=policy))
    await host.starting.start(container)
    host.asked.refused = {"start"}
    host.exit(container, 1)
    await until(lambda: container.state.Status is Status.EXITED, what="the end of the restarts")
    assert container.state.RestartCount == 1


@pytest.mark.parametrize("step", ["start", None])
async def test_an_automatic_removal_follows_an_exit_and_a_start_that_failed(host: FakeHost, step: str | None) -> None:
    container = await host.create(HostConfig(AutoRemove=True))
    removed = container.wait("removed")
    if step is not None:
        host.asked.refused = {step}
        with pytest.raises(HostError):
            await host.starting.start(container)
    else:
        await host.starting.start(container)
        host.exit(container, 0)
    await removed
    assert len(host.store) == 0


async def test_a_removal_under_way_while_the_engine_closes_hears_of_the_exit(host: FakeHost) -> None:
    container = await host.create()
    await host.starting.start(container)
    removing = asyncio.ensure_future(host.removal.remove(container, force=True, volumes=False))
    await until(lambda: "thaw" in host.asked.steps, what="the signal")
    closing = asyncio.ensure_future(host.lifecycle.close())
    await asyncio.sleep(0)
    host.exit(container, 137)
    await asyncio.gather(removing, closing)
    assert len(host.store) == 0


async def test_a_restart_that_is_due_when_the_engine_closes_is_the_next_daemons(host: FakeHost) -> None:
    container = await host.create(HostConfig(RestartPolicy=RestartPolicy(Name="always")))
    await host.starting.start(container)
    container.restart_delay_s = 30.0
    host.exit(container, 1)
    await until(lambda: container.restart_timer is not None, what="the timer")
    await host.lifecycle.close()
    assert (container.state.Status, container.restart_timer) == (Status.RESTARTING, None)
