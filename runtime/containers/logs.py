"""Reading what conmon writes, and turning it over.

conmon writes CRI lines, ``TIME STREAM P|F TEXT``: P is a piece without its newline, F a line or the end of one. The
newest file is ID.log, older ones ID.log.1 (newer) to ID.log.N. To rotate, the file is renamed and conmon told through
its control fifo to open the path anew: no line is lost or copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import msgspec
import structlog

from base.numbers import natural
from base.threads import run_abortable
from runtime.containers.times import parse_time
from runtime.errors import InvalidParameterError
from runtime.kernel.syscalls import Watcher
from runtime.types import LOG_DRIVERS, HostConfig, LogConfig, LogLine

log = structlog.get_logger(__name__)

_BLOCK = 1 << 16
LINE_SIZE_MAX = 1 << 20
_REOPEN = b"2 0 0\n"
FILES_MAX = 10_000
Identity = tuple[int, int]
"""Which file it is, whatever its name: device and inode."""

_SIZE = re.compile(r"([0-9]{1,15})([kKmMgG]?)[bB]?")


class Rotation(msgspec.Struct, frozen=True):
    """When to rotate: ``size_max`` bytes (0: never), ``files_max`` files in all."""

    size_max: int = 0
    files_max: int = 1


def rotation(config: LogConfig) -> Rotation:
    """From ``max-size`` and ``max-file``. Raises InvalidParameterError."""
    options = config.Config or {}
    unknown = set(options) - {"max-size", "max-file", "labels", "labels-regex", "env", "env-regex", "tag", "compress", "mode", "max-buffer-size"}  # fmt: skip
    if unknown:
        raise InvalidParameterError(f"unknown log opt '{min(unknown)}' for json-file log driver")
    match = _SIZE.fullmatch(options.get("max-size", "0").replace("-1", "0"))
    if match is None:
        raise InvalidParameterError(f"invalid value for max-size: {options['max-size'][:200]!r}")
    count = options.get("max-file", "1")
    if not (files := natural(count, largest=FILES_MAX)):
        raise InvalidParameterError(f"max-file cannot be less than 1 or more than {FILES_MAX}")
    size = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]
    return Rotation(size, files)


def validate(host: HostConfig) -> None:
    """Raises InvalidParameterError for a log driver or option that does not exist."""
    kind = host.LogConfig.Type
    if kind not in ("", *LOG_DRIVERS):
        raise InvalidParameterError(f"logger: no log driver named '{kind}' is registered")
    if kind != "none":
        rotation(host.LogConfig)


_second_cache: tuple[bytes, int] = (b"", 0)


def parse_line(line: bytes) -> LogLine | None:
    """One CRI line, with or without its newline; None for anything else (a torn line after power loss).

    Zeros that a power loss left are passed over: conmon writes on right behind them.
    """
    global _second_cache
    parts = line.lstrip(b"\0").rstrip(b"\n").split(b" ", 3)
    if len(parts) < 4 or parts[1] not in (b"stdout", b"stderr") or parts[2][:1] not in (b"P", b"F"):
        return None
    text = parts[0]
    try:
        if len(text) == 35 and text[:19] == _second_cache[0] and text[29:] == b"+00:00":
            timestamp = _second_cache[1] + int(text[20:29])
        else:
            timestamp = parse_time(text.decode("ascii"))
            if text[29:] == b"+00:00":
                _second_cache = (text[:19], timestamp - timestamp % 1_000_000_000)
    except ValueError:
        return None
    partial = parts[2][:1] == b"P"
    return LogLine(parts[1].decode(), timestamp, parts[3] if partial else parts[3] + b"\n", partial)


class Selection(msgspec.Struct, frozen=True):
    """Which lines are wanted; 0 times are unbounded, ``tail`` -1 is all."""

    stdout: bool = True
    stderr: bool = True
    since_ns: int = 0
    until_ns: int = 0
    tail: int = -1

    def takes(self, line: LogLine) -> bool:
        """Whether stream and time fit."""
        if not (self.stdout if line.stream == "stdout" else self.stderr):
            return False
        return line.timestamp_ns >= self.since_ns and not (self.until_ns and line.timestamp_ns > self.until_ns)


def files(path: Path) -> list[Path]:
    """All files of a log that exist, oldest first.

    Listed rather than counted up to the first that is missing: a rotation has a gap for an instant, and one that a kill
    cut short for good.
    """
    older = []
    with contextlib.suppress(FileNotFoundError):
        for entry in path.parent.iterdir():
            stem, _, number = entry.name.rpartition(".")
            if stem == path.name and number.isdecimal():
                older.append((int(number), entry))
    return [*(entry for _, entry in sorted(older, reverse=True)), path]


async def read(
    path: Path, selection: Selection, *, follow: bool, watcher: Watcher, ended: Callable[[], bool]
) -> AsyncGenerator[LogLine, None]:
    """Lines of a log in order, of all its files; with ``follow`` what is added too, until ``ended()``.

    Without ``follow`` the end is where the log ends when the first line is asked for. The watch on the folder is set
    before the first read, so nothing that is written in between goes unseen. A log may be larger than memory: a block
    and a line of it are held at a time, whatever ``tail`` is.
    """
    changed = asyncio.Event()
    stop = watcher.watch(path.parent, lambda _name: changed.set()) if follow else lambda: None
    opened: list[_Reader] = []
    try:
        # In threads that have ended when this ends, cancelled or not: a closed number would soon be another's.
        older, reader = await run_abortable(lambda _: _open_all(path, opened, follow=follow))
        if selection.tail >= 0:
            older = await run_abortable(lambda abort: _go_to_tail(older, reader, selection, abort))
        for file in older:
            while lines := await run_abortable(lambda _, file=file: file.next_lines()):  # type: ignore[misc]  # bound argument
                for line in filter(selection.takes, lines):
                    yield line
        while True:
            changed.clear()
            last = not follow or ended()
            while lines := await run_abortable(lambda _: reader.next_lines()):
                for line in lines:
                    if selection.until_ns and line.timestamp_ns > selection.until_ns:
                        return
                    if selection.takes(line):
                        yield line
            if last:
                return
            # The log says nothing when its container ends: the engine touches the folder then (state.json). The time
            # limit is for until_ns and a lost notification.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), 1.0)
            if selection.until_ns and time.time_ns() > selection.until_ns:
                return
    finally:
        stop()
        for file in opened:
            file.close()


def _open_all(path: Path, opened: list[_Reader], *, follow: bool) -> tuple[list[_Reader], _Reader]:
    """Readers of the rotated files, oldest first, and of the current one; all of them are added to ``opened``.

    Opened before anything is read, newest first: a rotation meanwhile changes names, not what is open; a file met
    twice under two names is read once, and when one has lost its name before it was opened, all are looked for again.
    """
    current = _Reader(path, follow=follow)
    opened.append(current)
    current.open()
    while True:
        older = [_Reader(name) for name in reversed(files(path)[:-1])]
        opened += older
        for rotated in older:
            rotated.open()
        if all(rotated.is_open for rotated in older):
            break
        for rotated in older:
            rotated.close()
    seen, different = {current.file}, []
    for rotated in older:
        if rotated.file in seen:
            rotated.close()
        else:
            seen.add(rotated.file)
            different.append(rotated)
    if follow and not current.is_open and different:  # turned over just now: conmon may write on
        current = different.pop(0)
        current.follow(path)
    return different[::-1], current


def _go_to_tail(older: list[_Reader], current: _Reader, selection: Selection, abort: threading.Event) -> list[_Reader]:
    """Set the readers to where the last ``tail`` lines that are wanted begin; those of ``older`` that have some."""
    left, readers = selection.tail, [*older, current]
    for index in reversed(range(len(readers))):
        for end, raw in readers[index].backwards():
            if abort.is_set():
                return []
            line = parse_line(raw)
            if left == 0 or (line is not None and line.timestamp_ns < selection.since_ns):
                readers[index].go_to(end)
                return older[index:]
            if line is not None and selection.takes(line):
                left -= 1
    return older


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _identity_of(path: Path) -> Identity | None:
    try:
        return _identity(path.stat())
    except FileNotFoundError:
        return None


def _bounded(piece: bytes) -> bytes:
    """What is kept of a line until the rest of it is read: conmon's are 8 KiB, more is what a power loss left."""
    piece = piece.lstrip(b"\0")
    return piece if len(piece) <= LINE_SIZE_MAX else b""


