"""The state folder is the daemon's alone: no local user reads it, runs what containers left in it, or holds its lock."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import NoReturn
from unittest.mock import Mock, patch

import pytest

from api import daemon, swarmd
from api.options import parse_options
from api.startup import LOCK_FILE, StartError, own_state
from base.files import open_lock_file
from runtime.engine import Engine
from runtime.images import ImagesError
from worker.membership.zygote import Zygote


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_a_new_state_folder_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with own_state(tmp_path / "state"):
            assert mode(tmp_path / "state") == 0o700
            assert mode(tmp_path / "state" / LOCK_FILE) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize(("before", "after"), [(0o711, 0o710), (0o755, 0o710), (0o1777, 0o710), (0o700, 0o700)])
def test_the_state_folder_of_an_earlier_version_is_closed_with_its_lock(
    tmp_path: Path, before: int, after: int
) -> None:
    (tmp_path / LOCK_FILE).touch(mode=0o644)
    (tmp_path / LOCK_FILE).chmod(0o644)
    tmp_path.chmod(before)
    with own_state(tmp_path):
        assert (mode(tmp_path), mode(tmp_path / LOCK_FILE)) == (after, 0o600)


def test_a_folder_with_what_is_no_daemons_is_refused_and_stays_open(tmp_path: Path) -> None:
    """``--state /srv``: closing it would lock out everybody who uses it."""
    tmp_path.chmod(0o755)
    (tmp_path / "others").touch()
    with pytest.raises(StartError, match="holds what is no daemon's"), own_state(tmp_path):
        pass
    assert (mode(tmp_path), os.listdir(tmp_path)) == (0o755, ["others"])


def test_a_folder_that_another_user_owns_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(StartError, match="belongs to UID"), own_state(tmp_path):
        pass


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        open_lock_file(tmp_path / "lock")
    assert not (tmp_path / "target").exists()


TRY = """
import fcntl, os, subprocess, sys
state = sys.argv[1]
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for call in (lambda: fcntl.flock(os.open(state + "/swarmd.lock", os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB),
             lambda: subprocess.run([state + "/engine/volumes/v/_data/tool"]),
             lambda: os.stat(state + "/engine")):
    try:
        call()
    except PermissionError:
        continue
    raise SystemExit("it let a user in")
"""


@pytest.mark.root
def test_a_user_neither_runs_a_program_of_a_volume_nor_holds_the_lock(tmp_path: Path) -> None:
    """CVE-2021-41091: a container's set-user-ID program, reached by its path on the host."""
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:-2]:
        parent.chmod(0o755)
    state = tmp_path / "state"
    data = state / "engine" / "volumes" / "v" / "_data"
    data.mkdir(parents=True)
    (data / "tool").write_text("#!/bin/sh\n")
    (data / "tool").chmod(0o4755)
    (state / LOCK_FILE).touch()
    for path in (state, state / "engine", state / "engine/volumes", data.parent, data):
        path.chmod(0o711)
    with own_state(state):
        pass
    done = subprocess.run([sys.executable, "-c", TRY, str(state)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_links_to_the_folders_are_followed_before_anything_uses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    used: list[Path] = []

    def use(state: Path) -> NoReturn:
        used.append(state)
        raise StartError("far enough")

    monkeypatch.setattr(swarmd, "own_state", use)
    monkeypatch.setattr("runtime.system.check_host", list)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    monkeypatch.setattr(sys, "argv", ["swarmd", "--state", str(tmp_path / "link" / "state"), "--run", "relative"])
    with pytest.raises(SystemExit):
        swarmd.main()
    assert used == [tmp_path / "disk" / "state"]


def test_a_folder_that_is_a_link_to_itself_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(StartError, match="cannot use the state folder"), own_state(tmp_path / "link"):
        pass


def test_the_default_folder_keeps_its_control_group_on_another_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "default").symlink_to(tmp_path / "disk")
    monkeypatch.setattr(daemon, "DEFAULT_STATE", str(tmp_path / "default"))
    assert daemon.default_cgroup_parent(tmp_path / "disk") == "/swarm"
    assert daemon.default_cgroup_parent(tmp_path / "other").startswith("/swarm-")


async def test_what_the_engine_refuses_to_start_on_is_one_line_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def newer(_engine: Engine) -> NoReturn:
        raise ImagesError("images.json has version 2, which a newer swarmd wrote")

    monkeypatch.setattr(Engine, "open", newer)
    monkeypatch.setattr(sys, "argv", ["swarmd", "--state", str(tmp_path / "state"), "--run", str(tmp_path / "run")])
    options = parse_options()
    loop = asyncio.get_running_loop()
    with (
        patch.object(loop, "add_signal_handler"),
        pytest.raises(StartError, match="which a newer swarmd wrote"),
    ):
        await daemon.serve(options, Mock(spec=Zygote))
