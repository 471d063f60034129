"""Overlayfs as the store of container root file systems: mount options, and whether the state directory can hold it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from runtime.errors import HostError
from runtime.images.errors import OverlayUnsupportedError, SnapshotError
from runtime.kernel import mounts
from runtime.kernel.mounts import filesystem_of, mount_overlay, own_mounts

OPTIONS_BYTES_MAX = 4095


def overlay_options(layers: list[str], upper: str, work: str) -> str:
    """Mount options; ``layers`` are relative names, topmost first. Raises SnapshotError if they do not fit in a page."""
    options = f"lowerdir={':'.join(layers)},upperdir={upper},workdir={work}"
    if len(os.fsencode(options)) > OPTIONS_BYTES_MAX:
        raise SnapshotError(f"an image of {len(layers)} layers cannot be mounted: too many layers")
    return options


def unmount(target: Path) -> None:
    """``mounts.unmount`` with an error of this package. Blocks. Raises SnapshotError."""
    try:
        mounts.unmount(target)
    except HostError as error:
        raise SnapshotError(str(error)) from error


def probe_overlay(directory: Path) -> None:
    """Mount an overlay below ``directory`` and unmount it. Blocks.

    Raises:
        OverlayUnsupportedError: with what to do about it.
    """
    parts = [directory / name for name in ("lower", "upper", "work", "merged")]
    for part in parts:
        part.mkdir(parents=True, exist_ok=True)
    lower, upper, work, merged = parts
    try:
        mount_overlay(merged, overlay_options([str(lower)], str(upper), str(work)))
    except OSError as error:
        raise OverlayUnsupportedError(_advice(directory, error)) from error
    unmount(merged)


def _advice(directory: Path, error: OSError) -> str:
    kind = filesystem_of(directory, own_mounts())
    what = f"overlayfs cannot be used below {directory} ({kind}): {error.strerror}."
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"{what} Mounting needs root (CAP_SYS_ADMIN): run swarmd as root."
    if error.errno == errno.ENODEV:
        return f"{what} This kernel has no overlayfs: load it with `modprobe overlay`."
    return f"{what} Put the state directory on ext4, xfs (ftype=1), btrfs or tmpfs, not on another overlay or a network share."
