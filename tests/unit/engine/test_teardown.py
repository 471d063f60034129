"""What is left of an engine whose daemon was killed, and its removal."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.containers import cgroups
from runtime.kernel import netlink, nft
from runtime.resolver.manager import ResolverProcess
from runtime.resolver.port import Asker, PutAsker
from runtime.teardown import (
    Report,
    Target,
    TeardownRefusedError,
    conmons,
    hierarchies,
    in_group,
    main,
    mounts_below,
    resolvers,
    teardown,
)
from tests.unit.engine.support import Bench
from tests.waiting import until

ROOT = Path(__file__).parents[3]
MOUNTS = """\
22 1 8:1 / / rw - ext4 /dev/vda rw
23 22 0:5 / /srv/s\\040x/engine rw - ext4 /dev/vdb rw
24 22 0:6 / /srv/s\\040x/engine/a rw - overlay overlay rw
25 22 0:7 / /srv/s\\040x/engine/a/b rw - tmpfs tmpfs rw
26 22 0:8 / /srv/s\\040x/engine-other/a rw - tmpfs tmpfs rw
27 22 0:9 / /run/e/x rw shared:3 - tmpfs tmpfs rw
28 22 0:9 / /srv/s\\040x/engine/a rw - tmpfs tmpfs rw
29 22 0:20 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
30 22 0:21 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
31 22 0:22 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def target(folder: Path, *, cgroup: str, bridge: str = "swarm0") -> Target:
    return Target(folder / "state", folder / "run", bridge, cgroup)


def test_mounts_come_deepest_first_and_only_from_below_the_folders() -> None:
    state = Path("/srv/s x/engine")
    expected = [state / "a" / "b", state / "a", state / "a", Path("/run/e/x")]
    assert mounts_below(MOUNTS, [state, Path("/run/e")]) == expected


def test_named_and_unified_hierarchies_count() -> None:
    assert [path.name for path in hierarchies(MOUNTS)] == ["memory", "systemd", "unified"]


def test_membership_is_by_whole_names() -> None:
    assert in_group("8:pids:/swarm/c1\n0::/\n", "/swarm")
    assert in_group("0::/swarm\n", "/swarm")
    assert not in_group("8:pids:/swarm-other/c1\n0::/\n", "/swarm")


@pytest.mark.parametrize(
    ("state", "run", "bridge", "cgroup"),
    [
        ("/var", "/run/e", "swarm0", "/swarm"),
        ("/var/lib/e", "/", "swarm0", "/swarm"),
        ("var/lib/e", "/run/e", "swarm0", "/swarm"),
        ("/var/lib/../..", "/run/e", "swarm0", "/swarm"),
        ("/var/lib/e", "/run/e", "", "/swarm"),
        ("/var/lib/e", "/run/e", "a b", "/swarm"),
        ("/var/lib/e", "/run/e", "swarm0", "/"),
        ("/var/lib/e", "/run/e", "swarm0", "swarm"),
        ("/var/lib/e", "/run/e", "swarm0", "/swarm/.."),
    ],
)
def test_arguments_that_reach_too_far_are_refused(state: str, run: str, bridge: str, cgroup: str) -> None:
    with pytest.raises(TeardownRefusedError):
        Target(Path(state), Path(run), bridge, cgroup)
    assert main(["--state", state, "--run", run, "--bridge", bridge, "--cgroup-parent", cgroup]) == 1


def test_a_daemon_that_holds_the_lock_is_left_alone(tmp_path: Path) -> None:
    with (tmp_path / "swarmd.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711")
        file.flush()
        with pytest.raises(TeardownRefusedError, match="PID 4711"):
            teardown(target(tmp_path, cgroup="/test-none"))


@pytest.mark.root
async def test_all_that_a_killed_daemon_left_goes_and_a_second_time_finds_nothing(bench: Bench) -> None:
    await bench.engine.close()
    shared = bench.folder / "shared"
    shared.mkdir()
    arguments = [str(bench.folder / "state"), str(bench.folder / "run"), bench.cgroup, str(shared)]
    daemon = _start(sys.executable, "-m", "tests.unit.engine.daemon", *arguments)
    assert daemon.stdout is not None
    with daemon.stdout:
        while "ready" not in (line := await asyncio.to_thread(daemon.stdout.readline)):
            assert line, "the daemon ended"
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    groups = [mount / bench.cgroup.lstrip("/") for mount in set(cgroups.detect().mounts.values())]
    inits = [int(path.read_text()) for path in (bench.folder / "run" / "bundles").glob("*/init.pid")]
    assert len(inits) == 2
    assert len(conmons(bench.folder / "run")) == 2
    names = ResolverProcess(bench.folder / "run" / "resolver")
    await names.tell(PutAsker(Asker(container_id="c", namespace=f"/proc/{inits[0]}/ns/net", networks=())))
    assert resolvers(bench.folder / "run") == {names.pid}
    await names.close()
    _pause(groups, inits[0])
    bystander = _start("sleep", "1000")

    wanted = target(bench.folder, cgroup=bench.cgroup)
    report = await asyncio.to_thread(teardown, wanted)

    assert report.left == []
    assert any(f"processes of cgroup {bench.cgroup}" in phrase for phrase in report.removed)
    assert conmons(bench.folder / "run") == resolvers(bench.folder / "run") == set()
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inits), what="the containers' processes gone")
    assert str(bench.folder) not in Path("/proc/self/mountinfo").read_text()
    assert not any(group.exists() for group in groups)
    assert nft.run("list tables") == ""
    assert _links() == {"lo"}
    assert bystander.poll() is None
    bystander.kill()
    bystander.communicate()
    assert await asyncio.to_thread(teardown, wanted) == Report()

    bench.engine = bench.make()  # an engine on what is left finds both ended
    await bench.engine.open()
    assert {summary.State for summary in bench.engine.list(all=True)} == {"exited"}


@pytest.mark.root
def test_a_device_that_is_no_bridge_stays(tmp_path: Path, network_namespace: None) -> None:
    subprocess.run(["ip", "link", "add", "dum0", "type", "veth", "peer", "dum1"], check=True)
    report = teardown(target(tmp_path, cgroup="/test-none", bridge="dum0"))
    assert report.left == ["device dum0: no bridge, so not the engine's"]
    subprocess.run(["ip", "link", "show", "dum0"], check=True, capture_output=True)


def _start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _links() -> set[str]:
    with netlink.connection() as sock:
        return set(netlink.links(sock))


def _pause(groups: list[Path], pid: int) -> None:
    """Freeze a container as a pause does: such a process takes no signal in version 1 until thawed."""
    for group in groups:
        for folder, _, _ in os.walk(group):
            procs = Path(folder) / "cgroup.procs"
            if str(pid) in procs.read_text().split():
                for name, value in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
                    if (Path(folder) / name).exists():
                        (Path(folder) / name).write_text(value)
