"""Unpacks a layer tar into a directory that overlayfs can use as a lower layer.

Whiteouts become character devices 0/0, opaque directories get ``trusted.overlay.opaque``. Nothing a tar says can touch
a path outside the directory (see ``rooted``). Nothing is merged: names that a member implies but the layer does not
list take owner and mode from the layers below, as overlayfs would otherwise show this layer's idea of them.

Sources: OCI image-spec ``layer.md`` (whiteouts, MUST and SHOULD of entries), kernel ``filesystems/overlayfs.rst``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from base.trees import remove_tree
from runtime.unpack import headers
from runtime.unpack.compression import Decompressed
from runtime.unpack.errors import MalformedArchiveError
from runtime.unpack.room import DISK_FULL, keep_reserve
from runtime.unpack.rooted import RootedDirectory, is_whiteout, look_up, split_name
from runtime.unpack.tar import TarStream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.unpack.compression import Reader
    from runtime.unpack.headers import TarMember

WHITEOUT_PREFIX = ".wh."
WHITEOUT_META_PREFIX = ".wh..wh."
OPAQUE_MARKER = ".wh..wh..opq"
OPAQUE_XATTR = "trusted.overlay.opaque"
ID_MAX = 0xFFFF_FFFE
ROOM_CHECK_BYTES, MEMBER_BYTES = 1 << 20, 1 << 14
SKIPPED_MAX = 16
_SPECIAL = {headers.CHARACTER: stat.S_IFCHR, headers.BLOCK: stat.S_IFBLK, headers.FIFO: stat.S_IFIFO}


class LayerContent(NamedTuple):
    """What came out.

    Attributes:
        diff_id: digest of the uncompressed tar.
        size_bytes: in its regular files, holes left out.
        skipped: extended attributes that the file system did not take, with its reason.
    """

    diff_id: str
    size_bytes: int
    skipped: list[tuple[str, str]]


def unpack_layer(
    source: Reader, work: Path, *, parents: Sequence[Path] = (), check: Callable[[], None] | None = None
) -> LayerContent:
    """Unpack a tar (plain, gzip, zstd, bzip2 or xz) into ``work / "fs"``. Blocks; needs root.

    Args:
        work: an empty directory that nobody else uses; on an error the caller removes it.
        parents: directories of the layers below, topmost first.
        check: called now and then; ends it by what it raises.

    Raises:
        MalformedArchiveError: malformed, beyond a bound, or it tries to leave the directory.
        OSError: the disk failed or is full.
    """
    root = work / "fs"
    root.mkdir(mode=0o755)
    root.chmod(0o755)  # whatever the umask
    with Decompressed(source) as plain:
        stream = TarStream(plain, check=check)
        with contextlib.closing(_Extractor(root, work, parents)) as extractor:
            for member in stream:
                extractor.add(member, stream)
            extractor.finish()
        diff_id, _ = stream.drain()
    return LayerContent(diff_id, extractor.size_bytes, sorted(extractor.skipped.items()))


class _Extractor:
    def __init__(self, root: Path, work: Path, parents: Sequence[Path]) -> None:
        self._root, self._work, self._parents = root, work, parents
        self._tree = RootedDirectory(root)
        self._mtimes_ns: dict[str, int] = {}
        self._root_is_opaque = False
        self._removed = 0
        self._unchecked_bytes = ROOM_CHECK_BYTES
        self.size_bytes = 0
        self.skipped: dict[str, str] = {}
        if parents:
            _copy_metadata(parents[0].stat(), root)

    def close(self) -> None:
        self._tree.close()

    def add(self, member: TarMember, stream: TarStream) -> None:
        """Make one member; refuses to guess: what cannot be made as it says is an error."""
        try:
            self._add(member, stream)
        except OSError as error:
            if error.errno in (*DISK_FULL, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EROFS):
                raise
            raise MalformedArchiveError(f"cannot make {member.name[:200]!r}: {error.strerror}") from error
        except (ValueError, OverflowError) as error:
            raise MalformedArchiveError(f"malformed tar: {member.name[:200]!r}: {error}") from error

    def _make_room(self, size_bytes: int) -> None:
        """Before so much is written: asks the file system once a MiB or 64 members. Raises OSError (ENOSPC)."""
        self._unchecked_bytes += size_bytes
        if self._unchecked_bytes >= ROOM_CHECK_BYTES:
            keep_reserve(self._tree.fd(""), self._unchecked_bytes)
            self._unchecked_bytes = 0

    def _add(self, member: TarMember, stream: TarStream) -> None:
        self._make_room(MEMBER_BYTES)
        parts = split_name(member.name)
        if not parts:
            if member.kind != headers.DIRECTORY:
                raise MalformedArchiveError("malformed tar: the root of the layer is not a directory")
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
            raise MalformedArchiveError(f"malformed tar: whiteout of {name!r}")
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

    def _make(self, parent: str, name: str, member: TarMember, stream: TarStream) -> None:
        existing = self._tree.lstat(parent, name)
        keeps = existing is not None and stat.S_ISDIR(existing.st_mode) and member.kind == headers.DIRECTORY
        if existing is not None and not keeps:
            self._discard(parent, name, existing)
        if member.kind == headers.DIRECTORY:
            real = f"{parent}/{name}" if parent else name
            if not keeps:
                os.mkdir(name, 0o700, dir_fd=self._tree.fd(parent))
                if existing is not None and is_whiteout(existing):
                    self._make_opaque(real)
            self._dress_directory(real, member)
        elif member.kind == headers.REGULAR:
            self._make_file(parent, name, member, stream)
        elif member.kind == headers.LINK:
            self._make_link(parent, name, member)
        elif member.kind == headers.SYMLINK:
            if not member.link_name or "\0" in member.link_name:
                raise MalformedArchiveError(f"malformed tar: {member.name[:200]!r} links to nothing")
            os.symlink(member.link_name, name, dir_fd=self._tree.fd(parent))
            self._dress_special(parent, name, member)
        elif (special := _SPECIAL.get(member.kind)) is not None:
            device = 0 if member.kind == headers.FIFO else os.makedev(member.major, member.minor)
            os.mknod(name, special | 0o600, device, dir_fd=self._tree.fd(parent))
            self._dress_special(parent, name, member)
        else:
            raise MalformedArchiveError(f"malformed tar: {member.name[:200]!r} has unknown type {member.kind!r}")

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

    def _make_file(self, parent: str, name: str, member: TarMember, stream: TarStream) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._tree.fd(parent))
        try:
            if member.segments is not None:
                self._write_sparse(fd, member, stream)
            else:
                for data in stream.chunks():
                    self._write(fd, data)
            os.fchown(fd, _checked_id(member.uid), _checked_id(member.gid))
            self._set_xattrs(fd, member)
            os.fchmod(fd, member.mode & 0o7777)  # after the owner: chown takes set-user-ID away
            os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
        finally:
            os.close(fd)
        self.size_bytes += member.stored

    def _write(self, fd: int, data: memoryview) -> None:
        self._make_room(len(data))
        while data:
            data = data[os.write(fd, data) :]

    def _write_sparse(self, fd: int, member: TarMember, stream: TarStream) -> None:
        """Segments are stored one after the other; the rest of the file is a hole."""
        for offset, size in member.segments or ():
            os.lseek(fd, offset, os.SEEK_SET)
            while size > 0:
                data = stream.some(size)
                if not data:
                    raise MalformedArchiveError(f"malformed tar: {member.name[:200]!r} has data outside of the file")
                self._write(fd, data)
                size -= len(data)
        os.ftruncate(fd, member.size)

    def _make_link(self, parent: str, name: str, member: TarMember) -> None:
        target = split_name(member.link_name)
        if not target:
            raise MalformedArchiveError(f"malformed tar: {member.name[:200]!r} is a link to the root")
        target_parent = self._tree.resolve(target[:-1], self._imply)
        info = self._tree.lstat(target_parent, target[-1])
        if info is None or is_whiteout(info) or stat.S_ISDIR(info.st_mode):
            raise MalformedArchiveError(
                f"{member.name[:200]!r} links to {member.link_name[:200]!r}, which this layer does not have"
            )
        os.link(
            target[-1],
            name,
            src_dir_fd=self._tree.fd(target_parent),
            dst_dir_fd=self._tree.fd(parent),
            follow_symlinks=False,
        )

    def _dress_directory(self, real: str, member: TarMember) -> None:
        fd = self._tree.fd(real)
        os.fchown(fd, _checked_id(member.uid), _checked_id(member.gid))
        self._set_xattrs(fd, member)
        os.fchmod(fd, member.mode & 0o7777)
        self._mtimes_ns[real] = member.mtime_ns

    def _dress_special(self, parent: str, name: str, member: TarMember) -> None:
        fd = self._tree.fd(parent)
        os.chown(name, _checked_id(member.uid), _checked_id(member.gid), dir_fd=fd, follow_symlinks=False)
        if member.kind != headers.SYMLINK:
            os.chmod(name, member.mode & 0o7777, dir_fd=fd)  # made here just now and no link: not followed anywhere
        self._set_xattrs(f"/proc/self/fd/{fd}/{name}", member)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=fd, follow_symlinks=False)

    def _set_xattrs(self, target: int | str, member: TarMember) -> None:
        """Only names that belong to content: a layer must not speak to overlayfs (``trusted.``) or to the host's LSM."""
        for name, value in member.xattrs.items():
            if name != "security.capability" and not name.startswith(("user.", "system.posix_acl_")):
                continue
            try:
                if isinstance(target, int):
                    os.setxattr(target, name, value)
                else:
                    os.setxattr(target, name, value, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise
                if len(self.skipped) < SKIPPED_MAX:
                    self.skipped[name[:200]] = str(error.strerror)

    def finish(self) -> None:
        """What must wait for the last member: times of directories, an opaque root."""
        if self._root_is_opaque:
            self._hide_lower_root()
        for real, mtime_ns in reversed(self._mtimes_ns.items()):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # replaced by a later member
                os.utime(self._tree.fd(real), ns=(mtime_ns, mtime_ns))


def _checked_id(value: int) -> int:
    if not 0 <= value <= ID_MAX:
        raise MalformedArchiveError(f"malformed tar: impossible owner {value}")
    return value


def _copy_metadata(info: os.stat_result, target: Path | int) -> None:
    os.chown(target, info.st_uid, info.st_gid)
    os.chmod(target, stat.S_IMODE(info.st_mode))
