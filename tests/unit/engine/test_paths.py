"""Paths that a container or an image could turn elsewhere: subpaths, population of volumes, working directories."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import msgspec
import pytest

from base.trees import remove_tree
from runtime.containers import conmon, pins, working_dir
from runtime.errors import EngineError, InvalidParameterError, StartError
from runtime.types import BindOptions, ExecConfig, HostConfig, Mount, VolumeOptions
from runtime.volumes import population
from tests.unit.engine.support import Bench, hold
from tests.waiting import until

pytestmark = pytest.mark.root


def subpath_of(volume: str, subpath: str) -> HostConfig:
    mount = Mount(Type="volume", Source=volume, Target="/v", VolumeOptions=VolumeOptions(Subpath=subpath))
    return HostConfig(NetworkMode="none", Mounts=[mount])


async def test_a_subpath_that_is_swapped_after_the_look_at_it_leads_nowhere_else(bench: Bench, tmp_path: Path) -> None:
    data = Path((await bench.engine.volumes.create("shared")).Mountpoint)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "host").touch()
    (data / "below").mkdir()
    (data / "below" / "own").touch()
    container_id = await bench.create("ls", "/v", host=subpath_of("shared", "below"))
    with hold(conmon, "_spawn") as made_ready:
        starting = asyncio.ensure_future(bench.engine.start(container_id))
        await made_ready.reached()
        (data / "below").rename(data / "moved")
        (data / "below").symlink_to(secret)
        made_ready.go_on()
        await starting
    assert (await bench.engine.wait(container_id)).StatusCode == 0
    assert await bench.output(container_id) == "own\n"
    assert not any((bench.folder / "run" / "pins").iterdir()), "they are gone before the container runs"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/etc", "path concatenation escapes the base directory, base: .*/_data, subpath: link"),
        ("../../..", "path concatenation escapes the base directory"),
        ("/proc/self/root", "path concatenation escapes the base directory"),
        ("nowhere", "cannot access path .*/_data/link: no such file or directory"),
        ("link", "cannot access path .*/_data/link: too many levels of symbolic links"),
    ],
)
async def test_a_subpath_that_leads_out_is_refused_and_leaves_nothing(bench: Bench, target: str, message: str) -> None:
    data = Path((await bench.engine.volumes.create("shared")).Mountpoint)
    (data / "below").mkdir()
    (data / "link").symlink_to(target)
    host = subpath_of("shared", "link")
    assert host.Mounts
    good = Mount(Type="volume", Source="shared", Target="/a", VolumeOptions=VolumeOptions(Subpath="below"))
    host.Mounts.insert(0, good)
    container_id = await bench.create("true", host=host)
    with pytest.raises(InvalidParameterError, match=message):
        await bench.engine.start(container_id)
    assert not any((bench.folder / "run" / "pins").iterdir())
    assert (data / "below").is_dir()


async def test_volumes_of_another_container_are_as_they_are_there(bench: Bench, tmp_path: Path) -> None:
    """A subpath does not become the volume; what is read-only stays so, and becomes so on request."""
    data = Path((await bench.engine.volumes.create("shared")).Mountpoint)
    (data / "below").mkdir()
    (data / "secret").touch()
    binds = [f"{tmp_path}:/b:ro,rslave", "plain:/p"]
    host = msgspec.structs.replace(subpath_of("shared", "below"), Binds=binds, Tmpfs={"/t": ""})
    first = await bench.create("true", host=host)
    for mode, writable in (("", True), (":ro", False), (":z,ro", False), (":rw", True)):
        script = "ls /v; touch /v/x 2>/dev/null && rm /v/x && echo rw; touch /b/x 2>/dev/null || echo ro; [ ! -e /t ]"
        other = HostConfig(NetworkMode="none", VolumesFrom=[f"{first}{mode}"])
        second = await bench.run("sh", "-c", script, host=other)
        assert (await bench.engine.wait(second)).StatusCode == 0
        assert (await bench.output(second)).split() == (["rw"] if writable else []) + ["ro"]
        points = {point.Destination: point for point in bench.engine.inspect(second).Mounts}
        assert points["/b"].Propagation == "rslave"
        assert (writable, False) == (points["/p"].RW, points["/b"].RW)
    for mode in (":nocopy", ":rshared", ":", ":ro,x"):
        with pytest.raises(InvalidParameterError, match="invalid mode: "):
            await bench.create("true", host=HostConfig(NetworkMode="none", VolumesFrom=[f"{first}{mode}"]))


async def test_a_read_only_bind_is_so_with_what_is_mounted_below_it(bench: Bench, tmp_path: Path) -> None:
    below = tmp_path / "host" / "below"
    below.mkdir(parents=True)
    mount = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "tmpfs", str(below))
    assert await mount.wait() == 0
    try:
        script = "touch /h/x 2>/dev/null && echo own; touch /h/below/x 2>/dev/null && echo below; true"
        writable = BindOptions(ReadOnlyNonRecursive=True)
        for host, expected in (
            (HostConfig(NetworkMode="none", Binds=[f"{tmp_path}/host:/h:ro"]), ""),
            (HostConfig(NetworkMode="none", Mounts=[bind(tmp_path / "host", BindOptions())]), ""),
            (HostConfig(NetworkMode="none", Mounts=[bind(tmp_path / "host", writable)]), "below\n"),
        ):
            container_id = await bench.run("sh", "-c", script, host=host)
            assert (await bench.engine.wait(container_id)).StatusCode == 0
            assert await bench.output(container_id) == expected
    finally:
        unmount = await asyncio.create_subprocess_exec("umount", str(below))
        assert await unmount.wait() == 0


def bind(source: Path, options: BindOptions) -> Mount:
    return Mount(Type="bind", Source=str(source), Target="/h", ReadOnly=True, BindOptions=options)


async def test_a_file_of_a_volume_may_be_a_subpath(bench: Bench) -> None:
    data = Path((await bench.engine.volumes.create("shared")).Mountpoint)
    (data / "real").write_text("content")
    (data / "file").symlink_to("real")
    container_id = await bench.run("cat", "/v", host=subpath_of("shared", "file"))
    assert (await bench.engine.wait(container_id)).StatusCode == 0
    assert await bench.output(container_id) == "content"


async def test_pins_that_a_crash_left_go_and_what_they_are_of_stays(bench: Bench) -> None:
    data = Path((await bench.engine.volumes.create("shared")).Mountpoint)
    (data / "below").mkdir()
    (data / "below" / "file").touch()
    container_id = await bench.create("true", host=subpath_of("shared", "below"))

    def killed(*_: object) -> None:
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conmon, "_spawn", killed)
        patch.setattr(conmon, "unpin", lambda _folder: None)
        with pytest.raises(KilledError):
            await bench.engine.start(container_id)
        await bench.engine.close()
    assert any((bench.folder / "run" / "pins").iterdir())
    bench.engine = bench.make()
    await bench.engine.open()
    assert not any((bench.folder / "run" / "pins").iterdir())
    assert (data / "below" / "file").exists()


async def test_a_pin_takes_no_mount_of_the_host_away_with_it(tmp_path: Path) -> None:
    """On shared mounts, as systemd makes them all, an unmount below a recursive bind would reach the original."""
    share, below = tmp_path / "share", tmp_path / "share" / "below" / "sub"
    share.mkdir()

    async def call(*command: str) -> None:
        process = await asyncio.create_subprocess_exec(*command)
        assert await process.wait() == 0

    await call("mount", "-t", "tmpfs", "tmpfs", str(share))
    try:
        await call("mount", "--make-shared", str(share))
        below.mkdir(parents=True)
        await call("mount", "-t", "tmpfs", "tmpfs", str(below))
        fd = os.open(share / "below", os.O_PATH)
        place = pins.pin(tmp_path / "pins", fd)
        os.close(fd)
        assert os.path.ismount(place / "sub")
        pins.unpin(tmp_path / "pins")
        assert not (tmp_path / "pins").exists()
        assert os.path.ismount(below)
    finally:
        await call("umount", "-R", str(share))


class KilledError(BaseException):
    """Stands for SIGKILL: what comes after it does not happen."""


# ---- population --------------------------------------------------------------------------------------------------


async def test_a_volume_is_filled_from_where_the_image_links_to(bench: Bench) -> None:
    container_id = await bench.create("ls", "/linked", Volumes={"/linked": {}})
    root = Path(bench.engine.images.rootfs(container_id).path).parent / "upper"
    (root / "real").mkdir()
    (root / "real" / "file").touch()
    (root / "linked").symlink_to("/real")
    await bench.engine.start(container_id)
    assert (await bench.engine.wait(container_id)).StatusCode == 0
    assert await bench.output(container_id) == "file\n"


async def test_a_volume_is_filled_past_links_that_another_container_puts_there(tmp_path: Path) -> None:
    image, outside, data = tmp_path / "image", tmp_path / "outside", tmp_path / "volume" / "_data"
    for folder in (image / "folder", outside, data):
        folder.mkdir(parents=True)
    (image / "folder" / "file").write_text("from the image")
    (image / "file").write_text("from the image")
    (outside / "kept").write_text("the host's")
    with hold(population, "_copy_tree") as looked_at:
        filling = asyncio.ensure_future(asyncio.to_thread(population.populate, data, image, "/"))
        await looked_at.reached()
        (data / "file").symlink_to(outside / "kept")
        (data / "folder").symlink_to(outside)
        looked_at.go_on()
        await filling
    assert sorted(path.name for path in outside.iterdir()) == ["kept"]
    assert (outside / "kept").read_text() == "the host's"


async def test_a_volume_is_filled_whatever_the_depth_and_with_holes_kept(tmp_path: Path) -> None:
    image, data = tmp_path / "image", tmp_path / "volume" / "_data"
    image.mkdir()
    data.mkdir(parents=True)
    with (image / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"middle")
    (image / "program").touch()
    (image / "program").chmod(0o4755)
    name = "n" * 254
    script = f"for _ in $(seq 60); do mkdir {name} && cd -P {name} || exit 1; done; echo deep > file"
    made = await asyncio.create_subprocess_exec("sh", "-c", script, cwd=image)
    assert await made.wait() == 0
    await asyncio.to_thread(population.populate, data, image, "/")
    script = f"for _ in $(seq 60); do cd -P {name} || exit 1; done; cat file"
    read = await asyncio.create_subprocess_exec("sh", "-c", script, cwd=data, stdout=asyncio.subprocess.PIPE)
    assert (await read.communicate())[0] == b"deep\n"
    copied = (data / "sparse").stat()
    assert (copied.st_size, copied.st_blocks < 1000) == (1 << 30, True)
    assert (data / "program").stat().st_mode & 0o7777 == 0o4755
    await asyncio.to_thread(remove_tree, image)
    await asyncio.to_thread(remove_tree, data)


# ---- working directories -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/proc/self/fd/7", "/proc/1/cwd", "//proc//self", "/etc/../proc/self/fd/8/"])
async def test_a_working_directory_below_proc_is_refused(bench: Bench, path: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"the working directory '{path}' is invalid: it leads into /proc"):
        await bench.create("true", WorkingDir=path)
    assert bench.engine.list(all=True) == []
    container_id = await bench.run("sleep", "1000")
    with pytest.raises(InvalidParameterError, match="it leads into /proc"):
        await bench.engine.exec_create(container_id, ExecConfig(Cmd=["true"], WorkingDir=path))


@pytest.mark.parametrize("target", ["/proc/1", "/proc/self", "/proc/1/cwd", "/proc/self/fd/7", "/host/1", "/v/up"])
async def test_no_link_leads_a_process_into_proc(bench: Bench, target: str) -> None:
    """Of the image; in a volume; and through a second /proc."""
    data = Path((await bench.engine.volumes.create("shared")).Mountpoint)
    (data / "up").symlink_to("/proc/1")
    host = HostConfig(NetworkMode="none", Binds=["/proc:/host", "shared:/v"])
    container_id = await bench.create("sleep", "1000", host=host, WorkingDir="/w")
    upper = Path(bench.engine.images.rootfs(container_id).path).parent / "upper"
    (upper / "w").symlink_to(target)
    with pytest.raises(EngineError):
        await bench.engine.start(container_id)
    assert bench.engine.inspect(container_id).State.Status == "created"

    victim = await bench.run("sh", "-c", f"ln -s {target} /x; echo; exec sleep 1000", host=host)
    while not await bench.output(victim):
        await asyncio.sleep(0.01)
    exec_id = await bench.engine.exec_create(victim, ExecConfig(Cmd=["pwd"], WorkingDir="/x"))
    with pytest.raises((InvalidParameterError, StartError)):
        await bench.engine.exec_start(exec_id, detach=True)


async def test_a_working_directory_that_the_container_replaces_is_none_for_an_exec(bench: Bench) -> None:
    script = "cd /; rmdir /w; ln -s /proc/1 /w; echo; exec sleep 1000"
    container_id = await bench.run("sh", "-c", script, WorkingDir="/w")
    while not await bench.output(container_id):
        await asyncio.sleep(0.01)
    exec_id = await bench.engine.exec_create(container_id, ExecConfig(Cmd=["pwd"]))
    with pytest.raises(InvalidParameterError, match="the working directory '/w' is invalid: it leads into /proc"):
        await bench.engine.exec_start(exec_id, detach=True)


async def test_a_file_system_that_does_not_answer_holds_one_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a share whose server is gone, and only as long as it does not answer."""
    monkeypatch.setattr(working_dir, "ANSWER_TIMEOUT_S", 0.1)
    container_id, other = await bench.run("sleep", "1000"), await bench.run("sleep", "1000")

    async def run(container_id: str) -> None:
        exec_id = await bench.engine.exec_create(container_id, ExecConfig(Cmd=["true"], WorkingDir="/etc"))
        await bench.engine.exec_start(exec_id, detach=True)

    def looks() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("working directory")]

    with hold(working_dir, "_open") as share:
        for _ in range(5):
            with pytest.raises(StartError, match="the file system of the working directory '/etc' does not answer"):
                await run(container_id)
        assert looks() == [f"working directory {container_id[:12]}"]
        monkeypatch.setattr(working_dir, "ANSWER_TIMEOUT_S", 30)
        share.go_on()
        await run(other)
    await until(lambda: not looks(), what="the look came back")
    await run(container_id)


async def test_execs_at_once_do_not_refuse_one_another(bench: Bench) -> None:
    container_id = await bench.run("sleep", "1000")

    async def run() -> None:
        exec_id = await bench.engine.exec_create(container_id, ExecConfig(Cmd=["true"], WorkingDir="/etc"))
        await bench.engine.exec_start(exec_id, detach=True)

    await asyncio.gather(*(run() for _ in range(8)))


async def test_an_exec_in_a_folder_that_is_not_there_has_docker_s_error(bench: Bench) -> None:
    container_id = await bench.run("sleep", "1000")
    exec_id = await bench.engine.exec_create(container_id, ExecConfig(Cmd=["pwd"], WorkingDir="/nowhere"))
    with pytest.raises(StartError, match=r'chdir to cwd \("/nowhere"\) .* failed: no such file') as caught:
        await bench.engine.exec_start(exec_id, detach=True)
    assert caught.value.exit_code == 127


async def test_proc_itself_and_folders_that_are_not_there_yet_are_fine(bench: Bench) -> None:
    for path in ("/proc", "/made/here"):
        container_id = await bench.run("pwd", WorkingDir=path)
        assert (await bench.engine.wait(container_id)).StatusCode == 0
        assert await bench.output(container_id) == f"{path}\n"
