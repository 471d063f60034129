"""Unpacking layers: what they say is done, what they try is not."""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from base.trees import remove_tree
from runtime.unpack.errors import MalformedArchiveError
from runtime.unpack.layers import OPAQUE_XATTR, LayerContent, unpack_layer
from tests.support_images import busybox_rootfs, make_tar, sha256

pytestmark = pytest.mark.root


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def unpack(
    tmp_path: Path, tar: bytes, *, parents: tuple[Path, ...] = (), name: str = "work"
) -> tuple[Path, LayerContent]:
    work = tmp_path / name
    work.mkdir()
    return work / "fs", unpack_layer(io.BytesIO(tar), work, parents=parents)


def test_members_are_made_as_they_say(tmp_path: Path) -> None:
    tar = make_tar(
        [
            member(".", tarfile.DIRTYPE, mode=0o751, uid=7),
            member("d/", tarfile.DIRTYPE, mode=0o1777, uid=1, gid=2, mtime=1000),
            member("d/suid", mode=0o4755, uid=1000, gid=1001, mtime=1234),
            member("d/hard", tarfile.LNKTYPE, "d/suid"),
            member("d/sym", tarfile.SYMTYPE, "../../../../etc/passwd", uid=5, mtime=77),
            member("pipe", tarfile.FIFOTYPE, mode=0o622),
            member("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            member("user", pax_headers={"SCHILY.xattr.user.k": "v"}),
        ]
    )
    root, unpacked = unpack(tmp_path, tar)
    assert unpacked.diff_id == sha256(tar)
    assert (stat.S_IMODE(root.stat().st_mode), root.stat().st_uid) == (0o751, 7)
    info = (root / "d").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime) == (0o1777, 1, 2, 1000)
    info = (root / "d/suid").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime) == (0o4755, 1000, 1001, 1234)
    assert (root / "d/hard").stat().st_ino == info.st_ino
    assert os.readlink(root / "d/sym") == "../../../../etc/passwd"
    assert ((root / "d/sym").lstat().st_uid, (root / "d/sym").lstat().st_mtime) == (5, 77)
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert os.getxattr(root / "user", "user.k") == b"v"


def test_whiteouts_take_the_form_of_overlayfs(tmp_path: Path) -> None:
    tar = make_tar(
        [
            ("kept", b""),
            (".wh.kept", b""),
            (".wh.gone", b""),
            (".wh.again", b""),
            ("again", None),
            ("d/.wh..wh..opq", b""),
            (".wh..wh.plnk", b""),
        ]
    )
    root, _ = unpack(tmp_path, tar)
    assert stat.S_ISREG((root / "kept").stat().st_mode)
    gone = (root / "gone").lstat()
    assert (stat.S_ISCHR(gone.st_mode), gone.st_rdev) == (True, 0)
    assert os.getxattr(root / "again", OPAQUE_XATTR) == b"y"
    assert os.getxattr(root / "d", OPAQUE_XATTR) == b"y"
    assert sorted(os.listdir(root)) == ["again", "d", "gone", "kept"]


def test_opaque_root_hides_all_below(tmp_path: Path) -> None:
    below, _ = unpack(tmp_path, make_tar([("old", b""), ("both", None), ("both/x", b"")]), name="below")
    root, _ = unpack(tmp_path, make_tar([(".wh..wh..opq", b""), ("both", None), ("new", b"")]), parents=(below,))
    assert (root / "old").lstat().st_rdev == 0
    assert stat.S_ISCHR((root / "old").lstat().st_mode)
    assert os.getxattr(root / "both", OPAQUE_XATTR) == b"y"


def test_implied_directories_look_like_those_below(tmp_path: Path) -> None:
    below, _ = unpack(tmp_path, make_tar([member("srv/", tarfile.DIRTYPE, mode=0o700, uid=33, gid=34)]), name="below")
    root, _ = unpack(tmp_path, make_tar([("srv/new/file", b"")]), parents=(below,))
    info = (root / "srv").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o700, 33, 34)
    assert stat.S_IMODE((root / "srv/new").stat().st_mode) == 0o755


def test_links_are_followed_inside_only(tmp_path: Path) -> None:
    tar = make_tar(
        [
            member("lib", tarfile.SYMTYPE, "/usr/lib"),
            member("up", tarfile.SYMTYPE, "../../../.."),
            ("lib/a", b"1"),
            ("up/b", b"2"),
            member("hard", tarfile.LNKTYPE, "/lib/a"),
        ]
    )
    root, _ = unpack(tmp_path, tar)
    assert (root / "usr/lib/a").read_bytes() == b"1"
    assert (root / "b").read_bytes() == b"2"
    assert (root / "hard").read_bytes() == b"1"


