"""What others call their mounts and processes: any bytes, which the kernel's texts hold as they are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from runtime.containers import cgroups
from runtime.containers.processes import start_ticks
from runtime.kernel import mounts
from runtime.kernel.mounts import filesystem_of, mount_points, own_mounts
from runtime.teardown import hierarchies, mounts_below

_OWN = b"20 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n25 20 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
_NAMES = [b"\xff", b"\r", b"\x0b", b"\x1c", "\u2028".encode(), "\u00a0".encode(), b"\\040"]


@pytest.mark.parametrize("name", _NAMES)
def test_a_mount_of_any_name_hides_none_and_breaks_nothing(
    name: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users mount by fusermount, and by what plugs in a disk: the daemon did not start then."""
    line = b"30 20 0:30 / /home/u/" + name + b"/x rw - fuse.sshfs u@h: rw,user_id=1000\n"
    unnamed = b"31 20 0:31 / /home/u/none rw - fuse  rw\n"
    text = (_OWN[:45] + line + unnamed + _OWN[45:]).decode(errors="surrogateescape")
    assert [str(mount.point) for mount in mount_points(text)][:1] == ["/"]
    assert [mount.kind for mount in mount_points(text)] == ["ext4", "fuse.sshfs", "fuse", "cgroup2"]
    assert filesystem_of(Path("/var/lib"), text) == "ext4"
    assert hierarchies(text) == [Path("/sys/fs/cgroup")]
    assert cgroups.parse_layout(text, "0::/\n", {"/sys/fs/cgroup": "cpu memory"}).version == 2
    (below, _) = mounts_below(text, [Path("/home")])
    assert os.fsencode(below).startswith(b"/home/u/")
    (tmp_path / "mountinfo").write_bytes(text.encode(errors="surrogateescape"))
    monkeypatch.setattr(mounts, "_MOUNTINFO", tmp_path / "mountinfo")
    assert own_mounts() == text


def test_a_process_of_any_name_has_a_start() -> None:
    command = ["bash", "-c", "printf 'a\\xff) Z' > /proc/self/comm; echo up; read -r line; :"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert Path(f"/proc/{process.pid}/comm").read_bytes() == b"a\xff) Z\n"
        assert start_ticks(process.pid) > 0
    finally:
        process.communicate(b"\n")
