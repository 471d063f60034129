"""The content store and its collector."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.images.content import ContentStore


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    content = ContentStore(tmp_path)
    content.open()
    return content


def test_a_collection_takes_no_blob_that_is_just_being_written(
    content: ContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    condemned = list[Path]()
    fsync = os.fsync

    def collect_meanwhile(descriptor: int) -> None:
        condemned.extend(content.condemn(set()))
        fsync(descriptor)

    with content.lease() as lease, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", collect_meanwhile)
        lease.add("sha256:a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447")
        digest = content.put(b"hello world\n")
    assert condemned == []
    assert content.read(digest) == b"hello world\n"
    assert content.condemn(set()) == list((tmp_path / "ingest").iterdir()) != []


def test_what_a_crash_left_of_a_blob_is_gone_after_the_next_start(content: ContentStore, tmp_path: Path) -> None:
    leftover = tmp_path / "blobs" / "sha256" / f".{'a' * 64}.1.tmp"
    leftover.write_bytes(b"half")
    content.open()
    assert not leftover.exists()
