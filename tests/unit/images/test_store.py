"""The store end to end: real registry, real layers, real mounts."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.images import (
    ArchiveError,
    ContainerUse,
    DigestMismatchError,
    ImageConflictError,
    ImageNotFoundError,
    ImageStore,
    InvalidArgumentError,
    ManifestUnknownError,
    NoSpaceError,
    PlatformMismatchError,
    RegistryAuth,
    RegistryUnavailableError,
    SnapshotError,
    UnauthorizedError,
)
from tests.support_images import (
    Registry,
    busybox_archive,
    docker_archive,
    image_config,
    in_chunks,
    make_tar,
    running_registry,
    sha256,
)

pytestmark = pytest.mark.root

BASE = make_tar([("etc", None), ("etc/base", b"base"), ("etc/gone", b"x"), ("dir", None), ("dir/old", b"old")])
TOP = make_tar([("etc/.wh.gone", b""), ("etc/top", b"top"), ("dir/.wh..wh..opq", b""), ("dir/new", b"new")])
Messages = list[dict[str, object]]


def statuses(messages: Messages) -> list[object]:
    return [message["status"] for message in messages]


def leftovers(root: Path) -> list[Path]:
    return [*(root / "content/ingest").iterdir(), *(root / "snapshots/tmp").iterdir()]


async def test_pulled_image_mounts_with_whiteouts_applied(store: ImageStore, registry: Registry) -> None:
    registry.push_image("app/two", "v1", [BASE, TOP])
    messages: Messages = []
    image = await store.pull(f"{registry.address}/app/two:v1", progress=messages.append)
    assert image.repo_tags == (f"{registry.address}/app/two:v1",)
    assert image.size_bytes == 4 + 1 + 3 + 3 + 3
    assert image.config.Cmd == ["sh"]
    assert messages[0] == {"status": "Pulling from app/two", "id": "v1"}
    assert statuses(messages).count("Pull complete") == 2
    assert statuses(messages)[-2:] == [
        f"Digest: {image.repo_digests[0].partition('@')[2]}",
        f"Status: Downloaded newer image for {registry.address}/app/two:v1",
    ]
    await store.prepare_rootfs(image.id, "c1")
    path = await store.mount_rootfs("c1")
    try:
        assert await store.mount_rootfs("c1") == path
        assert sorted(os.listdir(path / "etc")) == ["base", "top"]
        assert os.listdir(path / "dir") == ["new"]
        (path / "etc/base").write_text("changed!")
        assert await store.rootfs_size("c1") == 8
    finally:
        await store.remove_rootfs("c1")
    assert not path.exists()


async def test_second_pull_is_up_to_date(store: ImageStore, registry: Registry) -> None:
    registry.push_image("app/again", "latest", [BASE])
    name = f"{registry.address}/app/again"
    first = await store.pull(name)
    messages: Messages = []
    assert await store.pull(name, progress=messages.append) == first
    assert "Already exists" in statuses(messages)
    assert statuses(messages)[-1] == f"Status: Image is up to date for {name}:latest"


async def test_many_pulls_at_once_share_the_work(store: ImageStore, registry: Registry) -> None:
    registry.push_image("app/shared", "a", [BASE, TOP])
    registry.push_image("app/shared", "b", [BASE])
    names = [f"{registry.address}/app/shared:{tag}" for tag in "abab"]
    images = await asyncio.gather(*(store.pull(name) for name in names))
    assert images[0].id == images[2].id
    assert images[1].id == images[3].id
    assert len(store.list()) == 2


async def test_cancelled_pull_leaves_the_other_caller_alone(store: ImageStore, registry: Registry) -> None:
    registry.push_image("app/cancel", "v", [BASE, TOP])
    name = f"{registry.address}/app/cancel:v"
    started = asyncio.Event()
    doomed = asyncio.ensure_future(store.pull(name, progress=lambda _: started.set()))
    other = asyncio.ensure_future(store.pull(name))
    await started.wait()
    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doomed
    assert (await other).repo_tags == (name,)


async def test_pushed_image_keeps_its_digest(store: ImageStore, registry: Registry) -> None:
    manifest = registry.push_image("app/origin", "v", [BASE, TOP])
    await store.pull(f"{registry.address}/app/origin:v")
    copy = f"{registry.address}/app/copy:w"
    await store.tag(f"{registry.address}/app/origin:v", copy)
    messages: Messages = []
    assert await store.push(copy, progress=messages.append) == sha256(manifest)
    assert messages[0] == {"status": f"The push refers to repository [{registry.address}/app/copy]"}
    assert messages[-1]["aux"] == {"Tag": "w", "Digest": sha256(manifest), "Size": len(manifest)}
    assert [m.get("status") for m in messages].count("Pushed") == 2
    again: Messages = []
    await store.push(copy, progress=again.append)
    assert [m.get("status") for m in again].count("Layer already exists") == 2
    with pytest.raises(ImageNotFoundError):
        await store.push(f"{registry.address}/app/absent")


async def test_index_gives_the_wanted_platform(store: ImageStore, registry: Registry) -> None:
    entries = []
    for architecture in ("arm64", "amd64"):
        layer = make_tar([("arch", architecture.encode())])
        data = registry.push_image("app/multi", "", [layer], architecture=architecture)
        entries.append(
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": sha256(data),
                "size": len(data),
                "platform": {"os": "linux", "architecture": architecture},
            }
        )
    kind = "application/vnd.oci.image.index.v1+json"
    index = registry.put_manifest("app/multi", "latest", {"schemaVersion": 2, "mediaType": kind, "manifests": entries})
    name = f"{registry.address}/app/multi"
    found = await store.distribution_inspect(name)
    assert found.descriptor.digest == sha256(index)
    assert [platform.architecture for platform in found.platforms] == ["arm64", "amd64"]
    image = await store.pull(name, platform="linux/arm64/v8")
    assert image.architecture == "arm64"
    assert image.repo_digests == (f"{name}@{sha256(index)}",)
    assert (await store.pull(name, platform="linux/amd64")).architecture == "amd64"
    assert store.get(image.id).repo_tags == ()
    with pytest.raises(
        PlatformMismatchError, match="no matching manifest for linux/s390x in the manifest list entries"
    ):
        await store.pull(name, platform="linux/s390x")
    assert (await store.pull(f"{name}@{sha256(index)}")).architecture == "amd64"


async def test_platform_of_a_single_manifest_is_checked(store: ImageStore, registry: Registry) -> None:
    registry.push_image("app/arm", "v", [BASE], architecture="arm64")
    with pytest.raises(PlatformMismatchError, match="does not match the specified platform"):
        await store.pull(f"{registry.address}/app/arm:v", platform="linux/amd64")


async def test_refusals_in_dockerds_words(store: ImageStore, registry: Registry) -> None:
    registry.push_image("app/known", "v1", [BASE])
    with pytest.raises(ManifestUnknownError, match=r"manifest for .*/app/known:v2 not found: manifest unknown"):
        await store.pull(f"{registry.address}/app/known:v2")
    with pytest.raises(ImageNotFoundError, match=r"^No such image: nothing:latest$"):
        store.get("nothing")
    with pytest.raises(
        RegistryUnavailableError,
        match=r'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused',
    ):
        await store.pull("127.0.0.1:1/a")
    assert store.list() == []


async def test_private_registry_wants_credentials(store: ImageStore) -> None:
    hashed = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"  # bcrypt of "secret"
    with running_registry(htpasswd=hashed) as private:
        name = f"{private.address}/app"
        with pytest.raises(UnauthorizedError, match="no basic auth credentials"):
            await store.pull(name)
        with pytest.raises(UnauthorizedError, match="unauthorized"):
            await store.pull(name, auth=RegistryAuth(username="user", password="wrong"))
        right = RegistryAuth(username="user", password="secret")
        with pytest.raises(ManifestUnknownError):
            await store.pull(name, auth=right)
        await store.load(in_chunks(docker_archive([BASE, TOP], [name])))
        digest = await store.push(name, auth=right)
        assert (await store.distribution_inspect(name, right)).descriptor.digest == digest
        with pytest.raises(UnauthorizedError):
            await store.push(name)


async def test_loaded_busybox_runs_in_its_root(store: ImageStore) -> None:
    assert await store.load(in_chunks(busybox_archive())) == ["busybox:latest"]
    image = store.get("busybox")
    await store.prepare_rootfs(image.id, "c2")
    path = await store.mount_rootfs("c2")
    try:
        process = await asyncio.create_subprocess_exec(
            "chroot", str(path), "/bin/ls", "/bin/sh", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert output == b"/bin/sh\n"
    finally:
        await store.remove_rootfs("c2")


async def test_saved_image_loads_again(store: ImageStore, tmp_path: Path) -> None:
    await store.load(in_chunks(docker_archive([BASE, TOP], ["me/app:1", "me/app:2"])))
    image = store.get("me/app:1")
    saved = b"".join([chunk async for chunk in store.save(["me/app:1", image.id])])
    other = ImageStore(tmp_path / "other")
    await other.open()
    try:
        assert await other.load(in_chunks(saved, 1000)) == ["me/app:1"]
        assert other.get("me/app:1").id == image.id
        oci = strip(saved, "manifest.json")
        assert await other.load(in_chunks(oci)) == ["me/app:1"]
        assert leftovers(tmp_path / "other") == []
    finally:
        await other.close()


def strip(archive: bytes, name: str) -> bytes:
    members = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None and member.name != name:
                members.append((member.name, file.read()))
    return make_tar(members)


async def test_import_applies_changes(store: ImageStore) -> None:
    image = await store.import_tar(
        in_chunks(BASE),
        repo="me/imported",
        tag="x",
        changes=['CMD ["/bin/sh", "-c", "true"]', "ENV A=1 B='2 3'", "EXPOSE 80 53/udp", "WORKDIR /srv", "USER 5"],
        message="by hand",
    )
    assert image.repo_tags == ("me/imported:x",)
    assert image.config.Cmd == ["/bin/sh", "-c", "true"]
    assert image.config.Env == ["A=1", "B=2 3"]
    assert image.config.ExposedPorts == {"80/tcp": {}, "53/udp": {}}
    assert (image.config.WorkingDir, image.config.User) == ("/srv", "5")
    assert store.inspect("me/imported:x")["Comment"] == "by hand"
    with pytest.raises(InvalidArgumentError, match="FROM is not a valid change command"):
        await store.import_tar(in_chunks(BASE), changes=["FROM x"])


async def test_names_move_and_removal_follows_docker(
    store: ImageStore, used_images: dict[str, list[ContainerUse]]
) -> None:
    await store.load(in_chunks(docker_archive([BASE], ["a:1"])))
    await store.load(in_chunks(docker_archive([BASE, TOP], ["b:1"])))
    a, b = store.get("a:1").id, store.get("b:1").id
    await store.tag("a:1", "b:1")
    assert store.get("b:1").id == a
    assert store.get(b[7:19]).repo_tags == ()
    assert [image["Id"] for image in store.list(filters={"dangling": ["true"]})] == [b]
    with pytest.raises(ImageConflictError, match=r"\(must be forced\) - image is referenced in multiple repositories"):
        await store.remove(a)
    used_images[a] = [ContainerUse("f" * 64, running=False)]
    assert [item.Untagged for item in await store.remove("b:1")] == ["b:1"]
    with pytest.raises(ImageConflictError) as refused:
        await store.remove("a:1")
    assert str(refused.value) == (
        'conflict: unable to remove repository reference "a:1" (must force) - '
        f"container {'f' * 12} is using its referenced image {a[7:19]}"
    )
    report = await store.prune()
    assert [item.Deleted for item in report.ImagesDeleted][:1] == [b]
    assert report.SpaceReclaimed > 0
    used_images.clear()
    removed = await store.remove("a:1")
    assert [item.Untagged for item in removed if item.Untagged] == ["a:1"]
    assert store.list() == []


async def test_everything_goes_with_the_last_image(store: ImageStore, tmp_path: Path) -> None:
    await store.load(in_chunks(docker_archive([BASE, TOP], ["a:1"])))
    await store.remove("a:1")
    engine = tmp_path / "engine"
    assert list((engine / "content/blobs/sha256").iterdir()) == []
    assert [path.name for path in (engine / "snapshots/layers").iterdir()] == ["empty"]
    assert leftovers(engine) == []


async def test_container_keeps_the_layers_of_a_removed_image(store: ImageStore) -> None:
    await store.load(in_chunks(docker_archive([BASE], ["a:1"])))
    await store.prepare_rootfs(store.get("a:1").id, "c3")
    await store.remove("a:1", force=True)
    path = await store.mount_rootfs("c3")
    assert (path / "etc/base").read_text() == "base"
    await store.remove_rootfs("c3")
    assert store._state.snapshots.chains() == []


async def test_state_survives_a_restart_and_a_crash(tmp_path: Path) -> None:
    root = tmp_path / "engine"
    store = ImageStore(root)
    await store.open()
    await store.load(in_chunks(docker_archive([BASE, TOP], ["a:1"])))
    before = store.inspect("a:1")
    await store.prepare_rootfs(store.get("a:1").id, "c4")
    await store.close()
    (root / "snapshots/tmp/1-1/fs/deep").mkdir(parents=True)
    (root / "snapshots/layers/0123456789abcdef01234567").mkdir()
    (root / "content/ingest/stream-1").write_bytes(b"half")
    again = ImageStore(root)
    await again.open()
    try:
        assert again.inspect("a:1") == before
        assert leftovers(root) == []
        assert len(list((root / "snapshots/layers").iterdir())) == 3
        assert again.rootfs("c4").image_id == before["Id"]
        await again.remove_rootfs("c4")
    finally:
        await again.close()


@pytest.mark.parametrize("damage", [b"", b"\0" * 64, b'{"Version":1,"Images":[{"ID":', b'{"Images":{}}', b"\xff\xfe"])
async def test_a_damaged_record_of_images_removes_nothing(tmp_path: Path, damage: bytes) -> None:
    store = ImageStore(tmp_path)
    await store.open()
    await store.load(in_chunks(docker_archive([BASE], ["a:1"])))
    before, chains = store.inspect("a:1"), store._state.snapshots.chains()
    blobs = sorted((tmp_path / "content/blobs/sha256").iterdir())
    await store.close()
    file, aside = tmp_path / "images.json", tmp_path / "images.json.damaged"
    whole = file.read_bytes()
    file.write_bytes(damage)
    for _ in range(2):  # the next start knows as little
        again = ImageStore(tmp_path)
        await again.open()
        assert again.list() == []
        assert again.set_aside == aside
        assert aside.read_bytes() == damage
        await again.load(in_chunks(docker_archive([TOP], ["b:1"])))
        await again.remove("b:1", force=True)
        assert set(chains) <= set(again._state.snapshots.chains())
        assert set(blobs) <= set((tmp_path / "content/blobs/sha256").iterdir())
        await again.close()
    aside.unlink()
    file.write_bytes(whole)
    mended = ImageStore(tmp_path)
    await mended.open()
    assert mended.inspect("a:1") == before
    assert mended.set_aside is None
    assert mended._state.snapshots.chains() == chains
    await mended.close()


async def test_image_with_a_lost_blob_is_left_out(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    await store.open()
    await store.load(in_chunks(docker_archive([BASE], ["a:1"])))
    image = store.get("a:1")
    await store.close()
    (tmp_path / "content/blobs/sha256" / image.id[7:]).write_bytes(b"{}")
    again = ImageStore(tmp_path)
    await again.open()
    assert again.list() == []
    assert await again.load(in_chunks(docker_archive([BASE], ["a:1"]))) == ["a:1"]
    await again.close()


async def test_image_of_a_hundred_layers_mounts(store: ImageStore) -> None:
    layers = [make_tar([(f"f{number}", b"")]) for number in range(120)]
    await store.load(in_chunks(docker_archive(layers, ["deep:1"])))
    await store.prepare_rootfs(store.get("deep:1").id, "c" * 64)
    path = await store.mount_rootfs("c" * 64)
    try:
        assert len(os.listdir(path)) == 120
    finally:
        await store.remove_rootfs("c" * 64)


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 700, 1024, 5000, -1024, -600])
async def test_truncated_archive_is_refused_and_leaves_nothing(store: ImageStore, tmp_path: Path, cut: int) -> None:
    archive = docker_archive([BASE], ["a:1"])
    with pytest.raises(ArchiveError):
        await store.load(in_chunks(archive[: cut if cut >= 0 else archive.rindex(b"manifest.json") + 400]))
    assert store.list() == []
    assert leftovers(tmp_path / "engine") == []
    assert list((tmp_path / "engine/content/blobs/sha256").iterdir()) == []


async def test_layer_that_is_not_what_its_diff_id_says_is_refused(store: ImageStore, tmp_path: Path) -> None:
    config = image_config([TOP])
    manifest = json.dumps([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l.tar"]}]).encode()
    archive = make_tar([("c.json", config), ("l.tar", BASE), ("manifest.json", manifest)])
    with pytest.raises(DigestMismatchError):
        await store.load(in_chunks(archive))
    assert store._state.snapshots.chains() == []
    assert leftovers(tmp_path / "engine") == []


async def test_cancelled_load_ends_its_thread(store: ImageStore, tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield docker_archive([BASE], ["a:1"])[:3000]
        reached.set()
        await asyncio.Event().wait()

    reached = asyncio.Event()
    loading = asyncio.ensure_future(store.load(endless()))
    await reached.wait()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert leftovers(tmp_path / "engine") == []


async def test_full_disk_gives_one_clear_error_and_no_partial_file(tmp_path: Path, registry: Registry) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    await asyncio.to_thread(subprocess.run, ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
    store = ImageStore(disk / "engine")
    try:
        await store.open()
        registry.push_image("app/big", "v", [make_tar([("big", os.urandom(4 << 20))])])
        with pytest.raises(NoSpaceError, match="no space left on device"):
            await store.pull(f"{registry.address}/app/big:v")
        assert leftovers(disk / "engine") == []
        layers = [make_tar([("fits", os.urandom(300_000))]), make_tar([("big", os.urandom(4 << 20))])]
        registry.push_image("app/half", "v", layers)
        with pytest.raises(NoSpaceError):
            await store.pull(f"{registry.address}/app/half:v")
        for folder, kept in (("snapshots/layers", ["empty"]), ("content/blobs/sha256", [])):
            assert [path.name for path in (disk / "engine" / folder).iterdir()] == kept, "the disk stays full"
        registry.push_image("app/bomb", "v", [make_tar([("zeros", bytes(8 << 20))])])
        with pytest.raises(NoSpaceError):
            await store.pull(f"{registry.address}/app/bomb:v")
        assert leftovers(disk / "engine") == []
        assert store.list() == []
    finally:
        await store.close()
        await asyncio.to_thread(subprocess.run, ["umount", str(disk)], check=True)


async def test_root_file_system_needs_its_layers_and_a_plain_id(store: ImageStore) -> None:
    await store.load(in_chunks(docker_archive([BASE], ["a:1"])))
    with pytest.raises(SnapshotError, match="invalid container ID"):
        await store.prepare_rootfs("a:1", "../../etc")
    with pytest.raises(SnapshotError, match="has no root file system"):
        await store.mount_rootfs("unknown")
    with pytest.raises(ImageNotFoundError):
        await store.prepare_rootfs("sha256:" + "0" * 64, "c5")
    await store.remove_rootfs("unknown")
