"""Paths below a directory with hostile content: what is opened, and what is refused before it is."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.containers import users, working_dir
from runtime.errors import InvalidParameterError
from runtime.kernel import rooted, syscalls
from runtime.system import check_host


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "outside").write_text("the host's")
    fd = rooted.open_root(tmp_path / "root")
    yield fd
    os.close(fd)


def link(tmp_path: Path, name: str, target: str) -> str:
    (tmp_path / "root" / name).symlink_to(target)
    return name


def test_links_end_at_the_root(root: int, tmp_path: Path) -> None:
    (tmp_path / "root" / "etc" / "file").write_text("inside")
    for target in ("/etc/file", "../../../etc/file", f"{'../' * 20}etc/file"):
        name = link(tmp_path, f"l{len(target)}", target)
        assert rooted.read_file(root, name, 100) == b"inside"
    for target in (str(tmp_path / "outside"), "../outside"):
        with pytest.raises(FileNotFoundError):
            rooted.open_inside(root, link(tmp_path, f"o{len(target)}", target))


@pytest.mark.parametrize("target", ["/etc", "../outside", "etc/../..", "/"])
def test_beneath_nothing_leads_out(root: int, tmp_path: Path, target: str) -> None:
    for path in (link(tmp_path, "link", target), target):
        with pytest.raises(OSError, match="cross-device link"):
            rooted.open_beneath(root, path)
    os.close(rooted.open_beneath(root, link(tmp_path, "good", "etc/../etc")))


@pytest.mark.parametrize("path", ["/proc/self/fd/{}", "/proc/self/cwd", "/proc/self/root/etc", "/link"])
def test_magic_links_are_not_followed(tmp_path: Path, path: str) -> None:
    held = os.open(tmp_path, os.O_PATH)
    root = rooted.open_root("/")
    (tmp_path / "link").symlink_to(f"/proc/self/fd/{held}")
    try:
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            rooted.open_inside(root, f"{tmp_path}/link" if path == "/link" else path.format(held))
    finally:
        os.close(root)
        os.close(held)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_large(path: Path) -> None:
    path.write_bytes(b"x:" * (1 << 20))


@pytest.mark.parametrize("make", [make_fifo, make_folder, make_large])
@pytest.mark.parametrize("name", ["passwd", "group"])
def test_users_are_read_from_regular_files_alone(tmp_path: Path, make: Callable[[Path], None], name: str) -> None:
    (tmp_path / "etc").mkdir()
    make(tmp_path / "etc" / name)
    with pytest.raises(InvalidParameterError, match=f"cannot read /etc/{name} of the container: (not a|larger)"):
        users.look_up(tmp_path, "1000", ())


def test_users_are_found_where_the_image_links_to(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "passwd").write_text("web:x:33:34::/var/www:/bin/sh\n")
    (tmp_path / "etc").symlink_to("/store")
    assert users.look_up(tmp_path, "web", ()) == users.User(33, 34, (), "/var/www")
    (tmp_path / "etc").unlink()
    assert users.look_up(tmp_path, "7", ()) == users.User(7, 0, (), "/")


def test_a_folder_that_is_swapped_all_the_time_leads_nowhere_else(root: int, tmp_path: Path) -> None:
    """A race as an attacker runs it: the folder on the way is now a folder, now a link to the host's."""
    folder, other = tmp_path / "root" / "a", tmp_path / "root" / "b"
    folder.mkdir()
    (folder / "file").write_text("inside")
    (tmp_path / "file").write_text("the host's")
    other.symlink_to("../..")
    stop = threading.Event()

    def swap() -> None:
        names = [folder, tmp_path / "root" / "c", other]
        while not stop.is_set():
            names[0].rename(names[1])
            names[2].rename(names[0])
            names[0].rename(names[2])
            names[1].rename(names[0])

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        seen = set()
        for _ in range(3000):
            try:
                seen.add(rooted.read_file(root, "a/../a/file", 100))
            except (FileNotFoundError, BlockingIOError):
                continue
    finally:
        stop.set()
        thread.join()
    assert seen <= {b"inside"}


def test_a_kernel_without_openat2_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert syscalls.supports_openat2()
    monkeypatch.setattr(syscalls, "_OPENAT2", 100_000)  # ENOSYS
    assert not syscalls.supports_openat2()
    if os.geteuid() == 0:
        assert "the kernel has no openat2" in " ".join(map(str, check_host()))


def test_a_process_that_begins_elsewhere_than_in_its_working_directory_is_found_out(tmp_path: Path) -> None:
    """As under a runc that is led there by what it has open (CVE-2024-21626)."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    with subprocess.Popen(["sleep", "60"], cwd=here) as process:
        try:
            working_dir.check_created(process.pid, str(here))
            with pytest.raises(InvalidParameterError, match="leads into /proc"):
                working_dir.check_created(process.pid, str(there))
        finally:
            process.kill()
