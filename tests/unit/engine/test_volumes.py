"""Volumes with options of the local driver: what is mounted, for how long, and that nothing else is touched."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from runtime.errors import ConflictError, HostError, InvalidParameterError
from runtime.events import EventBus
from runtime.types import HostConfig, Mount, VolumeDriverConfig, VolumeOptions
from runtime.volumes import Volumes, mounting
from runtime.volumes.population import populate
from tests.unit.engine.support import Bench

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "1G"}, "quota size requested but no quota support"),
        ({"foo": "x"}, 'invalid option: "foo"'),
        ({"type": "nfs"}, 'missing required option: "device"'),
        ({"o": "bind"}, 'missing required option: "device"'),
        ({"device": "/x", "type": ""}, 'missing required option: "type"'),
    ],
)
def test_options_that_say_nothing_mountable_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        mounting.validate(options)


def test_names_of_servers_are_looked_up_for_shares_alone() -> None:
    nfs = {"type": "nfs", "o": "addr=files,rw", "device": ":/share"}
    assert mounting.table(nfs, "/to", lambda name: f"<{name}>") == ":/share /to nfs addr=<files>,rw 0 0\n"
    tmpfs = {"type": "tmpfs", "device": "tmpfs", "o": "addr=files"}
    assert mounting.table(tmpfs, "/to", lambda name: f"<{name}>") == "tmpfs /to tmpfs addr=files 0 0\n"


def test_no_value_of_an_option_makes_another_field_or_line() -> None:
    odd = {"type": "cifs", "o": "password=a b\t\\#\n/etc /x none bind", "device": "//host/a share"}
    assert mounting.table(odd, "/a b", lambda name: name) == (
        "//host/a\\040share /a\\040b cifs password=a\\040b\\011\\134\\043\\012/etc\\040/x\\040none\\040bind 0 0\n"
    )
    with pytest.raises(InvalidParameterError, match="it has a NUL"):
        mounting.validate({"type": "tmpfs", "device": "a\0b"})


@pytest.mark.parametrize("options", ["password=hush", "user=me,pass=hush", "password2=hush,,hush", "password=hu,,sh"])
def test_a_password_is_neither_in_the_command_line_nor_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    """Everybody on the host may read /proc/PID/cmdline."""
    tool, seen = tmp_path / "mount", tmp_path / "seen"
    tool.write_text(f'#!/bin/sh\ntr "\\0" " " </proc/$$/cmdline >{seen}\ncat "$4"\nexit 32\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    share = {"type": "cifs", "o": options, "device": "//127.0.0.1/share"}
    with pytest.raises(HostError, match=r"pass(word2?)?=\*{8}") as refused:
        mounting.VolumeMounts().hold(tmp_path, share, "c1")
    assert "//127.0.0.1/share" in str(refused.value)  # the file reached it
    for text in (seen.read_text(), str(refused.value)):
        assert "hu" not in text
        assert "sh" not in text.replace("share", "").replace("/bin/sh", "")


async def test_a_folder_of_the_host_is_mounted_while_it_is_used_and_never_deleted(bench: Bench, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    options = {"type": "none", "o": "bind", "device": str(shared)}
    volume = await bench.engine.volumes.create("shared", options=options)
    assert volume.Options == options
    host = HostConfig(NetworkMode="none", Binds=["shared:/x"])
    first = await bench.run("sh", "-c", "echo kept > /x/file; sleep 1000", host=host)
    second = await bench.run("sh", "-c", "until [ -s /x/file ]; do sleep 0.05; done", host=host)
    assert (await bench.engine.wait(second)).StatusCode == 0
    assert (shared / "file").read_text() == "kept\n"
    assert mounting.is_mounted(Path(volume.Mountpoint)), "the first container still uses it"

    await bench.engine.close()
    bench.engine = bench.make()
    await bench.engine.open()
    assert mounting.is_mounted(Path(volume.Mountpoint)), "it runs on under another daemon"
    assert bench.engine.volumes.get("shared").Options == options

    await bench.engine.remove(first, force=True)
    await bench.engine.remove(second)
    assert not mounting.is_mounted(Path(volume.Mountpoint))
    await bench.engine.volumes.remove("shared")
    assert not Path(volume.Mountpoint).exists()
    assert (shared / "file").exists()


@pytest.mark.parametrize("word", ["bind", "rbind"])
async def test_the_end_of_a_volume_unmounts_nothing_of_the_host(tmp_path: Path, word: str) -> None:
    """Of a folder on a shared mount, as systemd makes them all; one disk was there before, one came meanwhile."""
    share, target = tmp_path / "share", tmp_path / "_data"
    target.mkdir()
    share.mkdir()

    async def call(*command: str) -> None:
        await asyncio.to_thread(subprocess.run, command, check=True)

    await call("mount", "-t", "tmpfs", "tmpfs", str(share))
    try:
        await call("mount", "--make-shared", str(share))
        for name in ("before", "meanwhile"):
            (share / name).mkdir()
        await call("mount", "-t", "tmpfs", "tmpfs", str(share / "before"))
        mounts = mounting.VolumeMounts()
        await asyncio.to_thread(mounts.hold, target, {"type": "none", "o": word, "device": str(share)}, "somebody")
        await call("mount", "-t", "tmpfs", "tmpfs", str(share / "meanwhile"))
        assert mounting.is_mounted(target / "meanwhile"), "the host's mounts are seen in the volume"
        await asyncio.to_thread(mounts.release, "somebody")
        assert not mounting.is_mounted(target)
        assert mounting.is_mounted(share / "before")
        assert mounting.is_mounted(share / "meanwhile")
    finally:
        await call("umount", "-R", str(share))


@pytest.mark.parametrize(
    ("words", "expected"), [("bind,ro", True), ("rbind", True), ("bind,rslave", False), ("ro", False)]
)
def test_what_a_volume_says_of_propagation_holds(words: str, expected: bool) -> None:
    assert mounting.is_bind_of_no_propagation({"type": "none", "o": words, "device": "/x"}) is expected


async def test_a_mount_that_a_crash_left_is_taken_away_and_its_content_is_not(bench: Bench, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "file").write_text("kept")
    options = {"type": "none", "o": "bind", "device": str(shared)}
    volumes = [await bench.engine.volumes.create(name, options=options) for name in ("one", "two")]
    for volume in volumes:
        mounting.VolumeMounts().hold(Path(volume.Mountpoint), options, "somebody")
    await bench.engine.volumes.remove("one")
    await bench.engine.close()
    bench.engine = bench.make()
    await bench.engine.open()
    assert not mounting.is_mounted(Path(volumes[1].Mountpoint))
    assert (shared / "file").exists()


async def test_a_volume_with_a_foreign_mount_is_not_removed(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    volume = await bench.engine.volumes.create("plain")
    foreign = mounting.VolumeMounts()
    foreign.hold(Path(volume.Mountpoint), {"type": "none", "o": "bind", "device": str(tmp_path)}, "somebody")
    try:
        with pytest.raises(HostError, match="is a mount point"):
            await bench.engine.volumes.remove("plain")
    finally:
        foreign.release("somebody")
    await bench.engine.volumes.remove("plain")
    assert (tmp_path / "file").exists()


async def test_options_of_a_mount_reach_the_volume_it_makes(bench: Bench) -> None:
    driver = VolumeDriverConfig(Name="local", Options={"type": "tmpfs", "device": "tmpfs", "o": "size=64k"})
    mount = Mount(Type="volume", Source="scratch", Target="/x", VolumeOptions=VolumeOptions(DriverConfig=driver))
    container_id = await bench.run("df", "/x", host=HostConfig(NetworkMode="none", Mounts=[mount]))
    assert (await bench.engine.wait(container_id)).StatusCode == 0
    assert " 64 " in await bench.output(container_id)


async def test_what_cannot_be_mounted_is_the_start_s_error(bench: Bench) -> None:
    options = {"type": "none", "o": "bind", "device": "/does/not/exist"}
    volume = await bench.engine.volumes.create("lost", options=options)
    container_id = await bench.create("true", host=HostConfig(NetworkMode="none", Binds=["lost:/x"]))
    with pytest.raises(HostError, match=r"error while mounting volume '.*': failed to mount local volume: .*not exist"):
        await bench.engine.start(container_id)
    assert not mounting.is_mounted(Path(volume.Mountpoint))


async def test_a_volume_filled_by_half_is_filled_anew(tmp_path: Path) -> None:
    source, disk = tmp_path / "source", tmp_path / "disk"
    (source / "d").mkdir(parents=True)
    (source / "d" / "first").write_bytes(bytes(1000))
    (source / "large").write_bytes(bytes(200_000))
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    await asyncio.to_thread(subprocess.run, mount, check=True)
    try:
        data = disk / "volume" / "_data"
        data.mkdir(parents=True)
        with pytest.raises(OSError, match="No space left"):
            await asyncio.to_thread(populate, data, source, "/")
        assert list(data.iterdir()) == []
        await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,size=1m", str(disk)], check=True)
        await asyncio.to_thread(populate, data, source, "/")
        assert (data / "large").stat().st_size == 200_000

        (data / "large").write_bytes(b"half")
        (data.parent / "copying").touch()  # as a daemon that was killed in the middle leaves it
        await asyncio.to_thread(populate, data, source, "/")
        assert (data / "large").stat().st_size == 200_000
        (data / "large").write_bytes(b"the container's own")
        await asyncio.to_thread(populate, data, source, "/")
        assert (data / "large").read_bytes() == b"the container's own"
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", str(disk)], check=True)


async def test_a_volume_that_cannot_be_made_leaves_no_folder(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "nr_inodes=2", "tmpfs", str(tmp_path)]  # room for one folder
    await asyncio.to_thread(subprocess.run, mount, check=True)
    try:
        volumes = Volumes(tmp_path, EventBus())
        await volumes.open()
        with pytest.raises(HostError, match="No space left on device"):
            await volumes.create("full")
        assert volumes.list() == []
        assert not any(tmp_path.iterdir())
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", str(tmp_path)], check=True)


async def test_a_volume_is_not_removed_from_under_a_create(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go = asyncio.Event(), asyncio.Event()
    prepare = bench.engine.images.prepare_rootfs

    async def slow(image: str, container_id: str) -> None:
        entered.set()
        await go.wait()
        await prepare(image, container_id)

    monkeypatch.setattr(bench.engine.images, "prepare_rootfs", slow)
    volume = await bench.engine.volumes.create("shared")
    async with asyncio.TaskGroup() as group:
        host = HostConfig(NetworkMode="none", Binds=["shared:/x"])
        creating = group.create_task(bench.create("true", host=host))
        await entered.wait()
        with pytest.raises(ConflictError, match=r"remove shared: volume is in use - \[[0-9a-f]{64}\]"):
            await bench.engine.volumes.remove("shared")
        assert (await bench.engine.volumes.prune({"all": ["true"]})).VolumesDeleted == []
        go.set()
    assert Path(volume.Mountpoint).is_dir()
    await bench.engine.remove(creating.result())
    await bench.engine.volumes.remove("shared")


async def test_a_create_that_fails_or_is_cancelled_uses_no_volume_any_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = asyncio.Event()

    async def endless(_image: str, _container_id: str) -> None:
        entered.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(bench.engine.images, "prepare_rootfs", endless)
    host = HostConfig(NetworkMode="none", Binds=["shared:/x", "/anonymous"])
    creating = asyncio.ensure_future(bench.create("true", host=host))
    await entered.wait()
    creating.cancel()
    await asyncio.wait([creating])
    assert [volume.Name for volume in bench.engine.volumes.list()] == ["shared"], "the anonymous one went"
    await bench.engine.volumes.remove("shared")


async def test_a_volume_that_is_wanted_while_it_is_removed_is_made_anew(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path, EventBus())
    await volumes.open()
    old = await volumes.create("data")
    (Path(old.Mountpoint) / "file").touch()
    _, new = await asyncio.gather(volumes.remove("data"), volumes.create("data"))
    assert volumes.list() == [new]
    assert list(Path(new.Mountpoint).iterdir()) == []
    again = Volumes(tmp_path, EventBus())
    await again.open()
    assert again.list() == [new]


class KilledError(BaseException):
    """Stands for SIGKILL: what comes after it does not happen."""


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_removal_with_volumes_that_a_kill_cut_short_is_finished_by_the_next_daemon(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    host = HostConfig(NetworkMode="none", Binds=["named:/n"])
    first = await bench.create("true", host=host, Volumes={"/alone": {}, "/shared": {}})
    names = {point.Destination: point.Name for point in bench.engine.inspect(first).Mounts}
    second = await bench.create("true", host=HostConfig(NetworkMode="none", Binds=[f"{names['/shared']}:/x"]))

    async def killed(*_: object, **__: object) -> None:
        raise KilledError

    monkeypatch.setattr(
        bench.engine.volumes if wanted else bench.engine.images, "remove" if wanted else "remove_rootfs", killed
    )
    with pytest.raises(KilledError):
        await bench.engine.remove(first, volumes=wanted)
    await bench.engine.close()
    for _ in range(2):
        bench.engine = bench.make()
        await bench.engine.open()
        kept = {names["/shared"], "named"} | (set() if wanted else {names["/alone"]})
        assert {volume.Name for volume in bench.engine.volumes.list()} == kept
        assert [summary.Id for summary in bench.engine.list(all=True)] == [second]
        assert {path.name for path in (bench.folder / "state" / "containers").iterdir()} == {second}
        await bench.engine.close()
    bench.engine = bench.make()
    await bench.engine.open()


async def test_a_volume_goes_whatever_a_container_nested_in_it(tmp_path: Path) -> None:
    """Paths longer than PATH_MAX are made with a few ``cd``."""
    volumes = Volumes(tmp_path, EventBus())
    await volumes.open()
    volume = await volumes.create()
    name = "n" * 254
    make = f"for _ in $(seq 20); do mkdir {name} && cd -P {name} || exit 1; done; printf 12345 > file"
    await asyncio.to_thread(subprocess.run, ["sh", "-c", make], cwd=volume.Mountpoint, check=True)
    report = await volumes.prune()
    assert report.VolumesDeleted == [volume.Name]
    assert report.SpaceReclaimed == 5
    assert list(tmp_path.iterdir()) == []