@pytest.mark.parametrize(
    "members",
    [
        [("../out", b"x")],
        [("a/../../out", b"x")],
        [("../.wh.out", b"")],
        [(".wh...", b"")],
        [(".wh..", b"")],
        [("d/.wh.", b"")],
        [member("l", tarfile.LNKTYPE, "../../../etc/passwd")],
        [member("l", tarfile.LNKTYPE, "/etc/passwd")],
        [member("s", tarfile.SYMTYPE, "s"), ("s/x", b"")],
        [("f", b""), ("f/x", b"")],
        [member("l", tarfile.LNKTYPE, "")],
        [member("b", b"Z")],
        [member("n" * 300)],
        [member("a/" * 600 + "x")],
        [member("a/" * 3000 + "x")],
        [member(".", tarfile.SYMTYPE, "/etc")],
        [member("dev", tarfile.CHRTYPE, devmajor=1 << 20, devminor=1 << 20, pax_headers={})],
    ],
)
def test_hostile_members_are_refused(tmp_path: Path, members: list[tuple[str, bytes | None] | tarfile.TarInfo]) -> None:
    (tmp_path / "outside").mkdir()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(MalformedArchiveError):
        unpack(tmp_path, make_tar(members))
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "work"])
    remove_tree(tmp_path / "work")
    assert sorted(os.listdir(tmp_path)) == before


def test_replaced_link_does_not_lead_out_afterwards(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    tar = make_tar(
        [
            ("d", None),
            ("d/in", b""),
            member("d", tarfile.SYMTYPE, str(outside)),
            ("d/x", b"inside"),
            member("file", tarfile.SYMTYPE, str(outside / "target")),
            ("file", b"not through the link"),
        ]
    )
    root, _ = unpack(tmp_path, tar)
    assert os.listdir(outside) == []
    assert (root / str(outside)[1:] / "x").read_bytes() == b"inside"
    assert (root / "file").read_bytes() == b"not through the link"


def test_layers_cannot_speak_to_overlayfs(tmp_path: Path) -> None:
    headers = {"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.trusted.overlay.redirect": "/etc"}
    root, _ = unpack(tmp_path, make_tar([member("d", tarfile.DIRTYPE, pax_headers=headers)]))
    assert os.listxattr(root / "d") == []


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress, bytes])
def test_compressed_layers_and_their_diff_id(tmp_path: Path, compress: object) -> None:
    tar = busybox_rootfs()
    packed = compress(tar)  # type: ignore[operator]
    root, unpacked = unpack(tmp_path, packed)
    assert unpacked.diff_id == sha256(tar)
    assert (root / "bin/busybox").stat().st_size == unpacked.size_bytes - len((root / "etc/passwd").read_bytes()) - len(
        (root / "etc/group").read_bytes()
    )


def test_sparse_files_keep_their_holes(tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.truncate(1 << 24)
        file.seek(1 << 20)
        file.write(b"data")
    for style in ("gnu", "posix"):
        tar = tmp_path / f"{style}.tar"
        subprocess.run(["tar", "-C", tmp_path, "-S", f"--format={style}", "-cf", tar, "sparse"], check=True)
        root, _ = unpack(tmp_path, tar.read_bytes(), name=style)
        assert (root / "sparse").read_bytes() == source.read_bytes()
        assert (root / "sparse").stat().st_blocks * 512 < 1 << 20


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), packed=st.booleans())
def test_broken_layers_are_refused_or_differ(tmp_path: Path, data: st.DataObject, packed: bool) -> None:
    tar = make_tar([("a", b"x" * 700), ("d", None), ("d/b", b"y"), member("l", tarfile.SYMTYPE, "a")])
    raw = bytearray(gzip.compress(tar) if packed else tar)
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    work = tmp_path / "fuzz"
    work.mkdir()
    try:
        unpack_layer(io.BytesIO(bytes(raw)), work)  # that it is another tar shows its digest
    except MalformedArchiveError:
        pass
    finally:
        remove_tree(work)
    assert os.listdir(tmp_path) == []


def test_endless_headers_are_bounded(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("././@PaxHeader")
    huge.type, huge.size = tarfile.XHDTYPE, 1 << 33
    with pytest.raises(MalformedArchiveError, match="headers of one member are too large"):
        unpack(tmp_path, huge.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    chain = tarfile.TarInfo("././@LongLink")
    chain.type, chain.size = tarfile.GNUTYPE_LONGNAME, 1
    with pytest.raises(MalformedArchiveError):
        unpack(tmp_path, (chain.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 5000, name="chain")


@pytest.mark.parametrize("members", [[("bomb", bytes(64 << 20))], [(f"{number}", b"") for number in range(4000)]])
def test_a_layer_that_would_fill_the_disk_leaves_a_reserve(
    tmp_path: Path, members: list[tuple[str, bytes | None]]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m,nr_inodes=4000", "tmpfs", str(disk)]
    subprocess.run(mount, check=True)
    try:
        with pytest.raises(OSError, match="No space left on device") as full:
            unpack(disk, gzip.compress(make_tar(members), 1))
        assert full.value.errno == errno.ENOSPC
        left = os.statvfs(disk)
        assert left.f_bavail * left.f_frsize >= left.f_blocks * left.f_frsize // 20 - (1 << 20)
        assert left.f_favail > 0
        (disk / "log").write_bytes(bytes(500_000))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
