"""conmon's log format, selection and rotation, on plain files."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.containers import logs, times
from runtime.errors import InvalidParameterError
from runtime.kernel.syscalls import Watcher
from runtime.types import HostConfig, LogConfig, LogLine

STAMP = "2026-11-24T09:16:30.123456789+00:00"
NS = 1795511790123456789


def entry(text: str, *, stream: str = "stdout", tag: str = "F", stamp: str = STAMP) -> bytes:
    return f"{stamp} {stream} {tag} {text}\n".encode()


def test_lines() -> None:
    assert logs.parse_line(entry("hi there")) == LogLine("stdout", NS, b"hi there\n")
    assert logs.parse_line(entry("part", tag="P", stream="stderr")) == LogLine("stderr", NS, b"part", partial=True)
    assert logs.parse_line(entry("")) == LogLine("stdout", NS, b"\n")
    east = logs.parse_line(entry("x", stamp="2026-11-24T10:16:30.5+01:00"))
    assert east is not None
    assert east.timestamp_ns == NS - 123456789 + 500_000_000


@pytest.mark.parametrize(
    "raw", [b"", b"\0\0\0\0", b"x stdout F y", b"2026-11-24T09:16:30 stdout", b"2026-99-99T09:16:30.1Z stdout F y"]
)
def test_a_torn_line_is_skipped(raw: bytes) -> None:
    assert logs.parse_line(raw) is None


@given(st.binary(max_size=80))
def test_parsing_never_crashes(raw: bytes) -> None:
    logs.parse_line(raw)


async def read_all(path: Path, selection: logs.Selection) -> list[bytes]:
    watcher = Watcher()
    try:
        reader = logs.read(path, selection, follow=False, watcher=watcher, ended=lambda: True)
        return [line.data async for line in reader]
    finally:
        watcher.close()


async def test_rotated_files_are_read_oldest_first(tmp_path: Path) -> None:
    path = tmp_path / "c.log"
    (tmp_path / "c.log.2").write_bytes(entry("1"))
    (tmp_path / "c.log.1").write_bytes(entry("2") + entry("3"))
    path.write_bytes(entry("4", stream="stderr") + entry("5"))
    assert await read_all(path, logs.Selection()) == [b"1\n", b"2\n", b"3\n", b"4\n", b"5\n"]
    assert await read_all(path, logs.Selection(tail=3)) == [b"3\n", b"4\n", b"5\n"]
    assert await read_all(path, logs.Selection(tail=0)) == []
    assert await read_all(path, logs.Selection(stderr=False, tail=2)) == [b"3\n", b"5\n"]
    assert await read_all(path, logs.Selection(until_ns=NS - 1)) == []
    assert await read_all(tmp_path / "missing.log", logs.Selection()) == []


async def test_a_gap_in_the_numbering_hides_nothing(tmp_path: Path) -> None:
    """A rotation has one for an instant, and one that a kill cut short for good."""
    path = tmp_path / "c.log"
    (tmp_path / "c.log.12").write_bytes(entry("1"))
    (tmp_path / "c.log.2").write_bytes(entry("2"))
    (tmp_path / "c.log.2.tmp").write_bytes(entry("not a rotated file"))
    path.write_bytes(entry("3"))
    assert await read_all(path, logs.Selection()) == [b"1\n", b"2\n", b"3\n"]


async def test_a_file_that_is_renamed_before_it_is_opened_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = tmp_path / "c.log", os.open
    path.with_name("c.log.1").write_bytes(entry("1"))
    path.write_bytes(entry("2"))

    def rotated_meanwhile(name: Path, flags: int) -> int:
        if name.name == "c.log.1" and name.exists():
            name.rename(path.with_name("c.log.2"))
        return opened(name, flags)

    monkeypatch.setattr(os, "open", rotated_meanwhile)
    assert await read_all(path, logs.Selection()) == [b"1\n", b"2\n"]


@given(
    files=st.lists(st.lists(st.tuples(st.integers(0, 70_000), st.booleans()), max_size=5), min_size=1, max_size=3),
    tail=st.integers(0, 12),
    since=st.integers(0, 12),
    both=st.booleans(),
    torn=st.booleans(),
)
def test_tail_finds_the_same_lines_as_reading_it_all(
    files: list[list[tuple[int, bool]]], tail: int, since: int, both: bool, torn: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, number, wanted = Path(folder) / "c.log", 0, []
        for older, lines in zip(reversed(range(len(files))), files, strict=True):
            with path.with_name(f"c.log.{older}" if older else "c.log").open("wb") as file:
                for length, stdout in lines:
                    text, stamp = f"{number}-" + "x" * length, f"2026-11-24T09:16:{number:02}+00:00"
                    file.write(entry(text, stream="stdout" if stdout else "stderr", stamp=stamp))
                    if number >= since and (both or stdout):
                        wanted.append(f"{text}\n".encode())
                    number += 1
                if torn and not older:
                    file.write(entry("torn")[:-5])
        since_ns = times.parse_time(f"2026-11-24T09:16:{since:02}+00:00")
        selection = logs.Selection(stderr=both, since_ns=since_ns, tail=tail)
        assert asyncio.run(read_all(path, selection)) == wanted[max(0, len(wanted) - tail) :]


async def test_what_is_written_after_the_first_line_was_asked_for_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "c.log"
    path.write_bytes(entry("1") + entry("2"))
    watcher = Watcher()
    try:
        lines = logs.read(path, logs.Selection(), follow=False, watcher=watcher, ended=lambda: False)
        found = []
        async for line in lines:  # a container that writes as fast as it is read
            found.append(line.data)
            with path.open("ab") as file:
                file.write(entry("more") * 5000)
        assert found == [b"1\n", b"2\n"]
    finally:
        watcher.close()


@pytest.mark.parametrize("tail", [-1, 1 << 40])
async def test_a_log_is_not_gathered_in_memory(tmp_path: Path, tail: int) -> None:
    path, many = tmp_path / "c.log", 20_000
    path.with_name("c.log.1").write_bytes(entry("x" * 500) * many)
    path.write_bytes(entry("x" * 500) * many)
    watcher = Watcher()
    lines = logs.read(path, logs.Selection(tail=tail), follow=False, watcher=watcher, ended=lambda: True)
    tracemalloc.start()
    try:
        assert sum([1 async for _ in lines]) == 2 * many
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
        watcher.close()


def test_rotation_keeps_the_number_of_files(tmp_path: Path) -> None:
    path, control = tmp_path / "c.log", tmp_path / "ctl"
    os.mkfifo(control)
    listening = os.open(control, os.O_RDONLY | os.O_NONBLOCK)
    for number in range(5):
        path.write_bytes(entry(str(number)) * 3)
        assert logs.rotate_if_due(path, control, logs.Rotation(size_max=10, files_max=3))
        assert not path.exists()
    assert os.read(listening, 100) == b"2 0 0\n" * 5
    os.close(listening)
    assert sorted(file.name for file in tmp_path.glob("c.log*")) == ["c.log.1", "c.log.2"]
    assert (tmp_path / "c.log.1").read_bytes().startswith(entry("4"))
    path.write_bytes(b"small")
    assert not logs.rotate_if_due(path, control, logs.Rotation(size_max=10, files_max=3))


class Conmon:
    """A log that is written and turned over as conmon and the engine do it."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "c.log"
        self.lines = 0
        self._file = self.path.open("ab")

    def write(self) -> None:
        self._file.write(entry(str(self.lines)))
        self._file.flush()
        self.lines += 1

    def rename(self) -> None:
        """What is written goes there still."""
        if self.path.exists():
            for file in logs.files(self.path)[:-1]:
                file.rename(self.path.with_name(f"c.log.{int(file.suffix[1:]) + 1}"))
            self.path.rename(self.path.with_name("c.log.1"))

    def reopen(self) -> None:
        self._file.close()
        self._file = self.path.open("ab")

    def close(self) -> None:
        self._file.close()


