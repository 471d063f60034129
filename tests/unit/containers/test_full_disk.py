"""What became of a container is not forgotten by a disk that cannot be written to, and nothing a run held stays behind."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from base import records as records_module
from base.files import write_atomic
from runtime.containers.container import Container
from runtime.containers.releasing import Releasing
from runtime.containers.states import Status
from runtime.errors import HostError
from runtime.types import HostConfig, RestartPolicy
from tests.unit.containers.fake_host import FakeHost
from tests.waiting import until

Disk = set[str]
"""Names of the folders below the test's that take nothing: "containers", "run"."""


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Disk:
    refusing: Disk = set()

    def write(path: Path, data: bytes, *, durable: bool = True) -> None:
        if path.relative_to(tmp_path).parts[0] in refusing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_atomic(path, data, durable=durable)

    monkeypatch.setattr(records_module, "write_atomic", write)
    monkeypatch.setattr("runtime.containers.releasing.RETRY_FIRST_S", 0.01)
    return refusing


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[Callable[[], FakeHost]]:
    """Makes the host of one daemon after another."""
    made: list[FakeHost] = []

    def make() -> FakeHost:
        made.append(FakeHost(tmp_path))
        if len(made) > 1:  # conmon's files and the processes outlive a daemon
            made[-1].runc.exit_codes = made[-2].runc.exit_codes
        return made[-1]

    yield make
    for host in made:
        await host.close()


async def ended(host: FakeHost, code: int, policy: str = "no") -> Container:
    container = await host.create(HostConfig(RestartPolicy=RestartPolicy(Name=policy)))
    await host.starting.start(container)
    return await end(host, container, code)


async def end(host: FakeHost, container: Container, code: int) -> Container:
    exited = container.wait("exit")
    host.exit(container, code)
    await exited
    await until(lambda: "unmount" in host.asked.steps, what="the release")
    return container


@pytest.mark.parametrize("orderly", [True, False])
@pytest.mark.parametrize("refusing", [{"containers"}, {"containers", "run"}])
async def test_an_exit_on_a_full_disk_is_known_to_the_next_daemon(
    hosts: Callable[[], FakeHost], full: Disk, refusing: Disk, orderly: bool
) -> None:
    host = hosts()
    await host.open()
    container = await host.create()
    await host.starting.start(container)
    full |= refusing
    await end(host, container, 7)
    if orderly:
        full.clear()
        await host.close()
    successor = hosts()
    await successor.open()
    state = successor.store.get("web").state
    assert (state.Status, state.ExitCode) == (Status.EXITED, 7)


async def test_the_exit_file_stays_until_the_state_is_saved(hosts: Callable[[], FakeHost], full: Disk) -> None:
    host = hosts()
    await host.open()
    container = await host.create()
    await host.starting.start(container)
    full |= {"containers", "run"}
    await end(host, container, 7)
    assert container.id in host.runc.exit_codes
    full.clear()
    await until(lambda: container.id not in host.runc.exit_codes, what="the exit file to go")
    assert host.store.records.unsaved == (0, "")


@pytest.mark.parametrize("disk_at_the_end", ["full", "free"])
async def test_who_was_stopped_on_a_full_disk_is_not_started_again(
    hosts: Callable[[], FakeHost], full: Disk, disk_at_the_end: str
) -> None:
    host = hosts()
    await host.open()
    container = await host.create(HostConfig(RestartPolicy=RestartPolicy(Name="unless-stopped")))
    await host.starting.start(container)
    full |= {"containers"}
    host.runc.end(container.state.ConmonPid)  # the fake's processes do not mind signals of others
    container.state.StoppedByUser = True
    host.store.save_state(container)
    host.runc.exit_codes[container.id] = 137, 0
    host.runc.end(container.state.Pid)
    await until(lambda: not container.running, what="the exit")
    if disk_at_the_end == "free":
        full.clear()
    await host.close()
    full.clear()
    successor = hosts()
    await successor.open()
    after = successor.store.get("web")
    assert (after.state.Status, after.state.StoppedByUser) == (Status.EXITED, True)
    assert "start" not in successor.asked.steps


async def test_on_failure_that_ended_well_does_not_run_again(hosts: Callable[[], FakeHost], full: Disk) -> None:
    host = hosts()
    await host.open()
    container = await host.create(HostConfig(RestartPolicy=RestartPolicy(Name="on-failure")))
    await host.starting.start(container)
    full |= {"containers"}
    await end(host, container, 0)
    full.clear()
    await host.close()
    successor = hosts()
    await successor.open()
    after = successor.store.get("web")
    assert (after.state.Status, after.state.ExitCode) == (Status.EXITED, 0)


async def test_a_failed_start_on_a_disk_that_filled_meanwhile_is_no_run(
    hosts: Callable[[], FakeHost], full: Disk
) -> None:
    host = hosts()
    await host.open()
    container = await host.create()
    start = host.runc.start

    async def fills(container_id: str, pid: int) -> None:
        full.add("containers")
        raise HostError("no")

    host.runc.start = fills  # type: ignore[method-assign]  # the disk fills between two steps
    with pytest.raises(HostError):
        await host.starting.start(container)
    host.runc.start = start  # type: ignore[method-assign]  # as above
    successor = hosts()  # the first one was killed
    await successor.open()
    assert successor.store.get("web").state.Status is Status.CREATED


async def test_what_could_not_be_given_back_is_given_back_later(hosts: Callable[[], FakeHost], full: Disk) -> None:
    host = hosts()
    await host.open()
    host.asked.refused = {"clean", "unmount"}
    container = await ended(host, 3)
    host.asked.refused = set()
    host.asked.steps.clear()
    await until(lambda: host.asked.steps[:3] == ["release", "clean", "unmount"], what="another try")
    assert container.state.ExitCode == 3


async def test_what_runs_again_is_not_cleaned_away(hosts: Callable[[], FakeHost], full: Disk) -> None:
    host = hosts()
    await host.open()
    host.asked.refused = {"clean"}
    container = await ended(host, 3)
    async with container.lock:  # before the next try
        host.asked.refused = set()
        host.asked.steps.clear()
        await host.starting.start_locked(container)
    releasing: Releasing = host.lifecycle._releasing
    await until(lambda: not releasing._left, what="the try to be dropped")
    assert "clean" not in host.asked.steps
    assert container.running


async def test_an_exit_that_cannot_be_read_yet_is_read_later(
    hosts: Callable[[], FakeHost], full: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.containers.monitors.LOOK_AGAIN_S", 0.01)
    host = hosts()
    await host.open()
    container = await host.create()
    await host.starting.start(container)
    exited, tries, read = container.wait("exit"), [0], host.runc.exit_status

    def exit_status(container_id: str) -> tuple[int, int] | None:
        tries[0] += 1
        if tries[0] < 4:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return read(container_id)

    monkeypatch.setattr(host.runc, "exit_status", exit_status)
    host.exit(container, 7)
    assert (await exited).StatusCode == 7
