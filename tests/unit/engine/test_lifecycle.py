"""Containers from create to removal, on real runc and conmon."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.containers import cgroups, conmon, limits
from runtime.errors import (
    ConflictError,
    ContainerNotFoundError,
    HostError,
    InvalidParameterError,
    NameConflictError,
    NotModifiedError,
    StartError,
)
from runtime.images import ImageNotFoundError
from runtime.types import ContainerConfig, ExecConfig, HostConfig, Mount, RestartPolicy
from tests.support_images import BUSYBOX_TAG
from tests.unit.engine.support import Bench, hold
from tests.waiting import until

pytestmark = pytest.mark.root


async def test_exit_code_output_and_events_of_a_short_container(bench: Bench) -> None:
    seen: list[str] = []
    bench.engine.events.on_event(lambda event: seen.append(event.Action))
    container_id = await bench.run("sh", "-c", "echo out; echo err >&2; exit 3", host=HostConfig())
    assert (await bench.engine.wait(container_id)).StatusCode == 3
    state = bench.engine.inspect(container_id).State
    assert (state.Status, state.ExitCode, state.Pid, state.OOMKilled) == ("exited", 3, 0, False)
    assert state.StartedAt < state.FinishedAt
    lines = [(line.stream, line.data) async for line in bench.engine.logs(container_id)]
    assert sorted(lines) == [("stderr", b"err\n"), ("stdout", b"out\n")]
    await bench.engine.remove(container_id)
    assert seen == ["create", "connect", "start", "die", "disconnect", "destroy"]
    with pytest.raises(ContainerNotFoundError, match=f"No such container: {container_id}"):
        bench.engine.inspect(container_id)


async def test_restarting_an_exited_container_appends_to_its_log(bench: Bench) -> None:
    container_id = await bench.run("sh", "-c", "echo run; touch /mark$(ls / | grep -c mark)")
    await bench.engine.wait(container_id)
    await bench.engine.start(container_id)
    await bench.engine.wait(container_id)
    assert await bench.output(container_id) == "run\nrun\n"


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["/nope"], 127, "no such file or directory"),
        (["nope"], 127, "executable file not found in \\$PATH"),
        (["/etc/passwd"], 126, "permission denied"),
    ],
)
async def test_a_command_that_cannot_run(bench: Bench, command: list[str], code: int, words: str) -> None:
    container_id = await bench.create(*command)
    with pytest.raises(StartError, match=words) as caught:
        await bench.engine.start(container_id)
    assert caught.value.exit_code == code
    state = bench.engine.inspect(container_id).State
    assert (state.Status, state.ExitCode) == ("created", code)
    assert command[0] in state.Error


async def test_lookup_by_name_and_prefix_and_name_conflict(bench: Bench) -> None:
    config = ContainerConfig(Image=BUSYBOX_TAG, Cmd=["true"])
    container_id, _ = await bench.engine.create(config, HostConfig(NetworkMode="none"), name="web")
    assert bench.engine.inspect("web").Id == bench.engine.inspect("/web").Id == container_id
    assert bench.engine.inspect(container_id[:7]).Name == "/web"
    with pytest.raises(
        NameConflictError, match=f'The container name "/web" is already in use by container "{container_id}"'
    ):
        await bench.engine.create(config, name="web")
    with pytest.raises(InvalidParameterError, match="same name as its current name"):
        await bench.engine.rename("web", "web")
    await bench.engine.rename("web", "other")
    with pytest.raises(ContainerNotFoundError):
        bench.engine.inspect("web")
    await bench.engine.create(config, HostConfig(NetworkMode="none"), name="web")


async def test_bad_requests_leave_nothing(bench: Bench) -> None:
    with pytest.raises(ImageNotFoundError):
        await bench.engine.create(ContainerConfig(Image="missing", Cmd=["true"]))
    for host in (
        HostConfig(Memory=1),
        HostConfig(CapAdd=["FLY"]),
        HostConfig(Binds=["a:b:c:d"]),
        HostConfig(RestartPolicy=RestartPolicy(Name="sometimes")),
        HostConfig(VolumeDriver="remote", Binds=["data:/x"]),
        HostConfig(CgroupParent="/elsewhere"),
        HostConfig(DeviceCgroupRules=["c 1:3 rwmx"]),
        HostConfig(BlkioDeviceReadBps=[{"Path": "/dev/null", "Rate": 1}]),
    ):
        with pytest.raises(InvalidParameterError):
            await bench.engine.create(ContainerConfig(Image=BUSYBOX_TAG, Cmd=["true"]), host)
    assert bench.engine.list(all=True) == []


async def test_stop_signals_then_kills(bench: Bench) -> None:
    polite = await bench.run("sh", "-c", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done")
    await _printed(bench, polite, "up")
    await bench.engine.stop(polite, timeout_s=60)
    assert bench.engine.inspect(polite).State.ExitCode == 5
    deaf = await bench.run("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    await _printed(bench, deaf, "up")
    await bench.engine.stop(deaf, timeout_s=0.2)
    assert bench.engine.inspect(deaf).State.ExitCode == 137
    with pytest.raises(NotModifiedError):
        await bench.engine.stop(deaf)


async def test_remove_refuses_a_running_container_unless_forced(bench: Bench) -> None:
    container_id = await bench.run("sleep", "1000")
    with pytest.raises(NotModifiedError):
        await bench.engine.start(container_id)
    name = bench.engine.inspect(container_id).Name
    with pytest.raises(
        ConflictError, match=f'cannot remove container "{name}": container is running: stop the container'
    ):
        await bench.engine.remove(container_id)
    removed = asyncio.ensure_future(bench.engine.wait(container_id, "removed"))
    await asyncio.sleep(0)
    await bench.engine.remove(container_id, force=True)
    assert (await removed).StatusCode == 137


async def test_pause_freezes_and_kill_works_on_a_paused_container(bench: Bench) -> None:
    container_id = await bench.run("sh", "-c", "while :; do date +%s%N; sleep 0.02; done")
    await bench.engine.pause(container_id)
    assert bench.engine.inspect(container_id).State.Status == "paused"
    with pytest.raises(ConflictError, match="already paused"):
        await bench.engine.pause(container_id)
    await bench.engine.unpause(container_id)
    await bench.engine.pause(container_id)
    await bench.engine.kill(container_id)
    assert bench.engine.inspect(container_id).State.ExitCode == 137


async def test_restart_policy_restarts_and_stop_ends_it(bench: Bench) -> None:
    host = HostConfig(NetworkMode="none", RestartPolicy=RestartPolicy(Name="on-failure", MaximumRetryCount=2))
    container_id = await bench.run("sh", "-c", "exit 1", host=host)
    await until(lambda: bench.engine.inspect(container_id).RestartCount == 2, what="two restarts")
    await until(lambda: bench.engine.inspect(container_id).State.Status == "exited", what="then no more")
    forever = HostConfig(NetworkMode="none", RestartPolicy=RestartPolicy(Name="always"))
    container_id = await bench.run("sh", "-c", "exit 0", host=forever)
    await until(lambda: bench.engine.inspect(container_id).RestartCount >= 1, what="a restart")
    await until(lambda: bench.engine.inspect(container_id).State.Status == "restarting", what="waiting to restart")
    await bench.engine.stop(container_id)
    assert bench.engine.inspect(container_id).State.Status == "exited"


async def test_a_restart_that_fails_is_tried_again(bench: Bench) -> None:
    source = bench.folder / "bound"
    source.mkdir()
    host = HostConfig(
        NetworkMode="none",
        RestartPolicy=RestartPolicy(Name="always"),
        Mounts=[Mount(Type="bind", Source=str(source), Target="/bound")],
    )
    container_id = await bench.run("sh", "-c", "while [ ! -e /bound/go ]; do sleep 0.02; done", host=host)
    source.rename(bench.folder / "away")
    (bench.folder / "away" / "go").touch()
    await until(lambda: "does not exist" in bench.engine.inspect(container_id).State.Error, what="a failed restart")
    source.mkdir()
    await until(lambda: bench.engine.inspect(container_id).State.Status == "running", what="one that works")
    await bench.engine.remove(container_id, force=True)


async def test_auto_remove(bench: Bench) -> None:
    container_id = await bench.run("true", host=HostConfig(NetworkMode="none", AutoRemove=True))
    await until(lambda: bench.engine.list(all=True) == [], what=f"{container_id[:12]} removed by itself")


async def test_out_of_memory_is_recorded(bench: Bench) -> None:
    host = HostConfig(NetworkMode="none", Memory=16 << 20, MemorySwap=16 << 20)
    container_id = await bench.run("sh", "-c", "head -c 100m /dev/zero | tail", host=host)
    await bench.engine.wait(container_id)
    assert bench.engine.inspect(container_id).State.OOMKilled


def limits_of(bench: Bench, container_id: str) -> list[str]:
    """Memory in bytes, CPU quota in microseconds, processes: what the kernel has, in either version's files."""
    groups, inner = Path("/sys/fs/cgroup"), f"{bench.cgroup.lstrip('/')}/{container_id}"
    if (groups / "memory").is_dir():
        files = [f"memory/{inner}/memory.limit_in_bytes", f"cpu/{inner}/cpu.cfs_quota_us", f"pids/{inner}/pids.max"]
    else:
        files = [f"{inner}/memory.max", f"{inner}/cpu.max", f"{inner}/pids.max"]
    return [(groups / name).read_text().split()[0] for name in files]


