"""What journal and snapshots rely on, of both disks: the real one, and the one that the simulation crashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from manager.consensus.files import Files, OSFiles
from manager.consensus.port import StateLockedError
from tests.simulation.disk import SimDisk


@pytest.fixture(params=["real", "simulated"])
def files(request: pytest.FixtureRequest) -> Files:
    return OSFiles() if request.param == "real" else SimDisk()


@pytest.fixture
def folder(files: Files, tmp_path: Path) -> Path:
    files.make_folder(tmp_path / "state")
    return tmp_path / "state"


def write(files: Files, path: Path, *pieces: bytes) -> None:
    file = files.create(path)
    for piece in pieces:
        file.write(piece)
    file.sync()
    file.close()


def test_what_is_written_is_read(files: Files, folder: Path) -> None:
    write(files, folder / "a", b"12345", b"", b"678")
    assert files.read(folder / "a") == b"12345678"
    assert list(files.read_chunks(folder / "a", 3)) == [b"123", b"456", b"78"]
    assert list(files.read_chunks(folder / "a", 8)) == [b"12345678"]


def test_a_file_grows_after_it_was_synced_and_is_read_while_it_is_open(files: Files, folder: Path) -> None:
    file = files.create(folder / "a")
    file.write(b"1")
    file.sync()
    file.write(b"2")
    assert files.read(folder / "a") == b"12"
    file.close()
    file.close()


def test_an_empty_file(files: Files, folder: Path) -> None:
    write(files, folder / "a")
    assert files.read(folder / "a") == b""
    assert list(files.read_chunks(folder / "a", 3)) == []


def test_a_mark_is_replaced_and_opened_again_as_it_is(files: Files, folder: Path) -> None:
    for content in (b"first", b"other"):
        mark = files.open_mark(folder / "m")
        mark.write(content)
        assert files.read(folder / "m") == content
        mark.close()
        mark.close()
    files.open_mark(folder / "m").close()
    assert files.read(folder / "m") == b"other"


def test_a_name_is_given_once(files: Files, folder: Path) -> None:
    write(files, folder / "a", b"first")
    with pytest.raises(FileExistsError):
        files.create(folder / "a")
    assert files.read(folder / "a") == b"first"


def test_names_are_sorted_and_those_of_this_folder(files: Files, folder: Path) -> None:
    assert files.names(folder) == []
    files.make_folder(folder / "m")
    files.make_folder(folder / "m")
    write(files, folder / "z")
    write(files, folder / "b")
    write(files, folder / "m" / "a")
    assert files.names(folder) == ["b", "m", "z"]
    assert files.names(folder / "m") == ["a"]


def test_a_rename_takes_the_place_of_what_was_there(files: Files, folder: Path) -> None:
    write(files, folder / "a", b"old")
    write(files, folder / "new", b"new")
    files.rename(folder / "new", folder / "a")
    files.sync_folder(folder)
    assert files.names(folder) == ["a"]
    assert files.read(folder / "a") == b"new"


def test_a_file_is_cut(files: Files, folder: Path) -> None:
    write(files, folder / "a", b"12345")
    files.truncate(folder / "a", 2)
    files.sync_file(folder / "a")
    assert files.read(folder / "a") == b"12"


def test_what_is_removed_is_gone_and_may_have_been(files: Files, folder: Path) -> None:
    write(files, folder / "a", b"1")
    files.unlink(folder / "a")
    files.unlink(folder / "a")
    assert files.names(folder) == []
    write(files, folder / "a", b"2")
    assert files.read(folder / "a") == b"2"


@pytest.mark.parametrize(
    "use",
    [
        lambda files, path: files.read(path),
        lambda files, path: list(files.read_chunks(path, 1)),
        lambda files, path: files.truncate(path, 0),
        lambda files, path: files.sync_file(path),
        lambda files, path: files.rename(path, path.with_name("b")),
    ],
    ids=["read", "read_chunks", "truncate", "sync_file", "rename"],
)
def test_what_is_not_there_is_an_oserror(files: Files, folder: Path, use: Callable[[Files, Path], object]) -> None:
    with pytest.raises(FileNotFoundError):
        use(files, folder / "a")


def test_a_folder_that_is_not_there_has_no_names(files: Files, folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.names(folder / "none")


def test_one_holder_at_a_time(files: Files, folder: Path) -> None:
    unlock = files.lock(folder / "lock")
    with pytest.raises(StateLockedError):
        files.lock(folder / "lock")
    unlock()
    files.lock(folder / "lock")()