@given(
    before=st.lists(st.sampled_from(["write", "rename", "reopen"]), max_size=8),
    after=st.lists(st.sampled_from(["write", "rename", "reopen", "read"]), max_size=20),
)
def test_a_following_reader_misses_nothing_however_far_behind_it_is(before: list[str], after: list[str]) -> None:
    """Nor when its last file was turned over and conmon has gone without making another."""
    with tempfile.TemporaryDirectory() as folder:
        conmon = Conmon(folder)
        for step in before:
            getattr(conmon, step)()
        opened: list[logs._Reader] = []
        older, reader = logs._open_all(conmon.path, opened, follow=True)
        seen: list[bytes] = []

        def read(file: logs._Reader) -> None:
            while lines := file.next_lines():
                seen.extend(line.data for line in lines)

        for file in older:
            read(file)
        for step in after:
            if step == "read":
                read(reader)
            else:
                getattr(conmon, step)()
        read(reader)
        for file in opened:
            file.close()
        conmon.close()
        assert seen == [f"{number}\n".encode() for number in range(conmon.lines)]


def test_log_options() -> None:
    assert logs.rotation(LogConfig(Config={"max-size": "10m", "max-file": "3"})) == logs.Rotation(10 << 20, 3)
    assert logs.rotation(LogConfig()) == logs.Rotation()
    assert logs.rotation(LogConfig(Config={"max-file": "2"})) == logs.Rotation(0, 2)  # as Docker: never rotated
    for bad in ({"max-size": "ten"}, {"max-file": "0"}, {"cheese": "1"}):
        with pytest.raises(InvalidParameterError):
            logs.rotation(LogConfig(Config=bad))
    with pytest.raises(InvalidParameterError, match="no log driver named 'syslog' is registered"):
        logs.validate(HostConfig(LogConfig=LogConfig(Type="syslog")))


def test_a_reader_that_cannot_turn_over_does_not_close_a_number_twice(tmp_path: Path) -> None:
    path = tmp_path / "c.log"
    path.write_bytes(entry("1"))
    reader = logs._Reader(path, follow=True)
    assert [line.data for line in reader.next_lines()] == [b"1\n"]
    path.rename(tmp_path / "c.log.1")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))  # is there, and cannot be opened
        with pytest.raises(OSError, match="No such device"):
            reader.next_lines()
    bystander = os.open(tmp_path, os.O_RDONLY)
    reader.close()
    os.close(bystander)


def test_zeros_that_a_power_loss_left_are_not_gathered_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "c.log"
    with path.open("wb") as file:
        file.truncate(32 << 20)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + entry("after"))
    reader = logs._Reader(path, follow=True)
    tracemalloc.start()
    try:
        assert [line.data for line in reader.next_lines()] == [b"after\n"]
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
        reader.close()


@pytest.mark.parametrize("tail", [-1, 2])
async def test_a_line_behind_zeros_that_a_power_loss_left_is_read(tmp_path: Path, tail: int) -> None:
    path = tmp_path / "c.log"
    path.write_bytes(entry("before") + bytes(3 << 20) + entry("after"))
    assert await read_all(path, logs.Selection(tail=tail)) == [b"before\n", b"after\n"]
    assert await read_all(path, logs.Selection(tail=1)) == [b"after\n"]
