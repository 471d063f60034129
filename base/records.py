"""Records, a file each, whose latest content reaches the disk though the disk cannot take it now.

What happened has happened, whether or not it can be written down: a container has ended, a user has stopped it, the
managers are others. ``keep`` is for such records. What cannot be written stays in memory and is tried again until it is on
the disk; meanwhile a copy lies in a folder on another file system, if there is one for that (the run folder, a tmpfs),
where the next daemon finds it when this one is killed. The file itself is the old one, whole, until then.

A record of what somebody asks for, and can be refused, is ``write``: on the disk, or an error and nothing has changed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path

import structlog

from base.files import write_atomic
from base.retrying import FIRST_S, MAX_S, Retrier

log = structlog.get_logger(__name__)

_FOR_ALL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""What the next record would fail with as well."""


@dataclass(slots=True)
class _Unsaved:
    data: bytes
    durable: bool
    spilled: bool
    reason: str


class Records:
    """The records of one owner. Any thread; of two writers of one record the later one counts.

    Args:
        spill: a folder that is made when it is needed; where unsaved records lie meanwhile.
        first_s, max_s: the pauses between tries.
    """

    def __init__(self, spill: Path | None = None, *, first_s: float = FIRST_S, max_s: float = MAX_S) -> None:
        self._spill = spill
        self._unsaved: dict[Path, _Unsaved] = {}
        self._lock = threading.RLock()
        self._retrier = Retrier(self._save_all, self._is_pending, name="records", first_s=first_s, max_s=max_s)

    def write(self, path: Path, data: bytes, *, durable: bool = False) -> None:
        """Replace the file ``path``. Blocks. Raises OSError: it is as it was, and so is what is unsaved of it."""
        with self._lock:
            write_atomic(path, data, durable=durable)
            self._settled(path)

    def keep(self, path: Path, data: bytes, *, durable: bool = False) -> bool:
        """Replace the file ``path``, now or when that can be done. Blocks.

        Returns:
            Whether it outlives this process: false only when neither the file nor a copy could be written.
        """
        with self._lock:
            try:
                self.write(path, data, durable=durable)
            except OSError as error:
                first = path not in self._unsaved
                self._unsaved[path] = _Unsaved(data, durable, self._spilled(path, data), str(error))
                if first:
                    log.error("record.unsaved", path=str(path), reason=str(error), kept="until it can be saved")
            else:
                return True
        self._retrier.wake()
        return self.is_safe(path)

    def read(self, path: Path) -> bytes | None:
        """The latest content, None when there is none. What a daemon before left unsaved is saved later. Raises OSError."""
        with self._lock:
            data = _read(path)
            copy = self._copy(path)
            spilled = None if copy is None else _read(copy)
            if copy is None or spilled is None:
                return data
            # The copy goes after the file was written: a kill in between leaves one that is the older of the two.
            if data is None or copy.stat().st_mtime_ns >= path.stat().st_mtime_ns:
                self._unsaved[path] = _Unsaved(spilled, durable=False, spilled=True, reason="left by the daemon before")
                data = spilled
        self._retrier.wake()
        return data

    def drop(self, path: Path) -> None:
        """The record is of no use any more: do not save it. Whoever removes the file does that afterwards."""
        with self._lock:
            self._settled(path)

    def tidy(self) -> None:
        """After every record was read: remove copies of records that are no more. Blocks."""
        if self._spill is None or not self._spill.is_dir():
            return
        with self._lock:
            wanted = {self._copy(path) for path in self._unsaved}
            for copy in self._spill.iterdir():
                if copy not in wanted:
                    copy.unlink(missing_ok=True)

    def is_safe(self, path: Path) -> bool:
        """Whether the latest content outlives this process, in the file or as a copy."""
        with self._lock:
            unsaved = self._unsaved.get(path)
            return unsaved is None or unsaved.spilled

    @property
    def unsaved(self) -> tuple[int, str]:
        """How many files are not what they should be, and why one of them is not."""
        with self._lock:
            return len(self._unsaved), next((each.reason for each in self._unsaved.values()), "")

    def close(self) -> None:
        """Try a last time. Blocks. What is unsaved then has its copy, or is lost."""
        self._retrier.close()
        self._save_all()
        for path, unsaved in self._unsaved.items():
            log.error("record.left_unsaved", path=str(path), reason=unsaved.reason, copied=unsaved.spilled)

    def _save_all(self) -> None:
        for path in list(self._unsaved):
            with self._lock:  # one at a time: others write meanwhile
                unsaved = self._unsaved.get(path)
                if unsaved is None:
                    continue
                try:
                    self.write(path, unsaved.data, durable=unsaved.durable)
                except OSError as error:
                    unsaved.reason = str(error)
                    unsaved.spilled = unsaved.spilled or self._spilled(path, unsaved.data)
                    if error.errno in _FOR_ALL:
                        return
                else:
                    log.info("record.saved", path=str(path))

    def _is_pending(self) -> bool:
        return bool(self._unsaved)

    def _settled(self, path: Path) -> None:
        """The file is the latest, or of no use."""
        unsaved = self._unsaved.pop(path, None)
        if unsaved is not None and unsaved.spilled and (copy := self._copy(path)) is not None:
            with contextlib.suppress(OSError):  # an older one does not count
                copy.unlink(missing_ok=True)

    def _spilled(self, path: Path, data: bytes) -> bool:
        """Whether a copy was written."""
        copy = self._copy(path)
        if copy is None:
            return False
        try:
            copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(copy, data, durable=False)
        except OSError:
            return False
        return True

    def _copy(self, path: Path) -> Path | None:
        if self._spill is None:
            return None
        return self._spill / hashlib.sha256(str(path).encode()).hexdigest()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
