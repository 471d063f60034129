"""Trees are removed and measured whatever their shape: deep, long, full of links, changing under the walk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from base import trees
from base.trees import remove_tree, tree_size

LONG = "n" * 254


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder in memory, where making thousands of folders takes no time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True) as memory:
        path = Path(memory) / "top"
        path.mkdir()
        yield path
        os.system(f"rm -rf {memory}/*")  # what a failing test leaves is too deep for Python's own cleaning


def nest(top: Path, names: list[str]) -> int:
    """Make a folder in a folder in ``top``, by descriptor; a descriptor of the last."""
    fd = os.open(top, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=fd)
        child = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = child
    return fd


def put(fd: int, name: str, size: int) -> None:
    with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=fd), "wb") as file:
        file.write(bytes(size))


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


SHAPES = [
    pytest.param([LONG] * 17, id="paths longer than PATH_MAX"),
    pytest.param(["d"] * 3000, id="3000 levels"),
    pytest.param([LONG] * 300, id="300 levels of long names"),
]


@pytest.mark.parametrize("names", SHAPES)
def test_any_depth_and_length_is_measured(top: Path, names: list[str]) -> None:
    (top / "shallow").write_bytes(bytes(5))
    deep = nest(top, names)
    put(deep, "file", 7)
    os.close(deep)
    assert tree_size(top) == 12


@pytest.mark.parametrize("names", SHAPES)
def test_any_depth_and_length_is_removed(top: Path, names: list[str]) -> None:
    deep = nest(top, names)
    put(deep, "file", 7)
    os.close(deep)
    remove_tree(top)
    assert not top.exists()
    assert top.parent.exists()


def test_a_wide_and_deep_tree_goes_with_few_open_descriptors(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for side in ("a", "b"):
        os.close(nest(top, [side, *["d"] * 200]))
        fd = nest(top / side, ["e", *["f"] * 100])
        put(fd, "file", 1)
        os.close(fd)
    before, most = open_descriptors(), 0
    scandir = os.scandir

    def counted(fd: int) -> object:
        nonlocal most
        most = max(most, len(open_descriptors()))
        return scandir(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", counted)
        assert tree_size(top) == 2
        remove_tree(top)
    assert most - len(before) <= trees.OPEN_MAX + 4
    assert open_descriptors() == before
    assert not top.exists()


def test_links_are_not_followed(top: Path) -> None:
    outside = top.parent / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "folder" / "file").write_bytes(bytes(1000))
    (top / "to_folder").symlink_to(outside / "folder")
    (top / "to_file").symlink_to(outside / "folder" / "file")
    (top / "to_nothing").symlink_to("nothing")
    (top / "up").symlink_to("..")
    (top / "file").write_bytes(bytes(3))
    assert tree_size(top) == 3
    remove_tree(top)
    assert not top.exists()
    assert (outside / "folder" / "file").stat().st_size == 1000


def test_a_link_in_place_of_the_tree_goes_and_its_target_stays(top: Path) -> None:
    link = top.parent / "link"
    link.symlink_to(top)
    (top / "file").touch()
    remove_tree(link)
    assert not link.is_symlink()
    assert (top / "file").exists()


def test_a_file_or_nothing_in_place_of_the_tree_goes_too(top: Path) -> None:
    file = top / "file"
    file.touch()
    remove_tree(file)
    remove_tree(file)
    assert not file.exists()
    assert tree_size(file) == 0


def test_hard_links_count_once_and_other_kinds_of_files_not(top: Path) -> None:
    (top / "a").mkdir()
    (top / "a" / "file").write_bytes(bytes(10))
    (top / "again").hardlink_to(top / "a" / "file")
    os.mkfifo(top / "pipe")
    assert tree_size(top) == 10
    remove_tree(top)
    assert not top.exists()


def test_holes_take_no_room(top: Path) -> None:
    for name in ("hole", "another"):
        with (top / name).open("wb") as file:
            file.truncate((1 << 63) - 4096)
    (top / "again").hardlink_to(top / "hole")
    with (top / "some").open("wb") as file:
        file.truncate(1 << 40)
        file.write(b"data")
    (top / "small").write_bytes(b"data")
    assert tree_size(top) == os.stat(top / "some").st_blocks * 512 + 4


def between(monkeypatch: pytest.MonkeyPatch, change: Iterator[None]) -> None:
    """Let ``change`` go a step further each time a folder has been listed, before anything is done about it."""
    scandir = os.scandir

    class Listed:
        def __init__(self, fd: int) -> None:
            with scandir(fd) as entries:
                self._entries = list(entries)
                for entry in self._entries:
                    entry.is_dir(follow_symlinks=False)
            next(change, None)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self._entries)

        def __exit__(self, *exception: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Listed)


@pytest.mark.parametrize("use", [tree_size, remove_tree])
def test_what_vanishes_meanwhile_is_no_error(top: Path, use: object, monkeypatch: pytest.MonkeyPatch) -> None:
    (top / "folder").mkdir()
    (top / "file").touch()

    def change() -> Iterator[None]:
        (top / "folder").rmdir()
        (top / "file").unlink()
        yield

    between(monkeypatch, change())
    assert callable(use)
    assert not use(top)


def test_a_link_that_takes_a_folders_place_meanwhile_is_not_followed(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = top.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(bytes(9))
    (top / "folder").mkdir()

    def change() -> Iterator[None]:
        (top / "folder").rmdir()
        (top / "folder").symlink_to(outside)
        yield

    between(monkeypatch, change())
    remove_tree(top)
    assert not top.exists()
    assert (outside / "file").exists()


def test_a_folder_that_is_moved_out_meanwhile_does_not_lead_out(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way up from far below is ``..``, which leads elsewhere by then."""
    outside = top.parent / "outside"
    (outside / "precious").mkdir(parents=True)
    depth = trees.OPEN_MAX + 10
    os.close(nest(top, ["d"] * depth))

    def change() -> Iterator[None]:
        for _ in range(depth):
            yield
        (top / "d" / "d").rename(outside / "d")
        yield

    between(monkeypatch, change())
    with pytest.raises(OSError, match="moved"):
        remove_tree(top)
    assert (outside / "precious").is_dir()


def test_what_cannot_be_removed_does_not_keep_the_rest(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (top / name).mkdir()
        (top / name / "file").touch()
        (top / name / name).touch()
    unlink = os.unlink

    def refusing(name: str, *, dir_fd: int) -> None:
        if name == "b":
            raise PermissionError(1, "Operation not permitted", name)
        unlink(name, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refusing)
        with pytest.raises(PermissionError):
            remove_tree(top)
    assert [str(path.relative_to(top)) for path in sorted(top.rglob("*"))] == ["b", "b/b"]
