"""Filling an empty volume with what the image has at its place.

Every step is taken by descriptor, on both sides: a container that runs with the same volume may put links into it
meanwhile, and none is followed; what it made itself stays as it made it. Blocks; call it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from base.trees import remove_tree
from runtime.kernel import rooted

OPEN_MAX = 32
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_XATTR = (errno.ENOTSUP, errno.ENODATA, errno.EINVAL, errno.EPERM)
_CLOSED = -1


def populate(volume: Path, rootfs: Path, target: str) -> None:
    """Copy folders, files and links from ``target`` inside ``rootfs`` into the folder ``volume``, unless it has content.

    Owner, mode, times and extended attributes come along, the top folder's too (moby container.copyExistingContents).
    Nothing there to copy is fine.

    Raises:
        OSError: the disk failed or is full. The volume is empty then, and filled at the next try.
    """
    root = rooted.open_root(rootfs)
    try:
        source = rooted.open_inside(root, target, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return
    finally:
        os.close(root)
    try:
        _fill(volume, source)
    finally:
        os.close(source)


def _fill(volume: Path, source: int) -> None:
    marker = volume.parent / "copying"
    lock = os.open(volume.parent, _FOLDER)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two containers may start with it at once
        if marker.exists():  # cut short by a crash: half of it must not pass for the volume's content
            _empty(volume)
            marker.unlink()
        if any(volume.iterdir()):
            return
        marker.touch()
        try:
            _copy_tree(source, volume)
        except BaseException:
            _empty(volume)
            marker.unlink()
            raise
        marker.unlink()
    finally:
        os.close(lock)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        remove_tree(entry)


@dataclass(slots=True)
class _Pair:
    """A folder on the way, on both sides; ``pending`` are names in it that are still to be copied."""

    source: int
    target: int
    pending: list[str]
    identities: tuple[tuple[int, int], ...]

    def close(self) -> None:
        for fd in (self.source, self.target):
            if fd != _CLOSED:
                os.close(fd)
        self.source = self.target = _CLOSED


def _copy_tree(source: int, target: Path) -> None:
    """Iterative, with a bounded number of descriptors, whatever the depth (see ``base.trees``)."""
    way = [_pair(os.dup(source), os.open(target, _FOLDER))]
    try:
        while way:
            folder = way[-1]
            if folder.pending:
                child = _copy(folder, folder.pending.pop())
                if child is not None:
                    way.append(child)
                    if len(way) > OPEN_MAX:
                        way[-1 - OPEN_MAX].close()
                continue
            if len(way) > 1:
                _come_back(way[-2], folder)
            _dress(folder.source, folder.target)
            way.pop().close()
    finally:
        for folder in way:
            folder.close()


def _pair(source: int, target: int) -> _Pair:
    """Owns both from here on."""
    pair = _Pair(source, target, [], ())
    try:
        pair.pending = os.listdir(source)
        pair.identities = (_identity(source), _identity(target))
    except BaseException:
        pair.close()
        raise
    return pair


def _identity(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def _come_back(parent: _Pair, child: _Pair) -> None:
    """Open a closed folder again by ``..``, which is believed only if it is the folder that was left."""
    if parent.source != _CLOSED:
        return
    parent.source = os.open("..", _FOLDER, dir_fd=child.source)
    parent.target = os.open("..", _FOLDER, dir_fd=child.target)
    if (_identity(parent.source), _identity(parent.target)) != parent.identities:
        raise OSError(errno.ESTALE, "a folder of the volume was moved while it was filled")


def _copy(folder: _Pair, name: str) -> _Pair | None:
    """One entry; a folder is returned to be gone through. A name that is taken by now is left as it is."""
    info = os.stat(name, dir_fd=folder.source, follow_symlinks=False)
    if stat.S_ISDIR(info.st_mode):
        return _enter(folder, name)
    with contextlib.suppress(FileExistsError):
        if stat.S_ISREG(info.st_mode):
            _copy_file(folder, name)
        elif stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(name, dir_fd=folder.source), name, dir_fd=folder.target)
            os.chown(name, info.st_uid, info.st_gid, dir_fd=folder.target, follow_symlinks=False)
    return None


def _enter(folder: _Pair, name: str) -> _Pair | None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=folder.target)
    try:
        target = os.open(name, _FOLDER, dir_fd=folder.target)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
            return None
        raise
    try:
        source = os.open(name, _FOLDER, dir_fd=folder.source)
    except BaseException:
        os.close(target)
        raise
    return _pair(source, target)


def _copy_file(folder: _Pair, name: str) -> None:
    source = os.open(name, _READ, dir_fd=folder.source)
    try:
        target = os.open(name, _MAKE, 0o600, dir_fd=folder.target)
        try:
            _copy_data(source, target)
            _dress(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_data(source: int, target: int) -> None:
    """Holes stay holes."""
    size = os.fstat(source).st_size
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole up to the end
                raise
            break
        end = os.lseek(source, offset, os.SEEK_HOLE)
        os.lseek(target, offset, os.SEEK_SET)
        while offset < end and (sent := os.sendfile(target, source, offset, end - offset)):
            offset += sent
        offset = end
    os.ftruncate(target, size)


def _dress(source: int, target: int) -> None:
    """Owner, extended attributes, mode and times of an open file or folder."""
    info = os.fstat(source)
    os.fchown(target, info.st_uid, info.st_gid)
    for name in _xattrs(source):
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno not in _NO_XATTR:
                raise
    os.fchmod(target, stat.S_IMODE(info.st_mode))  # after the owner: chown takes set-user-ID away
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _xattrs(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno not in _NO_XATTR:
            raise
        return []
