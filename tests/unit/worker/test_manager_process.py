"""The zygote and the manager process it forks: started, restarted, adopted, stopped. Real processes, no cluster."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen, run
from threading import Timer

import pytest

from base.files import lock_file
from proto.node_pb2 import ManagerConfig
from worker.membership import manager_process as module
from worker.membership.manager_lock import holds, lock_holder
from worker.membership.manager_process import ManagerProcess
from worker.membership.zygote import FRAME_SIZE_BYTES_MAX, Zygote

TARGET = "tests.unit.worker.test_manager_process:be_manager"


def be_manager(payload: bytes) -> int:
    """What a manager does as far as its node can see: hold the lock, write its PID, end on SIGTERM."""
    config = ManagerConfig.FromString(payload)
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    with Path(config.state_dir, "manager.lock").open("a+b") as file:
        lock_file(file)
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        deadline = time.monotonic() + 120
        while not ended and time.monotonic() < deadline:
            time.sleep(0.005)
    return 0


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    """At rest: it comes up with the first manager. A fork of the test runner would take its threads' locks along."""
    made = Zygote(TARGET)
    yield made
    made.close()


def quick(zygote: Zygote, lock: Path) -> ManagerProcess:
    """It tries again at once."""
    return ManagerProcess(zygote, lock, on_exit=lambda config: config, restart_delay_s_min=0.01, watch_retry_s=0.01)


async def holder(lock: Path, *, other_than: int | None = None) -> int:
    async with asyncio.timeout(30):
        while (pid := lock_holder(lock)) is None or pid == other_than:
            await asyncio.sleep(0.005)
    return pid


async def gone(pid: int) -> None:
    async with asyncio.timeout(30):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.005)


async def test_a_manager_is_started_and_stopped(zygote: Zygote, tmp_path: Path) -> None:
    process = ManagerProcess(zygote, tmp_path / "manager.lock", on_exit=lambda config: config)
    await process.start(ManagerConfig(state_dir=str(tmp_path)))
    pid = await holder(tmp_path / "manager.lock")
    assert process.running
    await process.stop()
    await gone(pid)
    assert not process.running


async def test_a_manager_that_ends_by_itself_is_started_again(zygote: Zygote, tmp_path: Path) -> None:
    process = ManagerProcess(zygote, tmp_path / "manager.lock", on_exit=lambda config: config)
    await process.start(ManagerConfig(state_dir=str(tmp_path)))
    first = await holder(tmp_path / "manager.lock")
    os.kill(first, signal.SIGKILL)
    second = await holder(tmp_path / "manager.lock", other_than=first)
    assert second != first
    await process.stop()
    await gone(second)


