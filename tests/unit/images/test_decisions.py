"""Decisions without I/O: platforms, removal, filters, change instructions, manifests."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.images import (
    ContainerUse,
    Descriptor,
    HealthConfig,
    ImageConfig,
    ImageConflictError,
    ImagesError,
    InvalidArgumentError,
    Platform,
)
from runtime.images.changes import apply_changes
from runtime.images.listing import moment
from runtime.images.manifests import (
    VALUES_MAX,
    VOLUMES_MAX,
    epoch_of,
    media_type_of,
    parse_config,
    parse_index,
    parse_manifest,
)
from runtime.images.platforms import choose, normalize, parse_platform, satisfies
from runtime.images.records import ImageRecord
from runtime.images.removal import Removal, decide_removal
from runtime.images.snapshots import chain_ids
from runtime.kernel.mounts import filesystem_of

ID = "sha256:" + "1" * 64
D = "sha256:" + "2" * 64
A1, A2, B1, AD = "docker.io/library/a:1", "docker.io/library/a:2", "docker.io/library/b:1", f"docker.io/library/a@{D}"
STOPPED, RUNNING = ContainerUse("c" * 64, running=False), ContainerUse("d" * 64, running=True)


def record(tags: list[str], digests: list[str]) -> ImageRecord:
    return ImageRecord(ID=ID, Layers=[], Tags=tags, Digests=digests, Manifests=[], SizeBytes=0)


@pytest.mark.parametrize(
    ("tags", "digests", "by", "users", "force", "expected"),
    [
        ([A1], [AD], A1, [], False, Removal((A1, AD), delete=True)),
        ([A1, A2], [AD], A1, [], False, Removal((A1,), delete=False)),
        ([A1, B1], [AD], A1, [], False, Removal((A1, AD), delete=False)),
        ([A1, A2], [], A1, [STOPPED], False, Removal((A1,), delete=False)),
        ([A1], [], A1, [STOPPED], True, Removal((A1,), delete=True)),
        ([A1], [], A1, [RUNNING], True, Removal((A1,), delete=False)),
        ([A1], [AD], None, [], False, Removal((A1, AD), delete=True)),
        ([A1, B1], [], None, [], True, Removal((A1, B1), delete=True)),
        ([], [], None, [STOPPED], True, Removal((), delete=True)),
        ([A1], [], A1, [STOPPED], False, "must force"),
        ([A1, A2], [], None, [], False, "referenced in multiple repositories"),
        ([A1], [], None, [RUNNING], True, r"\(cannot be forced\) - image is being used by running container d{12}$"),
        ([A1], [], None, [STOPPED], False, r"\(must be forced\) - image is being used by stopped container c{12}$"),
    ],
)
def test_removal(
    tags: list[str], digests: list[str], by: str | None, users: list[ContainerUse], force: bool, expected: object
) -> None:
    if isinstance(expected, Removal):
        assert decide_removal(record(tags, digests), by, users, force=force) == expected
    else:
        with pytest.raises(ImageConflictError, match=str(expected)):
            decide_removal(record(tags, digests), by, users, force=force)


def test_platforms() -> None:
    assert normalize(Platform("aarch64", "linux", "v8")) == Platform("arm64", "linux")
    assert parse_platform("linux/arm/7") == Platform("arm", "linux", "v7")
    assert str(parse_platform("amd64")) == "linux/amd64"
    assert satisfies(Platform("arm64", "linux"), Platform("arm", "linux", "v6"))
    assert not satisfies(Platform("arm", "linux", "v6"), Platform("arm", "linux", "v7"))
    entries = [
        Descriptor("m", D, 1, platform=Platform(architecture, "linux", variant))
        for architecture, variant in (("unknown", ""), ("386", ""), ("amd64", "v3"), ("amd64", ""))
    ]
    assert choose(Platform("amd64", "linux"), entries) is entries[3]
    assert choose(Platform("amd64", "linux", "v3"), entries) is entries[2]
    assert choose(Platform("arm64", "linux"), entries) is None
    for text in ("", "linux/", "a/b/c/d", "linux/am d64"):
        with pytest.raises(InvalidArgumentError):
            parse_platform(text)


def test_change_instructions() -> None:
    base = ImageConfig(Env=["A=0", "B=1"], WorkingDir="/srv")
    config = apply_changes(
        base,
        [
            "env A=x",
            "ENTRYPOINT exec top -b",
            'LABEL a.b="c d" e=f',
            "WORKDIR sub",
            'VOLUME ["/data", "/x y"]',
            "EXPOSE 8000-8002/udp",
            "STOPSIGNAL SIGINT",
            "HEALTHCHECK --interval=1m30s --retries=2 CMD wget -q localhost",
        ],
    )
    assert config.Env == ["B=1", "A=x"]
    assert base.Env == ["A=0", "B=1"]
    assert config.Entrypoint == ["/bin/sh", "-c", "exec top -b"]
    assert config.Labels == {"a.b": "c d", "e": "f"}
    assert config.WorkingDir == "/srv/sub"
    assert config.Volumes == {"/data": {}, "/x y": {}}
    assert sorted(config.ExposedPorts or {}) == ["8000/udp", "8001/udp", "8002/udp"]
    assert config.Healthcheck == HealthConfig(Test=["CMD-SHELL", "wget -q localhost"], Interval=90 * 10**9, Retries=2)
    for bad in ("RUN x", "CMD", "EXPOSE 70000", "ENV a", 'LABEL "a', "HEALTHCHECK --what=1 CMD x", "SHELL sh"):
        with pytest.raises(InvalidArgumentError):
            apply_changes(ImageConfig(), [bad])


def test_times() -> None:
    assert epoch_of("2024-05-06T07:08:09.123456789Z") == 1714979289
    assert epoch_of("2024-05-06T09:08:09+02:00") == 1714979289
    assert epoch_of("0001-01-01T00:00:00Z") == 0
    assert epoch_of("soon") == 0
    assert moment("1h30m", now=10_000) == 4600
    assert moment("1714979289", now=0) == 1714979289
    with pytest.raises(InvalidArgumentError):
        moment("yesterday", now=0)


def test_chain_ids_as_in_the_specification() -> None:
    import hashlib

    a, b = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    assert chain_ids([]) == []
    assert chain_ids([a, b]) == [a, "sha256:" + hashlib.sha256(f"{a} {b}".encode()).hexdigest()]


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.integers() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "config",
                        "layers",
                        "manifests",
                        "rootfs",
                        "digest",
                        "size",
                        "schemaVersion",
                        "mediaType",
                        "diff_ids",
                    ]
                ),
                x,
            )
        ),
    ).map(lambda v: json.dumps(v).encode())
)
def test_any_bytes_are_understood_or_refused(data: bytes) -> None:
    for parse in (media_type_of, parse_manifest, parse_index, parse_config):
        with contextlib.suppress(ImagesError):
            parse(data)


@pytest.mark.parametrize("parse", [media_type_of, parse_manifest, parse_index, parse_config])
def test_a_document_of_a_million_values_is_refused_before_it_is_read(parse: Callable[[bytes], object]) -> None:
    """It would be read on the event loop, into thirty times its size of memory."""
    empty = b"{}," * VALUES_MAX + b"{}"
    with pytest.raises(ImagesError, match="more than 100000 values"):
        parse(b'{"history": [%s], "manifests": [%s]}' % (empty, empty))


def test_an_image_has_no_more_volumes_than_a_container_can_have_made() -> None:
    def config(count: int) -> bytes:
        return json.dumps({"config": {"Volumes": {f"/{number}": {} for number in range(count)}}}).encode()

    assert parse_config(config(VOLUMES_MAX)).config
    with pytest.raises(ImagesError, match="1001 volumes, at most 1000"):
        parse_config(config(VOLUMES_MAX + 1))


MOUNTS = """\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:20 / /my\\040disk rw shared:1 - xfs /dev/sdb rw
22 20 0:21 / /my rw - tmpfs tmpfs rw
23 21 0:22 / /my\\040disk rw - btrfs /dev/sdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/my disk/state", "btrfs"), ("/my/state", "tmpfs"), ("/mydisk", "ext4"), ("/", "ext4")],
)
def test_the_file_system_of_a_path_with_blanks_is_found(path: str, kind: str) -> None:
    assert filesystem_of(Path(path), MOUNTS) == kind
    assert filesystem_of(Path(path), "") == "unknown"


@pytest.mark.parametrize(
    "config", ['{"Healthcheck": {"Test": ["CMD", "true"], "Interval": %s}}', '{"StopTimeout": %s}']
)
def test_a_time_that_nobody_can_wait_for_is_none(config: str) -> None:
    """A container could be neither probed nor stopped: the number is too large for a float."""
    number = "1" + "0" * 400
    with pytest.raises(ImagesError, match="invalid image configuration"):
        parse_config(f'{{"os": "linux", "config": {config % number}}}'.encode())
    parse_config(f'{{"os": "linux", "config": {config % (2**63 - 1)}}}'.encode())
