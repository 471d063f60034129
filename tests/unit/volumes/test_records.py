"""Volumes on disk: removed in one step, and never half."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from runtime.errors import HostError
from runtime.events import EventBus
from runtime.volumes import Volumes, mounting
from tests.waiting import until


async def opened(root: Path) -> Volumes:
    volumes = Volumes(root, EventBus())
    await volumes.open()
    return volumes


async def test_a_volume_whose_content_would_not_go_is_removed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Path] = []

    def remove(path: Path) -> None:
        tries.append(path)
        if len(tries) == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        os.rename(path, tmp_path / "gone")

    volumes = await opened(tmp_path / "volumes")
    monkeypatch.setattr(volumes._leftovers, "_remove", remove)
    volume = await volumes.create("data")
    (Path(volume.Mountpoint) / "file").touch()
    await volumes.remove("data")
    assert volumes.list() == []
    made = await volumes.create("data")  # of the same name, and not touched by what goes on
    await until(lambda: len(tries) == 2, what="another try")
    assert Path(made.Mountpoint).is_dir()
    await volumes.close()


async def test_a_removal_that_fails_leaves_a_whole_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = await opened(tmp_path / "volumes")
    volume = await volumes.create("data")
    (Path(volume.Mountpoint) / "file").touch()

    def refused(path: Path) -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(mounting, "is_mounted", refused)
    with pytest.raises(HostError, match="Too many open files"):
        await volumes.remove("data")
    monkeypatch.undo()
    await volumes.close()
    successor = await opened(tmp_path / "volumes")
    assert (Path(successor.get("data").Mountpoint) / "file").exists()
    await successor.close()


async def test_what_a_crash_left_of_a_removal_goes_at_the_next_start(tmp_path: Path) -> None:
    volumes = await opened(tmp_path / "volumes")
    await volumes.create("data")
    await volumes.close()
    (tmp_path / "volumes" / "data").rename(tmp_path / "volumes" / ".removed-1")
    successor = await opened(tmp_path / "volumes")
    assert successor.list() == []
    assert list((tmp_path / "volumes").iterdir()) == []
    await successor.close()


async def test_what_cannot_be_measured_has_no_size(tmp_path: Path) -> None:
    volumes = await opened(tmp_path / "volumes")
    volume = await volumes.create("data")
    (Path(volume.Mountpoint) / "file").write_bytes(b"12345")
    assert await volumes.size_bytes(volume) == 5
    Path(volume.Mountpoint).rename(tmp_path / "elsewhere")
    Path(volume.Mountpoint).touch()
    assert await volumes.size_bytes(volume) is None
    await volumes.close()


async def test_what_a_kill_left_of_a_write_is_swept_and_the_content_is_not(tmp_path: Path) -> None:
    volumes = await opened(tmp_path / "volumes")
    content = Path((await volumes.create("data")).Mountpoint)
    await volumes.close()
    left, kept = content.parent / ".volume.json.4711.tmp", content / ".volume.json.4711.tmp"
    for path in (left, kept):
        path.write_bytes(b"half")
    await opened(tmp_path / "volumes")
    assert not left.exists()
    assert kept.exists()
