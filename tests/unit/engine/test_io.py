"""Logs, attach, exec and health checks, on real runc and conmon."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from pathlib import Path
from types import ModuleType

import pytest

from runtime.containers import attach, execs, logs
from runtime.containers.attach import AttachStream
from runtime.errors import ConflictError, ExecNotFoundError, StartError
from runtime.events import EventMessage
from runtime.types import ExecConfig, HealthConfig, HostConfig, LogConfig, RestartPolicy
from tests.unit.engine.support import Bench, hold
from tests.waiting import until

pytestmark = pytest.mark.root


async def drain(stream: AttachStream) -> dict[str, bytes]:
    found = {"stdout": b"", "stderr": b""}
    while (piece := await stream.read()) is not None:
        found[piece[0]] += piece[1]
    return found


async def test_logs_follow_until_the_end_and_select(bench: Bench) -> None:
    script = "for i in 1 2 3; do echo $i; done; until [ -e /go ]; do sleep 0.02; done; echo 4; echo 5; printf end"
    container_id = await bench.run("sh", "-c", script)
    followed = []
    async for line in bench.engine.logs(container_id, follow=True):
        followed.append(line.data)
        if line.data == b"3\n":  # what the monitor reads at once has one time
            await bench.engine.exec_start(
                await bench.engine.exec_create(container_id, ExecConfig(Cmd=["touch", "/go"])), detach=True
            )
    assert followed == [b"1\n", b"2\n", b"3\n", b"4\n", b"5\n", b"end"]
    lines = [line async for line in bench.engine.logs(container_id)]
    assert [line.data async for line in bench.engine.logs(container_id, tail=2)] == [b"5\n", b"end"]
    since = [line.data async for line in bench.engine.logs(container_id, since_ns=lines[3].timestamp_ns)]
    assert since == [b"4\n", b"5\n", b"end"]
    assert [line async for line in bench.engine.logs(container_id, stdout=False)] == []


async def test_a_following_reader_misses_nothing_over_rotations(bench: Bench) -> None:
    wait = "[ $((i % 500)) = 0 ] && until [ -e /rotated/$((i / 500)) ]; do sleep 0.02; done"
    script = f"i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); {wait}; done"
    (bench.folder / "rotated").mkdir()
    host = HostConfig(NetworkMode="none", Binds=[f"{bench.folder}/rotated:/rotated"])  # the engine itself turns nothing
    container_id = await bench.create("sh", "-c", script, host=host)
    await bench.engine.start(container_id)
    turning = asyncio.ensure_future(_turn(bench, container_id))
    seen = [line.data async for line in bench.engine.logs(container_id, follow=True)]
    turning.cancel()
    whole = b"".join(f"line {number}\n".encode() for number in range(2000))
    assert b"".join(seen) == whole, "in pieces where conmon found a piece of a line in its pipe"
    assert len(_old_logs(bench, container_id)) > 1
    assert [line.data async for line in bench.engine.logs(container_id)] == seen


async def _turn(bench: Bench, container_id: str) -> None:
    """Rotate whenever it is due; the container goes on after as many turns as it waits for."""
    folder = bench.folder / "state" / "containers" / container_id
    control = bench.folder / "run" / "bundles" / container_id / "ctl"
    while True:
        logs.rotate_if_due(folder / f"{container_id}.log", control, logs.Rotation(4096, 50))
        for number in range(len(_old_logs(bench, container_id))):
            (bench.folder / "rotated" / str(number + 1)).touch()
        await asyncio.sleep(0.02)


def _old_logs(bench: Bench, container_id: str) -> list[Path]:
    """Without the .log.tmp that conmon makes and renames."""
    return logs.files(bench.folder / "state" / "containers" / container_id / f"{container_id}.log")[:-1]


async def test_log_driver_none_keeps_nothing(bench: Bench) -> None:
    host = HostConfig(NetworkMode="none", LogConfig=LogConfig(Type="none"))
    container_id = await bench.run("echo", "x", host=host)
    await bench.engine.wait(container_id)
    with pytest.raises(ConflictError, match="configured logging driver does not support reading"):
        bench.engine.logs(container_id)


async def test_attach_before_start_sees_everything_and_feeds_stdin(bench: Bench) -> None:
    container_id = await bench.create("sh", "-c", "echo first; cat; echo last >&2", OpenStdin=True, StdinOnce=True)
    async with await bench.engine.attach(container_id, stdin=True) as stream:
        await bench.engine.start(container_id)
        data = bytes(range(256)) * 2000
        feeding = asyncio.ensure_future(_feed(stream, data))
        found = await drain(stream)
        await feeding
    assert found == {"stdout": b"first\n" + data, "stderr": b"last\n"}


async def _feed(stream: AttachStream, data: bytes) -> None:
    await stream.write(data)
    await stream.close_stdin()


async def test_closing_a_stream_wakes_its_reader_and_leaves_the_container(bench: Bench) -> None:
    container_id = await bench.run("sleep", "1000")
    for _ in range(3):
        stream = await bench.engine.attach(container_id)
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0)
        stream.close()
        assert await asyncio.wait_for(reading, 30) is None
    waiting = await bench.engine.attach(await bench.create("true"))
    reading = asyncio.ensure_future(waiting.read())
    await asyncio.sleep(0)
    waiting.close()
    assert await asyncio.wait_for(reading, 30) is None
    assert bench.engine.inspect(container_id).State.Running


async def test_attach_to_a_running_terminal_and_resize(bench: Bench) -> None:
    container_id = await bench.run("sh", Tty=True, OpenStdin=True)
    async with await bench.engine.attach(container_id, stdin=True) as stream:
        await bench.engine.resize(container_id, height=33, width=77)
        # The monitor may hand the input on before it changes the size; the echo of this has no "33 77".
        await stream.write(b'until [ "$(stty size)" = "33 7"7 ]; do sleep 0.02; done; stty size; exit 4\n')
        found = await drain(stream)
    assert b"33 77" in found["stdout"]
    assert (await bench.engine.wait(container_id)).StatusCode == 4


async def test_a_terminal_takes_input_after_its_first_client_detached(bench: Bench) -> None:
    container_id = await bench.run("sh", "-c", "read line; exit 7", Tty=True, OpenStdin=True, StdinOnce=True)
    async with await bench.engine.attach(container_id, stdin=True):
        pass  # what docker run -it leaves at Ctrl-P Ctrl-Q
    async with await bench.engine.attach(container_id, stdin=True) as stream:
        await stream.write(b"go\r")
        result = await asyncio.wait_for(bench.engine.wait(container_id), 30)
    assert result.StatusCode == 7


async def test_exec_streams_exit_code_user_and_environment(bench: Bench) -> None:
    container_id = await bench.run("sleep", "1000", Env=["A=1"])
    config = ExecConfig(
        Cmd=["sh", "-c", "echo $A $B; id -u; pwd; cat; exit 7"],
        Env=["B=2"],
        User="nobody",
        WorkingDir="/tmp",
        AttachStdin=True,
        AttachStdout=True,
        AttachStderr=True,
    )
    exec_id = await bench.engine.exec_create(container_id, config)
    stream = await bench.engine.exec_start(exec_id)
    assert stream is not None
    async with stream:
        await stream.write(b"piped")
        await stream.close_stdin()
        assert (await drain(stream))["stdout"] == b"1 2\n65534\n/tmp\npiped"
    await until(lambda: not bench.engine.exec_inspect(exec_id).Running, what="exec ended")
    assert bench.engine.exec_inspect(exec_id).ExitCode == 7
    with pytest.raises(ConflictError, match="already been run"):
        await bench.engine.exec_start(exec_id)
    await bench.engine.stop(container_id, timeout_s=0)
    with pytest.raises(ExecNotFoundError):
        bench.engine.exec_inspect(exec_id)
    with pytest.raises(ConflictError, match="is not running"):
        await bench.engine.exec_create(container_id, config)


@pytest.mark.parametrize("own", ["", "1000", "5:6"])
async def test_exec_has_the_groups_that_its_container_was_given(bench: Bench, own: str) -> None:
    container_id = await bench.run(
        "sleep", "1000", host=HostConfig(NetworkMode="none", GroupAdd=["1234", "77"]), User=own
    )
    primary = {"": "0", "1000": "0", "5:6": "6"}
    for user in ("", "1000", "5:6"):
        config = ExecConfig(Cmd=["id", "-G"], User=user, AttachStdout=True)
        stream = await bench.engine.exec_start(await bench.engine.exec_create(container_id, config))
        assert stream is not None
        async with stream:
            assert (await drain(stream))["stdout"].decode().split() == [primary[user or own], "77", "1234"]


async def test_exec_of_a_missing_program(bench: Bench) -> None:
    container_id = await bench.run("sleep", "1000")
    exec_id = await bench.engine.exec_create(container_id, ExecConfig(Cmd=["nope"], AttachStdout=True))
    with pytest.raises(StartError, match="executable file not found"):
        await bench.engine.exec_start(exec_id)
    assert bench.engine.exec_inspect(exec_id).ExitCode == 127


async def test_health_goes_from_starting_over_healthy_to_unhealthy(bench: Bench) -> None:
    seen: list[str] = []
    bench.engine.events.on_event(lambda event: seen.append(event.Action))
    check = HealthConfig(
        Test=["CMD-SHELL", "until [ -e /begin ]; do sleep 0.02; done; test ! -e /sick || { echo ill; false; }"],
        Interval=50_000_000,
        Retries=2,
        Timeout=100_000_000_000,
    )
    container_id = await bench.run("sleep", "1000", Healthcheck=check)

    def status() -> str:
        health = bench.engine.inspect(container_id).State.Health
        return health.Status if health else "none"

    async def touch(path: str) -> None:
        exec_id = await bench.engine.exec_create(container_id, ExecConfig(Cmd=["touch", path]))
        await bench.engine.exec_start(exec_id, detach=True)

    assert status() == "starting"
    await touch("/begin")
    await until(lambda: status() == "healthy", what="healthy")
    await touch("/sick")
    await until(lambda: status() == "unhealthy", what="unhealthy")
    health = bench.engine.inspect(container_id).State.Health
    assert health is not None
    assert health.Log[-1].Output == "ill\n"
    assert [action for action in seen if action.startswith("health")] == [
        "health_status: healthy",
        "health_status: unhealthy",
    ]


@pytest.mark.parametrize("by_policy", [True, False])
async def test_a_restarted_container_starts_as_starting(bench: Bench, by_policy: bool) -> None:
    """Whatever it was before; and the failures of the run before do not count."""
    seen: list[tuple[str, str, int]] = []

    def note(event: EventMessage) -> None:
        health = bench.engine.inspect(event.Actor.ID).State.Health if event.Type == "container" else None
        if health is not None:
            seen.append((event.Action, health.Status, health.FailingStreak))

    bench.engine.events.on_event(note)
    check = HealthConfig(
        Test=["CMD-SHELL", "test ! -e /sick"],
        Interval=30_000_000,
        Retries=2,
        StartPeriod=3600 * 10**9,
        StartInterval=30_000_000,
    )
    host = HostConfig(NetworkMode="none", RestartPolicy=RestartPolicy(Name="always" if by_policy else "no"))
    container_id = await bench.run(
        "sh", "-c", "until [ -e /end ]; do sleep 0.02; done; rm /end; exit 1", host=host, Healthcheck=check
    )

    async def touch(path: str) -> None:
        exec_id = await bench.engine.exec_create(container_id, ExecConfig(Cmd=["touch", path]))
        await bench.engine.exec_start(exec_id, detach=True)

    await until(lambda: ("health_status: healthy", "healthy", 0) in seen, what="healthy")
    await touch("/sick")
    await until(lambda: ("health_status: unhealthy", "unhealthy", 2) in seen, what="unhealthy")
    if by_policy:
        await touch("/end")
    else:
        await bench.engine.restart(container_id, timeout_s=0)
    await until(lambda: [entry[0] for entry in seen].count("start") == 2, what="started again")
    assert [entry for entry in seen if entry[0] == "start"] == [("start", "starting", 0)] * 2
    probes = len(bench.engine.inspect(container_id).State.Health.Log)  # type: ignore[union-attr]  # it has a check

    def probed_again() -> bool:
        return len(bench.engine.inspect(container_id).State.Health.Log) > probes  # type: ignore[union-attr]

    await until(probed_again, what="another probe")
    health = bench.engine.inspect(container_id).State.Health
    assert health is not None
    assert (health.Status, health.FailingStreak) == ("starting", 0), "its start period has begun anew"


async def test_the_start_period_goes_on_under_another_daemon(bench: Bench) -> None:
    check = HealthConfig(
        Test=["CMD", "false"], Interval=20_000_000, Retries=1, StartPeriod=3600 * 10**9, StartInterval=20_000_000
    )
    container_id = await bench.run("sleep", "1000", Healthcheck=check)
    await bench.engine.close()
    path = bench.folder / "state" / "containers" / container_id / "state.json"
    state = json.loads(path.read_text())
    state["StartedAt"] = "2020-01-01T00:00:00.000000000Z"  # long ago: its start period is over
    path.write_text(json.dumps(state))
    bench.engine = bench.make()
    await bench.engine.open()

    def ill() -> bool:
        health = bench.engine.inspect(container_id).State.Health
        return health is not None and health.Status == "unhealthy"

    await until(ill, what="unhealthy")


async def test_a_health_probe_that_hangs_is_ended(bench: Bench) -> None:
    check = HealthConfig(Test=["CMD", "sleep", "1000"], Interval=20_000_000, Timeout=200_000_000, Retries=1)
    container_id = await bench.run("sleep", "1000", Healthcheck=check)

    def ill() -> bool:
        health = bench.engine.inspect(container_id).State.Health
        return health is not None and health.Status == "unhealthy"

    await until(ill, what="unhealthy")
    health = bench.engine.inspect(container_id).State.Health
    assert health is not None
    assert health.Log[0].Output == "Health check exceeded timeout (0.2s)"


async def test_probes_that_get_no_time_do_not_pile_up(bench: Bench) -> None:
    """An image says how often it is probed, and how long a probe may take."""
    check = HealthConfig(Test=["CMD", "true"], Interval=1_000_000, Timeout=1_000_000, Retries=1)
    container_id = await bench.run("sleep", "1000", Healthcheck=check)
    most = 0
    for _ in range(20):
        await asyncio.sleep(0.1)
        most = max(most, sum(task.get_name().startswith("exec start ") for task in asyncio.all_tasks()))
    health = bench.engine.inspect(container_id).State.Health
    assert health is not None
    assert health.Status == "unhealthy"
    assert most <= 1


async def test_probes_go_on_after_one_that_the_host_would_not_let_run(bench: Bench) -> None:
    check = HealthConfig(Test=["CMD", "true"], Interval=20_000_000, Retries=100)
    container_id = await bench.run("sleep", "1000", Healthcheck=check)

    def last() -> tuple[int, str]:
        found = bench.engine.inspect(container_id).State.Health
        return (found.Log[-1].ExitCode, found.Log[-1].Output) if found and found.Log else (0, "")

    folder = bench.folder / "run" / "execs"
    await until(folder.exists, what="the first probe")
    for number in itertools.count():
        folder.rename(bench.folder / f"away{number}")
        with contextlib.suppress(FileExistsError):  # a probe that is under way may make it again
            folder.touch(exist_ok=False)  # no folder: no probe can be prepared
            break
    await until(lambda: last()[0] == -1, what="a probe that failed")
    folder.unlink()
    await until(lambda: last() == (0, ""), what="one that works again")


@pytest.mark.parametrize(("module", "step"), [(execs, "spawn"), (attach, "connect")])
@pytest.mark.parametrize("before", [True, False])
async def test_an_exec_whose_caller_goes_away_leaves_no_monitor_and_no_pipe(
    bench: Bench, module: ModuleType, step: str, before: bool
) -> None:
    container_id = await bench.run("sleep", "1000")
    exec_id = await bench.engine.exec_create(container_id, ExecConfig(Cmd=["sleep", "1000"]))
    open_before = _open_files()
    with hold(module, step, before=before) as held:
        starting = asyncio.ensure_future(bench.engine.exec_start(exec_id))
        await held.reached()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        held.go_on()
        await until(lambda: bench.engine.exec_inspect(exec_id).ExitCode is not None, what="the end of the process")
    await until(lambda: not _exec_monitors(bench), what="the end of conmon")
    await until(lambda: _open_files() <= open_before, what="closed pipes")  # some other file may be closed since


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _exec_monitors(bench: Bench) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes()
            if b"--exec-attach" in command and str(bench.folder).encode() in command:
                found.append(path.parent.name)
    return found
