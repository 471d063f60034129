"""What archives may cost: headers, decompressors, paths, and all of it together."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import itertools
import lzma
import os
import random
import resource
import stat
import tarfile
import tracemalloc
import zlib
from pathlib import Path
from typing import Literal

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from runtime.unpack import compression, headers, rooted
from runtime.unpack import tar as tar_module
from runtime.unpack.compression import Decompressed
from runtime.unpack.errors import MalformedArchiveError
from runtime.unpack.rooted import RootedDirectory
from runtime.unpack.tar import TarStream


def extended(kind: bytes, data: bytes) -> bytes:
    """An extended header and its content, in whole blocks."""
    info = tarfile.TarInfo("././@Header")
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    while len(str(size)) + len(key) + len(value) + 3 != size:
        size = len(str(size)) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (size, key, value)


def plain(name: str = "f", size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT) + bytes(size + -size % 512)


def members(data: bytes) -> list[headers.TarMember]:
    stream = TarStream(io.BytesIO(data))
    found = list(stream)
    stream.drain()
    return found


END = bytes(1024)


@pytest.mark.parametrize(
    "data",
    [
        extended(b"x", record(b"comment", b"x" * (65 << 10))) + plain(),
        extended(b"x", b"1" * (64 << 10)) + plain(),
        extended(b"x", b"9" * 10 + b" a=b\n") + plain(),
        extended(b"x", b"4 a=\n") + plain(),
        extended(b"x", b"0 a=b\n") + plain(),
        extended(b"x", b"7 a b\n\n") + plain(),
        extended(b"x", record(b"size", b"-1")) + plain(),
        extended(b"x", record(b"size", b"9" * 30)) + plain(),
        extended(b"x", record(b"GNU.sparse.map", b"0,-1") + record(b"GNU.sparse.size", b"9")) + plain(),
        extended(b"x", record(b"GNU.sparse.map", b"5,1,0,1") + record(b"GNU.sparse.size", b"9")) + plain(size=2),
        extended(b"x", record(b"GNU.sparse.map", b"0,1,2") + record(b"GNU.sparse.size", b"9")) + plain(size=2),
        extended(b"x", record(b"GNU.sparse.map", b"0,9") + record(b"GNU.sparse.size", b"9")) + plain(size=2),
        extended(b"L", b"n" * (65 << 10)) + plain(),
        extended(b"g", record(b"comment", b"x" * 60_000)) * 20 + plain(),
        extended(b"L", b"n") * 5000 + plain(),
        extended(b"x", record(b"path", b"x")),
        extended(b"x", b""),
    ],
)
def test_headers_beyond_their_bounds_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedArchiveError):
        members(data + END)


@pytest.mark.parametrize("at", [100, 108, 116, 124, 136])
@pytest.mark.parametrize("field", [b"\xff" * 8, b"\xff" * 7 + b"\0", b"-0000001", b"0o000017", b"1_1\0\0\0\0\0"])
def test_numbers_that_no_header_should_have(at: int, field: bytes) -> None:
    header = bytearray(plain()[:512])
    header[at : at + 8] = field
    if at in (124, 136):
        header[at : at + 12] = field[:1] * 4 + field
    total = sum(header[:148]) + sum(header[156:512]) + 256
    header[148:156] = b"%06o\0 " % total
    try:
        (found,) = members(bytes(header) + END)
    except MalformedArchiveError:
        return
    assert found.size == found.stored >= 0
    assert found.mtime_ns >= 0


def test_the_time_for_a_pax_header_grows_with_its_length_alone() -> None:
    """CVE-2024-6232: digits without an end were tried from every start. Each byte is looked at a bounded number of times."""
    data = b"1" * tar_module.PAX_BYTES_MAX
    looked_at = 0

    class Counting(bytes):
        def find(self, sub: object, start: object = 0, end: object = None) -> int:  # as called
            nonlocal looked_at
            assert isinstance(start, int)
            assert isinstance(end, int)
            looked_at += end - start
            return super().find(sub, start, end)  # type: ignore[arg-type]  # as called

    with pytest.raises(MalformedArchiveError):
        headers.parse_pax(Counting(data))
    assert looked_at <= len(data)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_long_name_cut_at_a_slash_in_its_header_is_no_directory(form: Literal[1, 2]) -> None:
    info = tarfile.TarInfo("a" * 99 + "/" + "b" * 300)
    info.size = 4
    found = members(info.tobuf(form) + b"data".ljust(512, b"\0") + plain() + END)
    assert [(member.name, member.kind, member.size) for member in found] == [(info.name, b"0", 4), ("f", b"0", 0)]


def test_an_archive_has_a_bounded_number_of_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_module, "MEMBERS_MAX", 10)
    assert len(members(plain() * 10 + END)) == 10
    with pytest.raises(MalformedArchiveError, match="more than 10 members"):
        members(plain() * 11 + END)


def read_all(packed: bytes) -> bytes:
    with Decompressed(io.BytesIO(packed)) as found:
        return b"".join(iter(lambda: found.read(70_000), b""))


def greedy_xz() -> bytes:
    """A few bytes whose header wants a window of 4 GB."""
    data = bytearray(lzma.compress(b"x" * 100))
    size = (data[12] + 1) * 4
    assert data[14:16] == b"\x21\x01"
    data[16] = 40
    data[12 + size - 4 : 12 + size] = zlib.crc32(data[12 : 12 + size - 4]).to_bytes(4, "little")
    return bytes(data)


def greedy_zstd() -> bytes:
    """A frame that wants a window of 2 GB, with a block of it that is empty and the last one."""
    return b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([21 << 3]) + b"\x01\x00\x00"


@pytest.mark.parametrize("data", [greedy_xz(), greedy_zstd()])
def test_windows_of_decompressors_are_bounded(data: bytes) -> None:
    with Decompressed(io.BytesIO(data)) as found, pytest.raises(MalformedArchiveError, match=r"(?i)memory"):
        found.read(100)


@pytest.mark.parametrize("compress", [lzma.compress, bz2.compress, zstandard.ZstdCompressor().compress])
def test_what_comes_out_is_bounded_by_what_went_in(compress: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "FREE_BYTES", 1 << 20)
    packed = compress(bytes(8 << 20))  # type: ignore[operator]  # a function
    with pytest.raises(MalformedArchiveError, match="decompress to more"):
        read_all(packed)
    with Decompressed(io.BytesIO(packed)) as found:
        got = 0
        with contextlib.suppress(MalformedArchiveError):
            while data := found.read(1 << 16):
                got += len(data)
    assert got <= (1 << 20) + compression.RATIO_MAX * len(packed)


@pytest.mark.parametrize("compress", [lzma.compress, bz2.compress, zstandard.ZstdCompressor().compress])
def test_several_streams_are_one(compress: object) -> None:
    random_bytes = os.urandom(300_000)
    packed = compress(random_bytes) + compress(b"") + compress(b"end")  # type: ignore[operator]  # a function
    assert read_all(packed) == random_bytes + b"end"


@pytest.mark.parametrize("compress", [lzma.compress, bz2.compress, gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_stream_that_is_cut_off_is_not_taken_for_whole(compress: object) -> None:
    with pytest.raises(MalformedArchiveError):
        read_all(compress(os.urandom(300_000))[:200_000])  # type: ignore[operator]  # a function


def frames_of_all_kinds() -> list[bytes]:
    """Of zstd: with and without a checksum and the size, empty, to be skipped, with blocks of one byte repeated."""
    data = [b"", b"a", bytes(300_000), random.Random(7).randbytes(1000), b"abc" * 70_000]
    kinds = [
        zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=sized)
        for checksum in (False, True)
        for sized in (False, True)
    ]
    streamed = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return [
        *(kind.compress(plain) for kind in kinds for plain in data),
        b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"other",
        b"\x5f\x2a\x4d\x18" + bytes(4),
        streamed.compress(b"x" * 1000) + streamed.flush(),
    ]


@pytest.mark.parametrize("frame", frames_of_all_kinds(), ids=itertools.count())
def test_zstd_is_whole_only_with_the_last_byte_of_its_last_frame(frame: bytes) -> None:
    first = zstandard.ZstdCompressor().compress(b"first")
    whole = first + frame
    assert read_all(whole).startswith(b"first")
    for end in {*range(len(first) + 1, min(len(whole), len(first) + 40)), *range(len(whole) - 8, len(whole))}:
        if end > len(first):
            with pytest.raises(MalformedArchiveError, match="ended before"):
                read_all(whole[:end])


def test_paths_that_were_resolved_are_not_all_remembered(tmp_path: Path) -> None:
    """Links to "." give a few bytes of an archive any number of long paths."""
    names = ["0" * 250, "1" * 250]
    for name in names:
        (tmp_path / name).symlink_to(".")
    tree, choice = RootedDirectory(tmp_path), random.Random(7)
    tracemalloc.start()
    try:
        for _ in range(4000):
            assert tree.resolve([choice.choice(names) for _ in range(15)], lambda *_: None) == ""
        assert tracemalloc.get_traced_memory()[0] < 8 << 20
    finally:
        tracemalloc.stop()
        tree.close()


def test_of_many_folders_few_are_open(tmp_path: Path) -> None:
    tree, before = RootedDirectory(tmp_path), len(os.listdir("/proc/self/fd"))
    try:
        for number in range(300):
            (tmp_path / f"{number}").mkdir()
            assert tree.lstat(f"{number}", "nothing") is None
        assert len(os.listdir("/proc/self/fd")) < before + 100
    finally:
        tree.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_lower_layer_is_looked_at_with_few_descriptors_whatever_the_depth(tmp_path: Path) -> None:
    path = "/".join(["d"] * rooted.DEPTH_MAX)
    (tmp_path / path).mkdir(parents=True)
    (tmp_path / path / "file").symlink_to("nowhere")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, before[1]))
    try:
        found = [rooted.look_up(tmp_path, f"{path}/{name}") for name in ("file", "file/below", "gone", "gone/below")]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [info is not None and stat.S_ISLNK(info.st_mode) for info in found] == [True, True, False, False]


def test_a_way_through_links_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "s").symlink_to("/".join(["a", ".."] * 600))
    (tmp_path / "a").mkdir()
    tree = RootedDirectory(tmp_path)
    try:
        with pytest.raises(MalformedArchiveError, match="too long a way"):
            tree.resolve(["s"] * 30, lambda *_: None)
    finally:
        tree.close()


def test_links_in_a_circle_are_told_as_such_and_no_folder_is_too_deep_for_what_looks_at_it(tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to("there")
    (tmp_path / "there").symlink_to("here")
    tree = RootedDirectory(tmp_path)
    try:
        with pytest.raises(MalformedArchiveError, match="too many symbolic links"):
            tree.resolve(["here"], lambda *_: None)
        deep = ["d"] * rooted.DEPTH_MAX

        def make(parent: str, name: str) -> None:
            os.mkdir(name, dir_fd=tree.fd(parent))

        assert tree.resolve(deep, make) == "/".join(deep)
        with pytest.raises(MalformedArchiveError, match="nested too deeply"):
            tree.resolve([*deep, "d"], make)
    finally:
        tree.close()


NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=300).filter(
    lambda name: not name.endswith("/") and len(name.encode()) < 4000
)


@given(
    name=NAMES,
    link=NAMES,
    kind=st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6"]),
    size=st.integers(0, 2000),
    numbers=st.tuples(st.integers(0, 0o7777), st.integers(0, 1 << 31), st.integers(0, 1 << 31)),
    mtime=st.one_of(st.integers(0, 1 << 33), st.floats(0, 1 << 33)),
    form=st.sampled_from([1, 2]),
)
def test_headers_are_read_as_the_standard_library_writes_them(
    name: str, link: str, kind: bytes, size: int, numbers: tuple[int, int, int], mtime: float, form: Literal[1, 2]
) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mtime = kind, link, mtime
    info.size = size if kind == b"0" else 0
    info.mode, info.uid, info.gid = numbers
    info.devmajor, info.devminor = (5, 9) if kind == b"3" else (0, 0)
    data = info.tobuf(form, "utf-8", "surrogateescape") + bytes(info.size + -info.size % 512)
    first, second = members(data + plain("last") + END)
    assert (first.name.rstrip("/"), first.link_name, first.kind, first.size) == (name, link, kind, info.size)
    assert (first.mode, first.uid, first.gid, first.major, first.minor) == (*numbers, info.devmajor, info.devminor)
    assert abs(first.mtime_ns / 1e9 - mtime) < (1 if form == 1 else 1e-5)
    assert second.name == "last"


def test_a_global_header_does_not_cost_each_member_anew() -> None:
    """20 ms each with 24 000 attributes, or a map of 15 000 parts: hours for an archive of some hundred kilobytes."""
    attributes = b"".join(record(b"SCHILY.xattr.user.%d" % number, b"v") for number in range(1500))
    sparse = record(b"GNU.sparse.size", b"0") + record(b"GNU.sparse.map", b",".join([b"0,0"] * 10_000))
    found = members(
        extended(b"g", record(b"uid", b"7") + attributes) + extended(b"g", sparse) + plain("a") + plain("b") + END
    )
    assert [(member.name, member.uid, member.xattrs, member.segments) for member in found] == [
        ("a", 7, {}, None),
        ("b", 7, {}, None),
    ]
