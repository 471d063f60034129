"""What is nobody's any more and would not go now: tried again while its owner lives, not only at the next start."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from base.files import sync_folder
from base.retrying import FIRST_S, Retrier
from base.trees import remove_tree

log = structlog.get_logger(__name__)

MAX_S = 30.0


class Leftovers:
    """The trees of one owner. Any thread.

    For paths that are never used again: a tree that comes later under the same name would go as well.
    """

    def __init__(self, *, remove: Callable[[Path], None] = remove_tree, first_s: float = FIRST_S) -> None:
        """
        Args:
            remove: what a try is; raises OSError when something is left.
            first_s: the first pause between tries.
        """
        self._remove = remove
        self._left: set[Path] = set()
        self._lock = threading.Lock()
        self._retrier = Retrier(self._try_all, self._is_pending, name="leftovers", first_s=first_s, max_s=MAX_S)

    def remove(self, path: Path) -> None:
        """Delete ``path`` and all below it, now or when it can be done; nothing there is fine. Blocks."""
        try:
            self._remove(path)
        except OSError as error:
            log.error("leftover.not_removed", path=str(path), reason=str(error), retry="until it is")
            with self._lock:
                self._left.add(path)
            self._retrier.wake()

    def close(self) -> None:
        """Try no more: the rest is the next start's. Blocks."""
        self._retrier.close()

    def _try_all(self) -> None:
        for path in list(self._left):
            try:
                self._remove(path)
            except OSError:
                continue
            with self._lock:
                self._left.discard(path)
            log.info("leftover.removed", path=str(path))

    def _is_pending(self) -> bool:
        return bool(self._left)


def remove_as_a_whole(path: Path, aside: Path) -> None:
    """Make ``path`` a tree that does not count in one step, ``aside``, and remove that; what lies there already goes first.

    Raises:
        OSError: ``path`` is as it was, or gone; of ``aside`` something may be left, for the next time.
    """
    remove_tree(aside)
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        sync_folder(path.parent)
    remove_tree(aside)
