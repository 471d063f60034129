"""The daemon goes away, by every way there is; containers do not notice."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.containers import conmon
from runtime.containers.conmon import Paths, find_tools, run_runc
from runtime.kernel import nft
from runtime.types import ExecConfig, HostConfig, PortBinding, RestartPolicy
from tests.unit.engine.support import Bench
from tests.waiting import until

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[3]


async def reopen(bench: Bench) -> None:
    """Another engine on the same folders in place of the closed one."""
    bench.engine = bench.make()
    await bench.engine.open()


async def test_a_killed_daemon_leaves_containers_alone_and_its_successor_takes_them_over(bench: Bench) -> None:
    await bench.engine.close()
    shared = bench.folder / "shared"
    shared.mkdir()
    arguments = [str(bench.folder / "state"), str(bench.folder / "run"), bench.cgroup, str(shared)]
    daemon = _start_daemon(arguments)
    assert daemon.stdout is not None
    with daemon.stdout:
        while "ready" not in (line := await asyncio.to_thread(daemon.stdout.readline)):
            assert line, "the daemon ended"
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    (shared / "go").touch()
    await until(lambda: _exits(bench) != [], what="conmon wrote the exit file")

    await reopen(bench)
    steady, ending = bench.engine.inspect("steady"), bench.engine.inspect("ending")
    assert (ending.State.Status, ending.State.ExitCode) == ("exited", 9)
    assert steady.State.Status == "running"
    pid = int((bench.folder / "run" / "bundles" / steady.Id / "init.pid").read_text())
    assert steady.State.Pid == pid
    assert Path(f"/proc/{pid}").exists()
    assert steady.NetworkSettings.Networks["bridge"].IPAddress == "172.17.0.2"
    assert [binding.HostPort for binding in steady.NetworkSettings.Ports["80/tcp"] or ()] == ["8080"]
    before = len(await bench.output("steady"))
    async with asyncio.timeout(30):
        while len(await bench.output("steady")) == before:
            await asyncio.sleep(0.01)
    other = await bench.run("true", host=HostConfig())
    assert bench.engine.inspect(other).Id
    await bench.engine.wait(other)
    await bench.engine.stop("steady", timeout_s=0)
    assert bench.engine.inspect("steady").State.ExitCode == 137


@pytest.mark.parametrize("damage", ["empty", "gone"])
async def test_a_power_cut_that_took_the_record_of_its_files_costs_a_container_nothing(
    bench: Bench, damage: str
) -> None:
    """The record is not synced: the kernel may have written the name of the file and none of its bytes."""
    container_id = await bench.run("sh", "-c", "test -e /made || echo first > /made; cat /made", host=HostConfig())
    await bench.engine.wait(container_id)
    await bench.engine.close()
    record = bench.folder / "state" / "images" / "snapshots" / "containers" / container_id / "rootfs.json"
    record.unlink()
    if damage == "empty":
        record.touch()
    await reopen(bench)
    await bench.engine.start(container_id)
    assert (await bench.engine.wait(container_id)).StatusCode == 0
    assert (await bench.output(container_id)).count("first") == 2
    await bench.engine.close()
    await reopen(bench)  # and it is written anew
    await bench.engine.remove(container_id)


async def test_closing_and_opening_keeps_running_containers(bench: Bench) -> None:
    container_id = await bench.run("sleep", "1000", host=HostConfig())
    before = bench.engine.inspect(container_id).State
    exec_id = await bench.engine.exec_create(container_id, ExecConfig(Cmd=["sleep", "1000"]))
    await bench.engine.exec_start(exec_id, detach=True)
    async with asyncio.timeout(60):  # an exec under way does not hold up the end
        await bench.engine.close()
    await reopen(bench)
    after = bench.engine.inspect(container_id).State
    assert (after.Pid, after.StartedAt, after.Status) == (before.Pid, before.StartedAt, "running")
    waiting = asyncio.ensure_future(bench.engine.wait(container_id))
    os.kill(after.Pid, signal.SIGKILL)
    assert (await waiting).StatusCode == 137


async def test_power_loss_marks_containers_as_ended_and_starts_those_that_should_run(bench: Bench) -> None:
    plain = await bench.run("sleep", "1000")
    always = HostConfig(NetworkMode="none", RestartPolicy=RestartPolicy(Name="unless-stopped"))
    again = await bench.run("sleep", "1000", host=always)
    stopped = await bench.run("sleep", "1000", host=always)
    await bench.engine.stop(stopped, timeout_s=0)
    pids = [bench.engine.inspect(container_id).State.Pid for container_id in (plain, again)]
    await bench.engine.close()
    for container_id, pid in zip((plain, again), pids, strict=True):
        conmon = int((bench.folder / "run" / "bundles" / container_id / "conmon.pid").read_text())
        os.kill(conmon, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        await until(lambda pid=pid: not _alive(pid), what="the container's end")  # type: ignore[misc]  # bound argument
    shutil.rmtree(bench.folder / "run" / "runc")
    await reopen(bench)
    state = bench.engine.inspect(plain).State
    assert (state.Status, state.ExitCode) == ("exited", 255)
    await until(lambda: bench.engine.inspect(again).State.Status == "running", what="the restart")
    assert bench.engine.inspect(stopped).State.Status == "exited"


async def test_remains_of_an_interrupted_start_are_cleaned(bench: Bench) -> None:
    container_id = await bench.run("sleep", "1000")
    state_file = bench.folder / "state" / "containers" / container_id
    pid = bench.engine.inspect(container_id).State.Pid
    await bench.engine.close()
    shutil.rmtree(state_file)  # as if the record had never been written
    await reopen(bench)
    assert bench.engine.list(all=True) == []
    await until(lambda: not _alive(pid), what="the orphan's end")
    assert not any((bench.folder / "state/images/snapshots/containers").iterdir())


async def test_a_start_that_was_never_noted_down_leaves_nothing(bench: Bench) -> None:
    """The daemon died between conmon's answer and the saved state."""
    container_id = await bench.run("sleep", "1000")
    conmon = _conmon_pid(bench, container_id)
    await bench.engine.close()
    (bench.folder / "state" / "containers" / container_id / "state.json").unlink()
    await reopen(bench)
    assert bench.engine.inspect(container_id).State.Status == "created"
    assert not _alive(conmon)
    assert str(bench.folder) not in Path("/proc/self/mountinfo").read_text()
    await bench.engine.start(container_id)
    assert bench.engine.inspect(container_id).State.Status == "running"