async def test_limits_reach_the_cgroup(bench: Bench) -> None:
    host = HostConfig(NetworkMode="none", Memory=64 << 20, NanoCpus=500_000_000, PidsLimit=42)
    container_id = await bench.run("sleep", "1000", host=host)
    assert limits_of(bench, container_id) == [str(64 << 20), "50000", "42"]


async def test_conmon_killed_ends_the_container(bench: Bench) -> None:
    container_id = await bench.run("sleep", "1000")
    monitor = int((bench.folder / "run" / "bundles" / container_id / "conmon.pid").read_text())
    os.kill(monitor, signal.SIGKILL)
    result = await bench.engine.wait(container_id)
    assert result.StatusCode == 137
    assert "conmon" in result.Error


async def test_security_defaults(bench: Bench) -> None:
    script = "grep -E 'CapEff|Seccomp:' /proc/self/status; unshare -U true || echo refused; cat /proc/kcore | head -c1 | wc -c; touch /proc/sys/x || echo ro"
    container_id = await bench.run("sh", "-c", script)
    await bench.engine.wait(container_id)
    output = await bench.output(container_id)
    assert "CapEff:\t00000000a80425fb" in output
    assert "Seccomp:\t2" in output
    assert "refused" in output
    assert "\n0\n" in output
    assert "ro\n" in output


