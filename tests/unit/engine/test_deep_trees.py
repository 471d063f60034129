"""Content that is deeper than a path may be long or a program may recurse: in images, containers, volumes and groups."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.containers import cgroups
from runtime.teardown import Target, teardown
from runtime.types import ContainerConfig, HostConfig
from runtime.unpack.rooted import DEPTH_MAX
from tests.support_images import busybox_rootfs
from tests.unit.engine.support import Bench
from tests.waiting import until

pytestmark = pytest.mark.root

LONG = "n" * 254
DEEP = f"""
nest() {{ for _ in $(seq $2); do mkdir $1 && cd $1 || exit 1; done; printf deep > file; }}
for top in /new /v; do mkdir -p $top; (cd $top; nest {LONG} 15) || exit 1; (cd $top; nest d 1500) || exit 1; done
"""


def deep_image() -> bytes:
    """busybox with both shapes below /image."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(busybox_rootfs())) as plain,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for member in plain:
            tar.addfile(member, plain.extractfile(member) if member.isreg() else None)
        for names in ([LONG] * 15, ["d"] * (DEPTH_MAX - 1)):
            info = tarfile.TarInfo("/".join(["image", *names, "file"]))
            info.size = 4
            tar.addfile(info, io.BytesIO(b"deep"))
    return out.getvalue()


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def reopen(bench: Bench) -> None:
    await bench.engine.close()
    bench.engine = bench.make()
    await bench.engine.open()


def below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_deep_content_is_measured_lives_through_a_start_and_goes(bench: Bench) -> None:
    snapshots, volumes = bench.folder / "state" / "images" / "snapshots", bench.folder / "state" / "volumes"
    layers = below(snapshots / "layers")
    await bench.engine.images.import_tar(chunks(deep_image()), repo="deep", tag="latest")
    for tag in ("busybox", "deep"):
        host = HostConfig(NetworkMode="none", Binds=[f"{tag}:/v"])
        container_id, _ = await bench.engine.create(ContainerConfig(Image=tag, Cmd=["sh", "-c", DEEP]), host)
        await bench.engine.start(container_id)
        assert (await bench.engine.wait(container_id)).StatusCode == 0, await bench.output(container_id)
    for _ in range(2):
        usage = await bench.engine.disk_usage({"container", "volume", "image"})
        assert usage.Containers is not None
        assert usage.Volumes is not None
        assert [summary.SizeRw for summary in usage.Containers] == [8, 8]
        assert [volume["UsageData"] for volume in usage.Volumes] == [{"Size": 8, "RefCount": 1}] * 2
        await reopen(bench)

    report = await bench.engine.prune({})
    assert (len(report.ContainersDeleted), report.SpaceReclaimed) == (2, 16)
    await bench.engine.volumes.remove("busybox")
    pruned = await bench.engine.volumes.prune({"all": ["true"]})
    assert (pruned.VolumesDeleted, pruned.SpaceReclaimed) == (["deep"], 8)
    await bench.engine.images.remove("deep")
    await reopen(bench)  # the removals are done when the engine is closed
    assert below(snapshots / "layers") == layers
    assert below(snapshots / "containers") == below(snapshots / "tmp") == []
    assert [name for name in below(volumes) if (volumes / name).is_dir()] == []


GROUPS = f"""
nest() {{ for _ in $(seq $2); do mkdir $1 && cd -P $1 || exit 1; done; }}
for top in /sys/fs/cgroup /sys/fs/cgroup/pids; do
  if [ -f $top/cgroup.procs ]; then
    (cd $top && nest d 1200) || exit 1
    (cd $top && nest {LONG} 20 && sh -c 'echo $$ > cgroup.procs && exec sleep 1000') &
  fi
done
sleep 0.5
echo ready
wait
"""


async def nested(bench: Bench) -> str:
    """A container that made groups of both shapes and runs a process in the deepest."""
    container_id = await bench.run("sh", "-c", GROUPS, host=HostConfig(NetworkMode="none", Privileged=True))
    async with asyncio.timeout(30):
        while await bench.output(container_id) != "ready\n":
            await asyncio.sleep(0.05)
    return container_id


async def test_a_container_whose_groups_are_deep_is_killed_and_goes(bench: Bench) -> None:
    container_id = await nested(bench)
    paths = cgroups.container_paths(cgroups.detect(), bench.cgroup, container_id)
    assert any((path / "d" / "d").exists() and (path / LONG).exists() for path in paths)
    running = cgroups.processes(paths)
    assert running
    await reopen(bench)
    assert [summary.State for summary in bench.engine.list(all=True)] == ["running"]
    await bench.engine.remove(container_id, force=True)
    assert not any(path.exists() for path in paths)
    assert not any(Path(f"/proc/{pid}").exists() for pid in running)


async def test_teardown_ends_what_runs_in_deep_groups(bench: Bench) -> None:
    container_id = await nested(bench)
    layout = cgroups.detect()
    running = cgroups.processes(cgroups.container_paths(layout, bench.cgroup, container_id))
    await bench.engine.close()
    wanted = Target(bench.folder / "state", bench.folder / "run", "swarm0", bench.cgroup)
    report = await asyncio.to_thread(teardown, wanted)
    assert report.left == []
    assert not any((mount / bench.cgroup.lstrip("/")).exists() for mount in layout.mounts.values())
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in running), what="its processes gone")
    bench.engine = bench.make()
    await bench.engine.open()
    assert [summary.State for summary in bench.engine.list(all=True)] == ["exited"]
