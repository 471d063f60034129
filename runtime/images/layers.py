"""Unpacks a layer tar into a directory that overlayfs can use as a lower layer.

Whiteouts become character devices 0/0, opaque directories get ``trusted.overlay.opaque``. Nothing a tar says can touch
a path outside the directory (see ``rooted``). Nothing is merged: names that a member implies but the layer does not
list take owner and mode from the layers below, as overlayfs would otherwise show this layer's idea of them.

Sources: OCI image-spec ``layer.md`` (whiteouts, MUST and SHOULD of entries), kernel ``filesystems/overlayfs.rst``.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from base.files import make_public_folder
from base.trees import remove_tree
from runtime.images.compression import decompressed
from runtime.images.content import DISK_FULL, Reader, keep_reserve
from runtime.images.errors import DigestMismatchError, LayerError
from runtime.images.rooted import RootedDirectory, is_whiteout, look_up, split_name
from runtime.images.tarstream import TarStream, segments

log = structlog.get_logger(__name__)

WHITEOUT_PREFIX = ".wh."
WHITEOUT_META_PREFIX = ".wh..wh."
OPAQUE_MARKER = ".wh..wh..opq"
OPAQUE_XATTR = "trusted.overlay.opaque"
ID_MAX = 0xFFFF_FFFE
MTIME_S_MAX = 1 << 34
ROOM_CHECK_BYTES, MEMBER_BYTES = 1 << 20, 1 << 14
_XATTR_HEADER = "SCHILY.xattr."


class Unpacked(msgspec.Struct, frozen=True):
    """What came out: the digest of the uncompressed tar and the bytes in its regular files."""

    diff_id: str
    size_bytes: int


def unpack_layer(
    source: Reader,
    work: Path,
    *,
    parents: Sequence[Path] = (),
    diff_id: str = "",
    abort: threading.Event | None = None,
) -> Unpacked:
    """Unpack a tar (plain, gzip, zstd, bzip2 or xz) into ``work / "fs"``. Blocks; needs root.

    Args:
        work: an empty directory that nobody else uses; on an error the caller removes it.
        parents: directories of the layers below, topmost first.
        diff_id: digest that the uncompressed tar must have; "" to accept any.
        abort: makes it stop with AbortedError when set.

    Raises:
        LayerError: malformed, or it tries to leave the directory.
        DigestMismatchError: it is not the tar that ``diff_id`` names.
        OSError: the disk failed or is full.
    """
    root = work / "fs"
    make_public_folder(root)
    with contextlib.closing(decompressed(source)) as plain:
        stream = TarStream(plain, abort=abort)
        with contextlib.closing(_Extractor(root, work, parents)) as extractor:
            for member in stream:
                extractor.add(member, stream)
            extractor.finish()
        actual, _ = stream.drain()
    if diff_id and actual != diff_id:
        raise DigestMismatchError(expected=diff_id, actual=actual)
    return Unpacked(actual, extractor.size_bytes)


class _Extractor:
    def __init__(self, root: Path, work: Path, parents: Sequence[Path]) -> None:
        self._root, self._work, self._parents = root, work, parents
        self._tree = RootedDirectory(root)
        self._mtimes_ns: dict[str, int] = {}
        self._root_is_opaque = False
        self._removed = 0
        self._unchecked_bytes = ROOM_CHECK_BYTES
        self.size_bytes = 0
        if parents:
            _copy_metadata(parents[0].stat(), root)

    def close(self) -> None:
        self._tree.close()

    def add(self, member: tarfile.TarInfo, stream: TarStream) -> None:
        """Make one member; refuses to guess: what cannot be made as it says is an error."""
        try:
            self._add(member, stream)
        except OSError as error:
            if error.errno in (*DISK_FULL, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EROFS):
                raise
            raise LayerError(f"cannot make {member.name[:200]!r}: {error.strerror}") from error
        except (ValueError, OverflowError) as error:
            raise LayerError(f"malformed tar: {member.name[:200]!r}: {error}") from error

    def _make_room(self, size_bytes: int) -> None:
        """Before so much is written: asks the file system once a MiB or 64 members. Raises OSError (ENOSPC)."""
        self._unchecked_bytes += size_bytes
        if self._unchecked_bytes >= ROOM_CHECK_BYTES:
            keep_reserve(self._tree.fd(""), self._unchecked_bytes)
            self._unchecked_bytes = 0

    def _add(self, member: tarfile.TarInfo, stream: TarStream) -> None:
        self._make_room(MEMBER_BYTES)
        parts = split_name(member.name)
        if not parts:
            if not member.isdir():
                raise LayerError("malformed tar: the root of the layer is not a directory")
            self._dress_directory("", member)
            return
        parent, name = self._tree.resolve(parts[:-1], self._imply), parts[-1]
        if name == OPAQUE_MARKER:
            self._make_opaque(parent)
        elif name.startswith(WHITEOUT_META_PREFIX):
            return  # bookkeeping of AUFS, no content
        elif name.startswith(WHITEOUT_PREFIX):
            self._whiteout(parent, name.removeprefix(WHITEOUT_PREFIX))
        else:
            self._make(parent, name, member, stream)

    # ------------------------------------------------------------ whiteouts

    def _make_opaque(self, real: str) -> None:
        if real:
            os.setxattr(self._tree.fd(real), OPAQUE_XATTR, b"y")
        else:
            self._root_is_opaque = True  # overlayfs never looks the root up, so it would not see the mark

    def _whiteout(self, parent: str, name: str) -> None:
        if name in ("", ".", ".."):
            raise LayerError(f"malformed tar: whiteout of {name!r}")
        # layer.md: whiteouts hide what lower layers have, never what this layer itself adds
        if self._tree.lstat(parent, name) is None:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=self._tree.fd(parent))

    def _hide_lower_root(self) -> None:
        for name in {name for parent in self._parents for name in os.listdir(parent)}:
            info = self._tree.lstat("", name)
            if info is None:
                self._whiteout("", name)
            elif stat.S_ISDIR(info.st_mode):
                self._make_opaque(name)

    # -------------------------------------------------------------- members

    def _imply(self, parent: str, name: str) -> None:
        """Make a directory that the layer takes for granted, looking like the one below."""
        path = f"{parent}/{name}" if parent else name
        over_whiteout = self._tree.lstat(parent, name) is not None
        if over_whiteout:
            os.unlink(name, dir_fd=self._tree.fd(parent))
        os.mkdir(name, 0o755, dir_fd=self._tree.fd(parent))
        os.chmod(name, 0o755, dir_fd=self._tree.fd(parent))  # whatever the umask; a folder made just now is no link
        if over_whiteout:
            self._make_opaque(path)
            return
        for layer in self._parents:
            info = look_up(layer, path)
            if info is not None:
                if stat.S_ISDIR(info.st_mode):
                    _copy_metadata(info, self._tree.fd(path))
                    self._mtimes_ns[path] = info.st_mtime_ns
                return

    def _make(self, parent: str, name: str, member: tarfile.TarInfo, stream: TarStream) -> None:
        existing = self._tree.lstat(parent, name)
        keeps = existing is not None and stat.S_ISDIR(existing.st_mode) and member.isdir()
        if existing is not None and not keeps:
            self._discard(parent, name, existing)
        if member.isdir():
            real = f"{parent}/{name}" if parent else name
            if not keeps:
                os.mkdir(name, 0o700, dir_fd=self._tree.fd(parent))
                if existing is not None and is_whiteout(existing):
                    self._make_opaque(real)
            self._dress_directory(real, member)
        elif member.isreg():
            self._make_file(parent, name, member, stream)
        elif member.islnk():
            self._make_link(parent, name, member)
        elif member.issym():
            if not member.linkname or "\0" in member.linkname:
                raise LayerError(f"malformed tar: {member.name[:200]!r} links to nothing")
            os.symlink(member.linkname, name, dir_fd=self._tree.fd(parent))
            self._dress_special(parent, name, member)
        elif member.ischr() or member.isblk() or member.isfifo():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK if member.isblk() else stat.S_IFIFO
            device = 0 if member.isfifo() else os.makedev(member.devmajor, member.devminor)
            os.mknod(name, kind | 0o600, device, dir_fd=self._tree.fd(parent))
            self._dress_special(parent, name, member)
        else:
            raise LayerError(f"malformed tar: {member.name[:200]!r} has unknown type {member.type!r}")

    def _discard(self, parent: str, name: str, info: os.stat_result) -> None:
        """Take away what an earlier member of this layer made under the same name."""
        if not stat.S_ISDIR(info.st_mode):
            os.unlink(name, dir_fd=self._tree.fd(parent))
        else:
            self._removed += 1
            trash = self._work / f"removed-{self._removed}"
            os.rename(name, trash, src_dir_fd=self._tree.fd(parent))
            remove_tree(trash)
        if stat.S_ISDIR(info.st_mode) or stat.S_ISLNK(info.st_mode):
            self._tree.forget()

    def _make_file(self, parent: str, name: str, member: tarfile.TarInfo, stream: TarStream) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._tree.fd(parent))
        try:
            if member.sparse:
                self._write_sparse(fd, member, stream)
            else:
                for data in stream.chunks():
                    self._write(fd, data)
            os.fchown(fd, _checked_id(member.uid), _checked_id(member.gid))
            _set_xattrs(fd, member)
            os.fchmod(fd, member.mode & 0o7777)  # after the owner: chown takes set-user-ID away
            os.utime(fd, ns=(_mtime_ns(member), _mtime_ns(member)))
        finally:
            os.close(fd)
        self.size_bytes += member.size

    def _write(self, fd: int, data: bytes) -> None:
        self._make_room(len(data))
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def _write_sparse(self, fd: int, member: tarfile.TarInfo, stream: TarStream) -> None:
        """Segments are stored one after the other; the rest of the file is a hole."""
        parts = segments(member)
        if any(offset < 0 or size < 0 or offset + size > member.size for offset, size in parts):
            raise LayerError(f"malformed tar: {member.name[:200]!r} has data outside of the file")
        for offset, size in parts:
            os.lseek(fd, offset, os.SEEK_SET)
            while size > 0:
                data = stream.read(size)
                self._write(fd, data)
                size -= len(data)
        os.ftruncate(fd, member.size)

    def _make_link(self, parent: str, name: str, member: tarfile.TarInfo) -> None:
        target = split_name(member.linkname)
        if not target:
            raise LayerError(f"malformed tar: {member.name[:200]!r} is a link to the root")
        target_parent = self._tree.resolve(target[:-1], self._imply)
        info = self._tree.lstat(target_parent, target[-1])
        if info is None or is_whiteout(info) or stat.S_ISDIR(info.st_mode):
            raise LayerError(
                f"{member.name[:200]!r} links to {member.linkname[:200]!r}, which this layer does not have"
            )
        os.link(
            target[-1],
            name,
            src_dir_fd=self._tree.fd(target_parent),
            dst_dir_fd=self._tree.fd(parent),
            follow_symlinks=False,
        )

    def _dress_directory(self, real: str, member: tarfile.TarInfo) -> None:
        fd = self._tree.fd(real)
        os.fchown(fd, _checked_id(member.uid), _checked_id(member.gid))
        _set_xattrs(fd, member)
        os.fchmod(fd, member.mode & 0o7777)
        self._mtimes_ns[real] = _mtime_ns(member)

    def _dress_special(self, parent: str, name: str, member: tarfile.TarInfo) -> None:
        fd = self._tree.fd(parent)
        os.chown(name, _checked_id(member.uid), _checked_id(member.gid), dir_fd=fd, follow_symlinks=False)
        if not member.issym():
            os.chmod(name, member.mode & 0o7777, dir_fd=fd)  # made here just now and no link: not followed anywhere
        _set_xattrs(f"/proc/self/fd/{fd}/{name}", member)
        os.utime(name, ns=(_mtime_ns(member), _mtime_ns(member)), dir_fd=fd, follow_symlinks=False)

    def finish(self) -> None:
        """What must wait for the last member: times of directories, an opaque root."""
        if self._root_is_opaque:
            self._hide_lower_root()
        for real, mtime_ns in reversed(self._mtimes_ns.items()):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # replaced by a later member
                os.utime(self._tree.fd(real), ns=(mtime_ns, mtime_ns))


def _checked_id(value: int) -> int:
    if not 0 <= value <= ID_MAX:
        raise LayerError(f"malformed tar: impossible owner {value}")
    return value


def _mtime_ns(member: tarfile.TarInfo) -> int:
    seconds = float(member.mtime)
    if not math.isfinite(seconds) or not 0 <= seconds <= MTIME_S_MAX:
        return 0
    return int(seconds * 1_000_000_000)


def _set_xattrs(target: int | str, member: tarfile.TarInfo) -> None:
    """Only names that belong to content: a layer must not speak to overlayfs (``trusted.``) or to the host's LSM."""
    for key, text in member.pax_headers.items():
        name = key.removeprefix(_XATTR_HEADER)
        if name == key or not (name == "security.capability" or name.startswith(("user.", "system.posix_acl_"))):
            continue
        try:
            value = text.encode("utf-8", "surrogateescape")
            if isinstance(target, int):
                os.setxattr(target, name, value)
            else:
                os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM) or error.errno in DISK_FULL:
                raise
            log.warning("layer.xattr_skipped", xattr=name, reason=error.strerror)


def _copy_metadata(info: os.stat_result, target: Path | int) -> None:
    os.chown(target, info.st_uid, info.st_gid)
    os.chmod(target, stat.S_IMODE(info.st_mode))