async def test_the_daemons_umask_reaches_nothing_of_a_container(bench: Bench, tmp_path: Path) -> None:
    """The daemon runs with 077, and so do these tests: what a container's users share is made with modes of its own."""
    script = "umask; ulimit -Hc; stat -c %a / /host /volume /made /made/here; sleep 1000"
    host = HostConfig(NetworkMode="none", Binds=[f"{tmp_path}/bind/deep:/host", "data:/volume", "more:/made/here"])
    container_id = await bench.run("sh", "-c", script, host=host, User="1000")
    config = ExecConfig(Cmd=["sh", "-c", "umask > /host/umask"], User="0")
    exec_id = await bench.engine.exec_create(container_id, config)
    await bench.engine.exec_start(exec_id, detach=True)
    await until(lambda: not bench.engine.exec_inspect(exec_id).Running, what="exec ended")
    await bench.engine.stop(container_id, timeout_s=0)
    assert (await bench.output(container_id)).split() == ["0022", "unlimited", *["755"] * 5]
    assert (tmp_path / "bind/deep/umask").read_text() == "0022\n"
    assert stat.S_IMODE((tmp_path / "bind").stat().st_mode) == 0o755


@pytest.mark.parametrize("step", ["create", "start"])
@pytest.mark.parametrize("before", [True, False])
async def test_removal_by_force_in_the_middle_of_a_start(bench: Bench, step: str, before: bool) -> None:
    container_id = await bench.create("sleep", "1000")
    with hold(conmon, step, before=before) as held:
        starting = asyncio.ensure_future(bench.engine.start(container_id))
        await held.reached()
        removing = asyncio.ensure_future(bench.engine.remove(container_id, force=True))
        await asyncio.sleep(0)
        held.go_on()
        await removing
        await asyncio.gather(starting, return_exceptions=True)
    assert bench.engine.list(all=True) == []


