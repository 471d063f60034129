"""Removing and measuring directory trees of hostile shape: any depth, any names, no recursion."""

from __future__ import annotations

import contextlib
import os
import stat
from itertools import count
from pathlib import Path

DEPTH_MAX = 50


def remove_tree(path: Path) -> None:
    """Delete ``path`` and all below it; nothing there is fine. Never follows a link, never crosses to another tree.

    What lies ``DEPTH_MAX`` levels down is moved up below ``path`` first, so that neither the depth of the tree nor the
    length of its paths matters (``shutil.rmtree`` recurses and gives up at about a thousand levels).
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        path.unlink(missing_ok=True)
        return
    names = count()
    pending, found = [(str(path), 0)], list[str]()
    while pending:
        directory, depth = pending.pop()
        found.append(directory)
        with os.scandir(directory) as entries:
            for entry in list(entries):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                elif depth < DEPTH_MAX:
                    pending.append((entry.path, depth + 1))
                else:
                    pending.append((_moved_up(entry.path, path, names), 1))
    for directory in reversed(found):  # every directory was found after the one it lies in
        os.rmdir(directory)


def _moved_up(source: str, top: Path, names: count[int]) -> str:
    while True:
        target = top / f".removed-{next(names)}"
        if not target.exists() and not target.is_symlink():
            os.rename(source, target)
            return str(target)


def tree_size(path: Path) -> int:
    """Bytes in the regular files below ``path``, hard links counted once; what vanishes meanwhile is left out."""
    total, seen, pending = 0, set[tuple[int, int]](), [str(path)]
    while pending:
        with contextlib.suppress(FileNotFoundError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    info = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(info.st_mode):
                        pending.append(entry.path)
                    elif stat.S_ISREG(info.st_mode):
                        if info.st_nlink > 1:
                            if (info.st_dev, info.st_ino) in seen:
                                continue
                            seen.add((info.st_dev, info.st_ino))
                        total += info.st_size
    return total
