"""Room on the disk that images leave to others."""

from __future__ import annotations

import errno
import os

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
RESERVE_BYTES, RESERVE_FILES, RESERVE_SHARE = 128 << 20, 10_000, 20
"""Kept free of images, but never more than a twentieth of the file system: the swarm's log, the records and logs of
containers and volumes mostly lie on the same one, and a layer may unpack to a thousand times its size."""


def keep_reserve(fd: int, size_bytes: int) -> None:
    """Before so much is written to the file system of ``fd``. Raises OSError (ENOSPC) when it would cut the reserve."""
    disk = os.fstatvfs(fd)
    free, reserve = disk.f_bavail * disk.f_frsize, min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // RESERVE_SHARE)
    few_files = disk.f_files and disk.f_favail < min(RESERVE_FILES, disk.f_files // RESERVE_SHARE)  # btrfs counts none
    if free - size_bytes < reserve or few_files:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