@pytest.mark.parametrize("step", ["create", "start"])
@pytest.mark.parametrize("before", [True, False])
async def test_a_start_whose_caller_goes_away_is_whole(bench: Bench, step: str, before: bool) -> None:
    container_id = await bench.create("sleep", "1000")
    with hold(conmon, step, before=before) as held:
        starting = asyncio.ensure_future(bench.engine.start(container_id))
        await held.reached()
        starting.cancel()
        await asyncio.sleep(0)
        held.go_on()
        await asyncio.gather(starting, return_exceptions=True)
    await until(lambda: bench.engine.inspect(container_id).State.Status in ("created", "running"), what="rest")
    await bench.engine.remove(container_id, force=True)
    assert not any((bench.folder / "run" / "bundles").iterdir())


async def test_a_create_whose_caller_goes_away_leaves_no_record(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, renamed = threading.Event(), threading.Event(), threading.Event()

    def slow_fsync(descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
        if begun.is_set():
            renamed.set()  # the second is the folder's
        begun.set()
        go_on.wait(30)
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", slow_fsync)
        creating = asyncio.ensure_future(bench.create("true"))
        assert await asyncio.to_thread(begun.wait, 30)
        creating.cancel()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        await asyncio.gather(creating, return_exceptions=True)
        assert await asyncio.to_thread(renamed.wait, 30)
    for folder in ("containers", "images/snapshots/containers"):
        assert not any((bench.folder / "state" / folder).iterdir())


async def test_what_cannot_be_given_back_does_not_keep_the_rest(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(container_id: str, *, staying: str = "") -> None:
        raise HostError("nftables: busy")

    container_id = await bench.run("sleep", "1000", host=HostConfig())
    with monkeypatch.context() as patch:
        patch.setattr(bench.engine.networks, "release", refuses)
        await bench.engine.stop(container_id, timeout_s=0)
        bundle = bench.folder / "run" / "bundles" / container_id
        await until(lambda: not bundle.exists(), what="the bundle's end")
        await until(lambda: str(bench.folder) not in Path("/proc/self/mounts").read_text(), what="the mount's end")


async def test_what_cannot_be_noted_down_is_not_started(bench: Bench) -> None:
    container_id = await bench.create("sleep", "1000")
    in_the_way = bench.folder / "state" / "containers" / container_id / "state.json"
    in_the_way.mkdir()
    with pytest.raises(HostError, match="cannot save the state of container"):
        await bench.engine.start(container_id)
    assert not any((bench.folder / "run" / "bundles").iterdir())
    in_the_way.rmdir()
    await bench.engine.start(container_id)
    pid = bench.engine.inspect(container_id).State.Pid
    await bench.engine.close()
    bench.engine = bench.make()
    await bench.engine.open()
    assert bench.engine.inspect(container_id).State.Pid == pid


async def test_twenty_at_once(bench: Bench) -> None:
    ids = await asyncio.gather(*(bench.run("true") for _ in range(20)))
    results = await asyncio.gather(*(bench.engine.wait(container_id) for container_id in ids))
    assert {result.StatusCode for result in results} == {0}
    await asyncio.gather(*(bench.engine.remove(container_id) for container_id in ids))


async def _printed(bench: Bench, container_id: str, text: str) -> None:
    async for line in bench.engine.logs(container_id, follow=True):
        if text in line.data.decode():
            return


MORE_THAN_THERE_IS = [
    (
        HostConfig(NetworkMode="none", NanoCpus=100_000 * 10**9),
        r"range of CPUs is from 0.01 to [0-9]+.00, as there are",
    ),
    (HostConfig(NetworkMode="none", NanoCpus=1), "range of CPUs is from 0.01 to "),
    (HostConfig(NetworkMode="none", CpuShares=1), "the minimum allowed cpu-shares is 2"),
    (HostConfig(NetworkMode="none", PidsLimit=2**40), "invalid PIDs limit"),
    (HostConfig(NetworkMode="none", CpusetCpus="0,7000"), "Requested CPUs are not available - requested 0,7000, avail"),
    (HostConfig(NetworkMode="none", CpusetMems="3000"), "Requested memory nodes are not available - requested 3000, a"),
]


@pytest.mark.parametrize(("host", "message"), MORE_THAN_THERE_IS)
async def test_limits_that_the_host_does_not_have_are_refused_and_nothing_is_made(
    bench: Bench, host: HostConfig, message: str
) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        await bench.create("true", host=host, Volumes={"/anonymous": {}})
    assert bench.engine.list(all=True) == []
    assert bench.engine.volumes.list() == []


async def test_limits_up_to_what_the_host_has_are_given(bench: Bench) -> None:
    found = cgroups.capacity(cgroups.detect(), bench.cgroup)
    host = HostConfig(
        NetworkMode="none",
        NanoCpus=found.cpus * 10**9,
        CpusetCpus=found.cpuset_cpus,
        CpusetMems=found.cpuset_mems,
    )
    container_id = await bench.run("true", host=host)
    assert (await bench.engine.wait(container_id)).StatusCode == 0


async def test_limits_and_policy_change_while_it_runs(bench: Bench) -> None:
    host = HostConfig(NetworkMode="none", Memory=64 << 20, MemorySwap=128 << 20, PidsLimit=50, NanoCpus=10**9)
    container_id = await bench.run("sleep", "1000", host=host)
    policy = RestartPolicy(Name="unless-stopped")
    await bench.engine.update(container_id, HostConfig(Memory=32 << 20, PidsLimit=20, RestartPolicy=policy))
    assert limits_of(bench, container_id) == [str(32 << 20), "100000", "20"]
    for wanted in (HostConfig(CpuQuota=1000), HostConfig(Memory=1 << 30)):
        with pytest.raises(ConflictError):
            await bench.engine.update(container_id, wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "check", lambda _host, _capacity: None)  # as if the host had lost the CPU a moment ago
        with pytest.raises(HostError, match="runc update"):
            await bench.engine.update(container_id, HostConfig(CpusetCpus="7000"))
    for wanted, message in MORE_THAN_THERE_IS:
        with pytest.raises(InvalidParameterError, match=message):
            await bench.engine.update(container_id, wanted)
    await bench.engine.close()
    bench.engine = bench.make()
    await bench.engine.open()
    kept = bench.engine.inspect(container_id).HostConfig
    assert (kept.Memory, kept.PidsLimit, kept.NanoCpus, kept.RestartPolicy) == (32 << 20, 20, 10**9, policy)
    assert kept.CpusetCpus == ""


async def test_a_device_rule_opens_what_is_closed(bench: Bench) -> None:
    """10:229 is /dev/fuse, which any process may open that is let."""
    if not Path("/dev/fuse").exists():
        pytest.skip("this kernel has no FUSE")
    opened = []
    for rules in ([], ["c 10:229 rw"], ["c 10:* rw"]):
        host = HostConfig(NetworkMode="none", DeviceCgroupRules=rules)
        container_id = await bench.run("sh", "-c", "mknod /node c 10 229 && exec 3<>/node", host=host)
        await bench.engine.wait(container_id)
        opened.append(bench.engine.inspect(container_id).State.ExitCode == 0)
    assert opened == [False, True, True]