async def test_the_late_word_of_an_old_monitor_does_not_end_the_next_run(bench: Bench) -> None:
    host = HostConfig(NetworkMode="none", RestartPolicy=RestartPolicy(Name="always"))
    container_id = await bench.run("sleep", "1000", host=host)
    before, conmon = bench.engine.inspect(container_id).State.Pid, _conmon_pid(bench, container_id)
    await bench.engine.close()
    (bench.folder / "run" / "runc" / container_id / "state.json").unlink()  # it cannot be taken over
    os.kill(conmon, signal.SIGSTOP)
    try:
        opening = asyncio.ensure_future(reopen(bench))
        await until(lambda: not _alive(before), what="the end of what cannot be taken over")
    finally:
        os.kill(conmon, signal.SIGCONT)
    await opening
    assert not _alive(conmon)
    await until(lambda: bench.engine.inspect(container_id).State.Status == "running", what="the next run")


@pytest.mark.parametrize("noted", ["running", "paused"])
async def test_a_daemon_killed_while_pausing_is_followed_by_one_that_looks(bench: Bench, noted: str) -> None:
    container_id = await bench.run("sleep", "1000")
    if noted == "paused":
        await bench.engine.pause(container_id)
    await bench.engine.close()
    change = "pause" if noted == "running" else "resume"
    await asyncio.to_thread(run_runc, find_tools(), Paths(bench.folder / "run"), container_id, change, container_id)
    await reopen(bench)
    assert bench.engine.inspect(container_id).State.Status == ("paused" if noted == "running" else "running")
    async with asyncio.timeout(30):
        await bench.engine.remove(container_id, force=True)


async def test_a_restart_that_was_due_is_the_next_daemons(bench: Bench) -> None:
    host = HostConfig(NetworkMode="none", RestartPolicy=RestartPolicy(Name="on-failure"))
    container_id = await bench.run("sh", "-c", "exit 1", host=host)
    await until(lambda: bench.engine.inspect(container_id).State.Status == "restarting", what="waiting to restart")
    await bench.engine.close()
    await reopen(bench)
    before = bench.engine.inspect(container_id).RestartCount
    await until(lambda: bench.engine.inspect(container_id).RestartCount > before, what="the restart")


async def test_ports_of_a_container_that_ended_meanwhile_lead_nowhere(bench: Bench) -> None:
    host = HostConfig(PortBindings={"80/tcp": [PortBinding(HostPort="8081")]})
    container_id = await bench.run("sleep", "1000", host=host)
    pid = bench.engine.inspect(container_id).State.Pid
    await bench.engine.close()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: _exits(bench) != [], what="conmon wrote the exit file")
    await reopen(bench)
    assert "8081" not in await asyncio.to_thread(nft.run, "list ruleset")


def _start_daemon(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.unit.engine.daemon", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)


def _exits(bench: Bench) -> list[str]:
    """Containers with a whole exit file; conmon writes it under another name first."""
    return [path.name for path in (bench.folder / "run" / "exits").iterdir() if len(path.name) == 64]


def _conmon_pid(bench: Bench, container_id: str) -> int:
    return int((bench.folder / "run" / "bundles" / container_id / "conmon.pid").read_text())


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("let_go", [False, True])
async def test_a_start_that_a_kill_cuts_short_once_it_is_noted_down_is_carried_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, let_go: bool
) -> None:
    container_id = await bench.create("sh", "-c", "echo once; exec sleep 1000")
    fifo, start = bench.folder / "run" / "runc" / container_id / "exec.fifo", conmon.start

    def killed(tools: conmon.Tools, paths: conmon.Paths, name: str, pid: int) -> None:
        if let_go:
            start(tools, paths, name, pid)
            os.mkfifo(fifo)  # the daemon died before it removed it

    monkeypatch.setattr(conmon, "start", killed)
    await bench.engine.start(container_id)
    pid = bench.engine.inspect(container_id).State.Pid
    await bench.engine.close()
    monkeypatch.undo()
    bench.engine = bench.make()
    await bench.engine.open()
    assert (bench.engine.inspect(container_id).State.Status, bench.engine.inspect(container_id).State.Pid) == (
        "running",
        pid,
    )
    lines = bench.engine.logs(container_id, follow=True)
    assert (await anext(lines)).data == b"once\n"
    assert not conmon.is_waiting(conmon.Paths(bench.folder / "run"), container_id, pid)
    await bench.engine.remove(container_id, force=True)
