"""Mounts, volumes, users and the files that the engine puts into a container."""

from __future__ import annotations

from pathlib import Path
from typing import Any  # Any: as in Bench.run

import pytest

from runtime.errors import ConflictError, InvalidParameterError, VolumeNotFoundError
from runtime.types import ContainerConfig, HostConfig, Mount, TmpfsOptions, Ulimit, VolumeOptions
from tests.support_images import BUSYBOX_TAG
from tests.unit.engine.support import Bench

pytestmark = pytest.mark.root


async def run_to_end(bench: Bench, script: str, host: HostConfig, **config: Any) -> str:
    container_id = await bench.run("sh", "-c", script, host=host, **config)
    result = await bench.engine.wait(container_id)
    output = await bench.output(container_id)
    assert result.StatusCode == 0, output
    return output


async def test_binds_read_only_and_created(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "file").write_text("content")
    binds = [f"{tmp_path}/given:/given:ro", f"{tmp_path}/made:/made"]
    script = "cat /given/file; touch /given/x 2>/dev/null && exit 1; touch /made/new"
    assert await run_to_end(bench, script, HostConfig(NetworkMode="none", Binds=binds)) == "content"
    assert (tmp_path / "made" / "new").exists()
    missing = Mount(Type="bind", Source="/does/not/exist", Target="/x")
    with pytest.raises(InvalidParameterError, match="bind source path does not exist: /does/not/exist"):
        await bench.create("true", host=HostConfig(NetworkMode="none", Mounts=[missing]))


async def test_volumes_are_filled_from_the_image_kept_and_removed(bench: Bench) -> None:
    host = HostConfig(NetworkMode="none", Binds=["data:/etc"])
    assert "root:x" in await run_to_end(bench, "cat /etc/passwd; echo mine > /etc/own", host)
    assert await run_to_end(bench, "cat /etc/own", host) == "mine\n"
    with pytest.raises(ConflictError, match="volume is in use"):
        await bench.engine.volumes.remove("data")
    container_id = await bench.create("true", Volumes={"/anonymous": {}})
    point = bench.engine.inspect(container_id).Mounts[0]
    assert (point.Type, point.Destination, len(point.Name)) == ("volume", "/anonymous", 64)
    await bench.engine.remove(container_id, volumes=True)
    with pytest.raises(VolumeNotFoundError):
        bench.engine.volumes.get(point.Name)
    for summary in bench.engine.list(all=True):
        await bench.engine.remove(summary.Id, volumes=True)
    await bench.engine.volumes.remove("data")


async def test_tmpfs_read_only_root_shm_and_subpath(bench: Bench) -> None:
    await bench.engine.volumes.create("tree")
    (Path(bench.engine.volumes.get("tree").Mountpoint) / "below").mkdir()
    host = HostConfig(
        NetworkMode="none",
        ReadonlyRootfs=True,
        ShmSize=1 << 20,
        Tmpfs={"/t": "size=1m"},
        Mounts=[
            Mount(Type="tmpfs", Target="/u", TmpfsOptions=TmpfsOptions(SizeBytes=1 << 20, Mode=0o700)),
            Mount(Type="volume", Source="tree", Target="/v", VolumeOptions=VolumeOptions(Subpath="below")),
        ],
    )
    script = "touch /root/x 2>/dev/null && exit 1; touch /t/x /u/x /v/x; stat -c %a /u; df -k /dev/shm | tail -1"
    output = await run_to_end(bench, script, host)
    assert output.startswith("700\n")
    assert "1024" in output
    assert (Path(bench.engine.volumes.get("tree").Mountpoint) / "below" / "x").exists()


async def test_identity_limits_and_environment(bench: Bench) -> None:
    host = HostConfig(
        NetworkMode="none",
        ExtraHosts=["db:10.1.2.3"],
        Dns=["9.9.9.9"],
        Init=True,
        Ulimits=[Ulimit(Name="nofile", Soft=100, Hard=200)],
    )
    script = "id -u; hostname; pwd; ulimit -n; echo $HOME $X $PATH; grep db /etc/hosts; cat /etc/resolv.conf; cat /proc/1/comm"
    output = await run_to_end(bench, script, host, User="nobody", Hostname="box", WorkingDir="/made/here", Env=["X=1"])
    lines = output.splitlines()
    assert lines[:4] == ["65534", "box", "/made/here", "100"]
    assert lines[4] == "/ 1 /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert lines[5] == "10.1.2.3\tdb"
    assert [line for line in lines[6:-1] if line and not line.startswith("#")] == ["nameserver 9.9.9.9"]
    assert lines[-1].startswith("docker-init")


async def test_an_unknown_user_is_told(bench: Bench) -> None:
    container_id = await bench.create("true", User="ghost")
    with pytest.raises(InvalidParameterError, match="unable to find user ghost: no matching entries in passwd file"):
        await bench.engine.start(container_id)


async def test_privileged_gets_devices_and_capabilities(bench: Bench) -> None:
    output = await run_to_end(
        bench, "grep CapEff /proc/self/status; ls /dev | wc -l", HostConfig(NetworkMode="none", Privileged=True)
    )
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd"))
    assert own.split()[1] in output
    assert int(output.splitlines()[-1]) > 20


async def test_list_and_its_filters(bench: Bench) -> None:
    first = await bench.run("sleep", "1000", Labels={"a": "1", "b": "2"})
    config = ContainerConfig(Image=BUSYBOX_TAG, Cmd=["true"], Labels={"a": "2"})
    second, _ = await bench.engine.create(config, HostConfig(NetworkMode="none"), name="second")

    def ids(**filters: list[str]) -> list[str]:
        return [
            summary.Id for summary in bench.engine.list({k.replace("_", "-"): v for k, v in filters.items()}, all=True)
        ]

    assert [summary.Id for summary in bench.engine.list()] == [first]
    assert ids() == [second, first]
    assert ids(label=["a"]) == [second, first]
    assert ids(label=["a=1", "b"]) == [first]
    assert ids(name=["sec"]) == ids(status=["created"]) == ids(since=[first]) == [second]
    assert ids(ancestor=["busybox"]) == [second, first]
    assert ids(is_task=["true"]) == []
    assert ids(network=["none"]) == [second, first]
    with pytest.raises(InvalidParameterError, match="invalid filter 'colour'"):
        ids(colour=["red"])
    row = bench.engine.list()[0]
    assert (row.Command, row.State, row.Image) == ("sleep 1000", "running", BUSYBOX_TAG)
    assert row.Status.startswith("Up ")
