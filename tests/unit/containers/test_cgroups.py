"""Both cgroup layouts, from the texts the kernel shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from base.trees import remove_tree
from runtime.containers import cgroups
from runtime.system import check_cgroups, has_filesystem

HYBRID = """\
24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
26 24 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
27 24 0:25 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
28 24 0:26 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
29 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
"""
UNIFIED = "30 24 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def test_hybrid_is_version_1_with_a_hierarchy_a_controller() -> None:
    layout = cgroups.parse_layout(HYBRID, "3:memory:/a\n2:pids:/\n0::/b\n", {"/sys/fs/cgroup/unified": "hugetlb"})
    assert layout.version == 1
    assert layout.missing() == []
    assert layout.mounts["cpu"] == layout.mounts["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert cgroups.container_paths(layout, "/swarm", "c") == [
        Path("/sys/fs/cgroup/cpu,cpuacct/swarm/c"),
        Path("/sys/fs/cgroup/memory/swarm/c"),
        Path("/sys/fs/cgroup/pids/swarm/c"),
    ]
    assert cgroups.resolve_parent(layout, "containers") == "/a/containers"
    assert cgroups.resolve_parent(layout, "/swarm/") == "/swarm"


def test_unified_is_version_2() -> None:
    own = "0::/system.slice/swarmd.service\n"
    layout = cgroups.parse_layout(UNIFIED, own, {"/sys/fs/cgroup": "cpuset cpu io memory pids"})
    assert layout.version == 2
    assert layout.missing() == []
    assert cgroups.container_paths(layout, "/swarm", "c") == [Path("/sys/fs/cgroup/swarm/c")]
    assert cgroups.resolve_parent(layout, "containers") == "/system.slice/swarmd.service/containers"


def test_what_limits_can_be_of_is_read_where_the_containers_will_be(tmp_path: Path) -> None:
    """The group for them may not be there yet; in version 1 a group without CPUs has those above it."""
    for version, names in (
        (1, ("cpuset.cpus", "cpuset.mems")),
        (2, ("cpuset.cpus.effective", "cpuset.mems.effective")),
    ):
        root = tmp_path / str(version)
        (root / "ours").mkdir(parents=True)
        for name, text in zip(names, ("0-7", "0-1"), strict=True):
            (root / name).write_text(f"{text}\n")
        (root / "ours" / names[0]).write_text("0-3\n")
        (root / "ours" / names[1]).write_text("\n")
        layout = cgroups.Layout(version, {"cpuset": root}, {})
        assert cgroups.capacity(layout, "/ours/not/there").cpuset_cpus == "0-3"
        assert cgroups.capacity(layout, "/ours").cpuset_mems == "0-1"
        assert cgroups.capacity(layout, "/other").cpuset_cpus == "0-7"
        assert cgroups.capacity(layout, "/").cpus == len(os.sched_getaffinity(0))
    assert cgroups.capacity(cgroups.Layout(2, {}, {}), "/ours").cpuset_cpus == ""


@pytest.mark.parametrize("top", ["", "some.slice"])
def test_version_2_limits_swap_where_the_groups_that_limit_memory_do(tmp_path: Path, top: str) -> None:
    """The root group has neither file; in a cgroup namespace the mount is no root."""
    layout = cgroups.Layout(2, {"memory": tmp_path}, {})
    (tmp_path / top).mkdir(exist_ok=True)
    assert cgroups.swap_limit(layout) == Path("/proc/swaps").exists()
    (tmp_path / top / "memory.max").touch()
    assert not cgroups.swap_limit(layout)  # swapaccount=0
    (tmp_path / top / "memory.swap.max").touch()
    assert cgroups.swap_limit(layout)


def test_version_1_limits_swap_where_its_hierarchy_counts_it(tmp_path: Path) -> None:
    layout = cgroups.Layout(1, {"memory": tmp_path}, {})
    assert not cgroups.swap_limit(layout)
    (tmp_path / "memory.memsw.limit_in_bytes").touch()
    assert cgroups.swap_limit(layout)
    assert not cgroups.swap_limit(cgroups.Layout(1, {}, {}))


def test_missing_controllers_are_told_with_the_cure() -> None:
    layout = cgroups.parse_layout(UNIFIED, "0::/\n", {"/sys/fs/cgroup": "cpu pids"})
    assert layout.missing() == ["memory"]
    (problem,) = check_cgroups(layout)
    assert "memory" in str(problem)
    assert "kernel command line" in str(problem)
    (nothing,) = check_cgroups(cgroups.parse_layout("", "", {}))
    assert "no cgroup controllers" in str(nothing)


def test_version_2_parent_hands_its_controllers_down(tmp_path: Path) -> None:
    """On plain files in place of cgroupfs: which files are written, and in which order down."""
    layout = cgroups.Layout(2, {"memory": tmp_path}, {"memory": "/"})
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpu memory pids")
        (folder / "cgroup.subtree_control").write_text("cpu pids")
    cgroups.prepare_parent(layout, "/a/b")
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        assert (folder / "cgroup.subtree_control").read_text() == "+memory"


def test_oom_kills_of_both_versions(tmp_path: Path) -> None:
    group = tmp_path / "swarm" / "c"
    group.mkdir(parents=True)
    (group / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    (group / "memory.events").write_text("low 0\noom 1\noom_kill 3\n")
    assert cgroups.oom_kills(cgroups.Layout(1, {"memory": tmp_path}, {}), "/swarm", "c") == 2
    assert cgroups.oom_kills(cgroups.Layout(2, {"memory": tmp_path}, {}), "/swarm", "c") == 3
    assert cgroups.oom_kills(cgroups.Layout(2, {"memory": tmp_path}, {}), "/swarm", "gone") == 0


def test_filesystems() -> None:
    assert has_filesystem("overlay", "nodev\tsysfs\nnodev\toverlay\n\text4\n")
    assert not has_filesystem("overlay", "nodev\toverlayfs2\n")


def test_processes_are_found_at_any_depth(tmp_path: Path) -> None:
    """Plain folders stand for groups: what is asked of them is the same."""
    top = tmp_path / "group"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for level in range(1500):
        os.mkdir("deep", dir_fd=fd)
        below = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        if level in (0, 1499):
            with os.fdopen(os.open("cgroup.procs", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "w") as procs:
                procs.write(f"{level}\n7\n")
    os.close(fd)
    try:
        assert cgroups.processes([tmp_path / "gone", top]) == {0, 7, 1499}
    finally:
        remove_tree(top)


def test_groups_are_removed_at_any_depth(tmp_path: Path) -> None:
    top = tmp_path / "group"
    top.mkdir()
    for names in (["d"] * 1500, ["n" * 254] * 20):
        fd = os.open(top, os.O_RDONLY)
        for name in names:
            os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)
    try:
        assert cgroups.remove([tmp_path / "gone", top], patience_s=0) == []
        assert not top.exists()
    finally:
        remove_tree(top)  # pytest's own cleaning recurses
