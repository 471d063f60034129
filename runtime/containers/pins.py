"""Paths that nobody can swap: bind mounts of what was opened by descriptor, for runc, which takes paths alone.

runc mounts from a mount namespace of its own, where ``/proc/PID/fd/N`` of ours is refused (EINVAL: another namespace's
mount); so the descriptor is mounted below RUN, as dockerd does (moby daemon/volume/safepath). A pin is needed until runc
has made the container, which then has a mount of its own. All functions block.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import structlog

from runtime.errors import HostError
from runtime.kernel.mounts import mount_descriptor, unmount

log = structlog.get_logger(__name__)


def pin(folder: Path, fd: int) -> Path:
    """A path of what ``fd`` is open on, in ``folder``, which is made. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = folder / str(len(os.listdir(folder)))
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        place.mkdir()
    else:
        place.touch(exist_ok=False)
    mount_descriptor(place, fd)
    return place


def unpin(folder: Path) -> bool:
    """Take all pins in ``folder`` away, and it; what will not go is logged. Idempotent. Whether nothing is left.

    Never what they are mounts of: names go one by one, and only once nothing is mounted there.
    """
    try:
        for place in list(folder.iterdir()):
            unmount(place)
            if place.is_dir():
                place.rmdir()
            else:
                place.unlink()
        folder.rmdir()
    except FileNotFoundError:
        return not folder.exists()
    except (HostError, OSError) as error:
        log.warning("pins.remain_left", path=str(folder), reason=str(error), retry="at the container's end")
        return False
    return True