class _Reader:
    """Reads one file onward, block by block. Blocks; one call at a time.

    With ``follow`` it sees what is added, and goes on to the next file after a rotation; else it ends where the file
    ended when it was opened.
    """

    def __init__(self, path: Path, *, follow: bool = False) -> None:
        self._path = path
        self._follow = follow
        self._fd = -1
        self._file: Identity | None = None
        self._position = 0
        self._end = 0
        self._rest = b""

    def open(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self._fd)
            self._file, self._end = _identity(status), status.st_size

    def follow(self, path: Path) -> None:
        """See what is added, too; ``path`` is the newest file's."""
        self._path, self._follow = path, True

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    @property
    def file(self) -> Identity | None:
        """Which one is open, or was."""
        return self._file

    def next_lines(self) -> list[LogLine]:
        """Complete lines that follow, about 64 KiB at most; empty at the end."""
        if self._follow and self._fd < 0:
            self._turn()
        while self._fd >= 0:
            size = _BLOCK if self._follow else min(_BLOCK, self._end - self._position)
            data = os.pread(self._fd, size, self._position)
            if not data and not (self._follow and self._turn()):
                return []
            self._position += len(data)
            *lines, rest = (self._rest + data).split(b"\n")
            self._rest = _bounded(rest)
            parsed = [line for raw in lines if (line := parse_line(raw)) is not None]
            if parsed:
                return parsed
        return []

    def backwards(self) -> Iterator[tuple[int, bytes]]:
        """Complete lines from the last one on, each with the offset behind it."""
        position = self._end if self._fd >= 0 else 0
        rest, rest_end = b"", -1  # what follows the last newline is no complete line
        while position > 0:
            size = min(_BLOCK, position)
            position -= size
            pieces = (os.pread(self._fd, size, position) + rest).split(b"\n")
            ends = [position + end for end in itertools.accumulate(len(piece) + 1 for piece in pieces[:-1])]
            for end, piece in reversed([*zip([*ends[1:], rest_end], pieces[1:], strict=False)]):
                if end >= 0:
                    yield end, piece
            rest, rest_end = _bounded(pieces[0]), ends[0] if ends else rest_end
        if rest_end >= 0:
            yield rest_end, rest

    def go_to(self, offset: int) -> None:
        """Read on from there."""
        self._position, self._rest = offset, b""

    def _turn(self) -> bool:
        """Go on to the file that came after this one; false when there is none yet, or this one still gets lines."""
        while self._file is None or _identity_of(self._path) != self._file:
            following = self._following()
            if following is None:
                return False
            if self._fd >= 0 and self._position < os.fstat(self._fd).st_size:
                return True
            path, identity = following
            try:
                opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # renamed just now, or removed with its container
                continue
            if _identity(os.fstat(opened)) != identity:  # another has its name by now
                os.close(opened)
                continue
            self.close()
            self._fd, self._file, self._position, self._rest = opened, identity, 0, b""
            return True
        return False

    def _following(self) -> tuple[Path, Identity] | None:
        """The file after this one, and which it is: there may be several, and who reads slowly is to miss none.

        The oldest there is when this one is gone, or there was none.
        """
        before: list[tuple[Path, Identity]] | None = None
        while True:
            found = [(name, identity) for name in files(self._path) if (identity := _identity_of(name)) is not None]
            if found == before:
                break
            before = found  # a rotation may have gone on meanwhile
        names = [identity for _, identity in found]
        later = found[names.index(self._file) + 1 :] if self._file in names else found
        return later[0] if later else None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def rotate_if_due(path: Path, control: Path, limits: Rotation) -> bool:
    """Turn the log over when it is too large; true when it was. Blocks; call it in a thread."""
    if not limits.size_max:
        return False
    try:
        if path.stat().st_size < limits.size_max:
            return False
    except FileNotFoundError:
        return False
    existing = files(path)[:-1]
    for older in existing:
        number = int(older.suffix[1:])
        if number + 1 >= limits.files_max:
            older.unlink(missing_ok=True)
        else:
            older.rename(path.with_name(f"{path.name}.{number + 1}"))
    # With one file in all the old one still is renamed first: conmon writes on until it has opened the new one.
    path.rename(path.with_name(f"{path.name}.1"))
    _tell_conmon(control)
    if limits.files_max == 1:
        path.with_name(f"{path.name}.1").unlink(missing_ok=True)
    return True


def _tell_conmon(control: Path) -> None:
    try:
        fd = os.open(control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        log.warning("log.not_reopened", path=str(control), reason=str(error))
        return
    try:
        os.write(fd, _REOPEN)
    finally:
        os.close(fd)