@pytest.mark.parametrize("failing", ["lock_holder", "pidfd_open"])
async def test_a_node_without_descriptors_starts_its_manager_once_it_has_some(
    zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    process = quick(zygote, tmp_path / "manager.lock")
    tried = asyncio.Event()

    def exhausted(_argument: object) -> int:
        tried.set()
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        if failing == "pidfd_open":
            patch.setattr(os, "pidfd_open", exhausted)
        await process.start(ManagerConfig(state_dir=str(tmp_path)))
        first = await holder(tmp_path / "manager.lock")
        if failing == "lock_holder":
            patch.setattr(module, "lock_holder", exhausted)
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(30):
            await tried.wait()
        await asyncio.sleep(0)
    second = await holder(tmp_path / "manager.lock", other_than=first)
    await process.stop()
    await gone(second)


async def test_a_manager_that_is_not_wanted_any_more_stays_ended(zygote: Zygote, tmp_path: Path) -> None:
    ended = asyncio.Event()

    def on_exit(config: ManagerConfig) -> None:
        ended.set()

    process = ManagerProcess(zygote, tmp_path / "manager.lock", on_exit=on_exit)
    await process.start(ManagerConfig(state_dir=str(tmp_path)))
    os.kill(await holder(tmp_path / "manager.lock"), signal.SIGKILL)
    async with asyncio.timeout(30):
        await ended.wait()
    assert not process.running
    await process.start(ManagerConfig(state_dir=str(tmp_path)))
    again = await holder(tmp_path / "manager.lock")
    await process.stop()
    await gone(again)


async def test_a_manager_that_outlived_its_node_is_adopted(zygote: Zygote, tmp_path: Path) -> None:
    config = ManagerConfig(state_dir=str(tmp_path))
    pid = await zygote.start(config.SerializeToString())
    await holder(tmp_path / "manager.lock")
    process = ManagerProcess(zygote, tmp_path / "manager.lock", on_exit=lambda config: config)
    await process.start(config)
    assert await holder(tmp_path / "manager.lock") == pid
    await process.stop()
    await gone(pid)


async def test_an_adopted_manager_that_dies_is_noticed_and_replaced(zygote: Zygote, tmp_path: Path) -> None:
    config = ManagerConfig(state_dir=str(tmp_path))
    adopted = await zygote.start(config.SerializeToString())
    await holder(tmp_path / "manager.lock")
    process = ManagerProcess(zygote, tmp_path / "manager.lock", on_exit=lambda config: config)
    await process.start(config)
    ended = asyncio.ensure_future(process.wait_ended())
    os.kill(adopted, signal.SIGKILL)
    async with asyncio.timeout(30):
        await ended
        await process.wait_running()
    second = await holder(tmp_path / "manager.lock", other_than=adopted)
    await process.stop()
    await gone(second)


async def test_who_waits_for_a_manager_is_told_of_its_start_and_of_its_end(zygote: Zygote, tmp_path: Path) -> None:
    process = ManagerProcess(zygote, tmp_path / "manager.lock", on_exit=lambda config: config)
    started = asyncio.ensure_future(process.wait_running())
    await process.wait_ended()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not started.done()
    await process.start(ManagerConfig(state_dir=str(tmp_path)))
    await holder(tmp_path / "manager.lock")
    async with asyncio.timeout(30):
        await started
        ended = asyncio.ensure_future(process.wait_ended())
        await process.wait_running()
        assert not ended.done()
        await process.stop()
        await ended


async def test_a_manager_outlives_the_zygote(zygote: Zygote, tmp_path: Path) -> None:
    pid = await zygote.start(ManagerConfig(state_dir=str(tmp_path)).SerializeToString())
    await holder(tmp_path / "manager.lock")
    zygote.close()
    await gone(zygote.pid)
    assert Path(f"/proc/{pid}").exists()
    os.kill(pid, signal.SIGTERM)
    await gone(pid)


NODE = f"""
import asyncio, fcntl, os, sys
from proto.node_pb2 import ManagerConfig
from tests.unit.worker import test_manager_process
from worker.membership.zygote import Zygote

with open(sys.argv[1] + "/swarmd.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    zygote = Zygote.fork("{TARGET}", ours_alone=[lock.fileno()])
    print(asyncio.run(zygote.start(ManagerConfig(state_dir=sys.argv[1]).SerializeToString())), flush=True)
    sys.stdin.read()
os._exit(0)
"""


def run_node(folder: Path) -> Popen[bytes]:
    return Popen([sys.executable, "-c", NODE, str(folder)], stdin=PIPE, stdout=PIPE)


async def test_a_manager_that_outlives_its_node_does_not_hold_the_nodes_lock(tmp_path: Path) -> None:
    with run_node(tmp_path) as node:
        assert node.stdout is not None
        pid = int(await asyncio.to_thread(node.stdout.readline))
        assert await holder(tmp_path / "manager.lock") == pid
        node.kill()
    with (tmp_path / "swarmd.lock").open("w") as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert lock_holder(tmp_path / "manager.lock") == pid
    os.kill(pid, signal.SIGTERM)
    await gone(pid)


@pytest.mark.parametrize("how", ["killed", "at rest"])
async def test_a_zygote_that_is_gone_is_replaced(how: str, zygote: Zygote, tmp_path: Path) -> None:
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        pid = await zygote.start(ManagerConfig(state_dir=str(folder)).SerializeToString())
        assert await holder(folder / "manager.lock") == pid
        os.kill(pid, signal.SIGTERM)
        await gone(pid)
        before = zygote.pid
        if how == "killed":
            os.kill(before, signal.SIGKILL)
        else:
            zygote.rest()
        await gone(before)


class HeldZygote:
    """Starts what is asked of it once it may."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def start(self, payload: bytes) -> int:
        self.asked.set()
        await self.go_on.wait()
        return await self._zygote.start(payload)


@pytest.mark.parametrize("starting", ["at first", "again"])
async def test_a_manager_that_is_being_started_is_stopped_as_well(
    zygote: Zygote, tmp_path: Path, starting: str
) -> None:
    """A demotion meets a restart: the manager would run on, nobody's, beside a worker or the next cluster's manager."""
    lock, held = tmp_path / "manager.lock", HeldZygote(zygote)
    process = quick(held, lock)  # type: ignore[arg-type]  # as much as is asked of it
    begun = asyncio.ensure_future(process.start(ManagerConfig(state_dir=str(tmp_path))))
    if starting == "again":
        held.go_on.set()
        await begun
        held.go_on.clear()
        held.asked.clear()
        os.kill(await holder(lock), signal.SIGKILL)
    async with asyncio.timeout(30):
        await held.asked.wait()
    begun.cancel()
    await asyncio.wait({begun})
    stopped = asyncio.ensure_future(process.stop())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not stopped.done()
    held.go_on.set()
    await stopped
    follower = await zygote.start(ManagerConfig(state_dir=str(tmp_path)).SerializeToString())
    assert await holder(lock) == follower  # nobody else had it, and this PID is no answer to an earlier question
    os.kill(follower, signal.SIGTERM)
    await gone(follower)


BECOME = """
import os, signal, socket
from worker.membership import zygote

zygote._hold_signals()
os.kill(os.getpid(), signal.SIGTERM)
zygote._become(socket.socket(), [], lambda payload: 0, b"")
"""


def test_a_manager_that_is_told_to_end_in_the_moment_of_its_fork_ends() -> None:
    assert run([sys.executable, "-c", BECOME], timeout=60, check=False).returncode == -signal.SIGTERM


async def test_a_zygote_that_was_warmed_starts_managers_as_before(zygote: Zygote, tmp_path: Path) -> None:
    zygote.warm()  # there is none yet
    for name in ("first", "second"):
        state = tmp_path / name
        state.mkdir()
        pid = await zygote.start(ManagerConfig(state_dir=str(state)).SerializeToString())
        assert await holder(state / "manager.lock") == pid
        zygote.warm()
        os.kill(pid, signal.SIGTERM)
        await gone(pid)


async def test_an_oversized_request_is_refused(zygote: Zygote) -> None:
    with pytest.raises(ValueError, match="at most"):
        await zygote.start(b"x" * (FRAME_SIZE_BYTES_MAX + 1))


def test_nobody_holds_a_lock_that_is_free(tmp_path: Path) -> None:
    assert lock_holder(tmp_path / "none") is None
    (tmp_path / "free").write_text("1")
    assert lock_holder(tmp_path / "free") is None


@pytest.fixture
def stranger() -> Iterator[Popen[bytes]]:
    """A process that has nothing to do with managers."""
    with Popen(["sleep", "120"]) as process:
        yield process
        process.kill()


@contextlib.contextmanager
def held_lock(path: Path, text: str) -> Iterator[None]:
    """A lock that this process holds, in which somebody else's PID stands."""
    path.write_text(text)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


async def test_a_process_that_only_stands_in_the_lock_file_is_never_told_to_end(
    zygote: Zygote, tmp_path: Path, stranger: Popen[bytes]
) -> None:
    """The PID of a manager of before, given to another process, while who holds the lock has not written its own."""
    lock = tmp_path / "manager.lock"
    with held_lock(lock, str(stranger.pid)):
        assert lock_holder(lock, patience_s=0) is None
        await quick(zygote, lock).stop()
    assert stranger.poll() is None


@pytest.mark.parametrize("text", ["", "0", "-1", "not a number", "9" * 40])
def test_what_is_no_pid_is_no_manager(tmp_path: Path, text: str) -> None:
    with held_lock(tmp_path / "manager.lock", text):
        assert lock_holder(tmp_path / "manager.lock", patience_s=0) is None


def test_a_holder_that_has_not_written_its_pid_yet_is_waited_for(tmp_path: Path, stranger: Popen[bytes]) -> None:
    lock = tmp_path / "manager.lock"
    with held_lock(lock, str(stranger.pid)):
        written = Timer(0.05, lambda: lock.write_text(str(os.getpid())))
        written.start()
        assert lock_holder(lock, patience_s=30) == os.getpid()
        written.join()


def test_the_lock_of_another_file_does_not_count(tmp_path: Path) -> None:
    with held_lock(tmp_path / "other", ""), (tmp_path / "manager.lock").open("w+b") as file:
        assert not holds(os.getpid(), file.fileno())


async def test_a_number_that_was_given_to_another_process_is_not_signalled(
    zygote: Zygote, tmp_path: Path, stranger: Popen[bytes]
) -> None:
    """The manager ended unseen, and its PID is another's before the node looks."""
    process = quick(zygote, tmp_path / "manager.lock")
    await process.start(ManagerConfig(state_dir=str(tmp_path)))
    manager = await holder(tmp_path / "manager.lock")
    process._pid = stranger.pid
    process._since_s = 0.0  # it was there before this process began
    await process.stop()
    assert stranger.poll() is None
    os.kill(manager, signal.SIGTERM)
    await gone(manager)
